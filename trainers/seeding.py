"""All seeds of a trial are derived from one root seed."""

import hashlib
import random


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from a root seed and the names of what it is for (SHA-256, so order
    matters).
    """
    text = "\x1f".join(str(p) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch."""
    # torch takes a second to import, and `derive_seed` serves processes that never train
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # timm draws from this one
    torch.manual_seed(seed)
