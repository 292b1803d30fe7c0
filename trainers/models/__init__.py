"""Models that rebuild anywhere from a description, and where their weights come from."""
