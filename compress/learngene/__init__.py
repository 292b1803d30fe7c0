"""Learngenes: one auxiliary network that expands into models of any size."""
