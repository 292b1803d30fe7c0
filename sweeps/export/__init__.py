"""A trial's model as files that others can run."""
