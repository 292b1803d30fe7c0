"""Calibration images for Olive: the user script of `benchmarks/shrink.py`'s way `olive`.

Olive loads this file in its own Python, which has nothing of this package.
"""

import numpy as np
import torch
from olive.data.registry import Registry


@Registry.register_dataset()
def calibration_images(file: str) -> torch.utils.data.Dataset:
    """Images float32 (N, 3, S, S) of a .npy file, each beside a label that nobody reads."""
    images = torch.from_numpy(np.load(file))
    return [({"images": image}, 0) for image in images]
