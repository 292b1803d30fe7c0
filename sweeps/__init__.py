"""The search: spec, space, Optuna under Ray Tune, records."""

DISTRIBUTION = "compression-sweeps"
"""The distribution that this package belongs to; `compression_sweeps` looks for it."""
