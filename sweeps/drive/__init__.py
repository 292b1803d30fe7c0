"""The driver: a checked sweep becomes trials on Ray."""
