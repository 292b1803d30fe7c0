"""From the host to a device, without waiting for the device."""

import torch
from numpy.typing import NDArray
from torch import Tensor

_ALWAYS_ASYNCHRONOUS = 64 << 10
"""Bytes up to which CUDA copies from any memory of the host without waiting."""


def put(
    values: NDArray | Tensor, device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """An array of the host on `device`, cast to `dtype` on the way.

    A GPU is not waited for: what is large goes through pinned memory. (A plain copy waits
    until the device has done all that it was asked to do before.)
    """
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    tensor = tensor.to(dtype or tensor.dtype)
    if device.type == "cuda" and tensor.nbytes > _ALWAYS_ASYNCHRONOUS:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
