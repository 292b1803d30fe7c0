"""What a model costs: sizes, operations, entropy and measured latency."""
