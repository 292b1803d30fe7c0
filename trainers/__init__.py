"""Models, data and the one training loop. Runs without Ray."""

from trainers.torchvision_internals import mend_on_import

mend_on_import()  # before anything here imports timm
