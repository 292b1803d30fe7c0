"""The search: spec, space, Optuna under Ray Tune, records."""
