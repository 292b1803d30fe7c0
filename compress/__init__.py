"""Methods as stages of a pipeline. Runs without Ray."""
