"""NViT: global pruning of vision transformers to a latency target."""
