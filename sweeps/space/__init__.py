"""The search space, and what a configuration resolves to."""
