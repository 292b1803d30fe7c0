"""Coded model files: exact to the bit, near the entropy of the shared values."""
