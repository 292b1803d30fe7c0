"""Methods as stages of a pipeline. Runs without Ray."""

import trainers  # noqa: F401 (makes torchvision importable before anything here imports timm)
