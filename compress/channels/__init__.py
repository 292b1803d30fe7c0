"""Channels of any image model: which belong together, what they are worth, what may go."""
