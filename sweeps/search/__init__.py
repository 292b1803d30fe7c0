"""The search: an Optuna study behind Ray Tune."""
