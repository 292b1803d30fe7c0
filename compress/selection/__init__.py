"""Initialising a student from a subset of a larger model's weights."""
