"""The run folder: plans, records, storage and who drives it."""
