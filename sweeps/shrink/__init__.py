"""A user's goal instead of a search: how small or fast, and what may be lost for it."""
