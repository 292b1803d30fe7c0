"""Models, data and the one training loop. Runs without Ray."""
