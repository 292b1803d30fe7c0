"""The work of one trial, in one process or in a group of workers."""
