"""The command `sweeps`."""
