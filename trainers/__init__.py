"""Models, data and the one training loop. Runs without Ray."""

from trainers._torchvision import import_torchvision

import_torchvision()  # before anything here imports timm
