"""Models: their descriptions, the architectures of this package, and where weights come from."""
