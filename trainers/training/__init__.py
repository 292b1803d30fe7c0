"""The one training loop with its optimisers, losses, metrics and checkpoints."""
