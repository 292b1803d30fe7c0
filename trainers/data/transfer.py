"""From the host to a device, without waiting for the device."""

import torch
from numpy.typing import NDArray
from torch import Tensor


def put(
    values: NDArray | Tensor, device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """An array of the host on `device`, cast to `dtype` on the way.

    Through pinned memory where the device is a GPU: a copy out of pageable memory waits
    until the device has done all that it was asked to do before.
    """
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    tensor = tensor.to(dtype or tensor.dtype)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
