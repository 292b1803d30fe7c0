"""Peak memory of one inference batch.

On CUDA the figure is the caching allocator's own peak, with the workspaces that kernels ask
for. On the CPU it is the largest sum of the bytes of all tensors that are alive at once:
weights, buffers, images and activations. That sum is the same on every machine and in every
repetition, which growth of the process's resident memory is not: the latter depends on what
the allocator kept from earlier work. It leaves out the scratch memory that an operator
takes and returns inside one call, such as the unfolded image of a convolution.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compress.measure.options import Precision

MEGABYTE = 1e6
"""Bytes in a megabyte, by the decimal prefix that the file sizes of this project use too."""


def peak_memory_bytes(
    module: nn.Module,
    image_size: int,
    device: torch.device | str,
    *,
    batch_size: int = 1,
    dtype: Precision = "float32",
    in_chans: int = 3,
) -> int:
    """Bytes in use at the peak of one forward pass in inference mode, weights included.

    A copy of `module` in eval mode is measured, cast to `dtype`; `module` is not changed.

    Args:
        image_size: pixels of the square input images.
        device: where the pass runs.
        batch_size: images of the pass.
        dtype: of weights and images.
        in_chans: channels of an image.
    """
    device = torch.device(device)
    precision = getattr(torch, dtype)
    model = copy.deepcopy(module).eval().to(device, precision)
    shape = (batch_size, in_chans, image_size, image_size)
    images = torch.zeros(shape, device=device, dtype=precision)
    if device.type == "cuda":
        return _peak_on_cuda(model, images, device)
    tracker = _LiveTensors([*model.parameters(), *model.buffers(), images])
    with torch.inference_mode(), tracker:
        model(images)
    return tracker.peak_bytes


def training_bytes(
    module: nn.Module, image_size: int, images: int, in_chans: int = 3
) -> int:
    """Bytes in use at the peak of one training step on the CPU, without optimiser: parameters,
    gradients, and what is kept for them. `module` is not changed.
    """
    model = copy.deepcopy(module).train()
    batch = torch.zeros(images, in_chans, image_size, image_size)
    tracker = _LiveTensors([*model.parameters(), *model.buffers(), batch])
    with tracker:
        logits = model(batch)
        logits = logits[0] if isinstance(logits, tuple) else logits
        logits.sum().backward()
    return tracker.peak_bytes


def _peak_on_cuda(model: nn.Module, images: Tensor, device: torch.device) -> int:
    """The allocator's peak above what other tensors of this process occupy."""
    own = _LiveTensors([*model.parameters(), *model.buffers(), images]).peak_bytes
    with torch.inference_mode():
        model(
            images
        )  # libraries allocate their handles and workspaces at the first call
        torch.cuda.synchronize(device)
        others = torch.cuda.memory_allocated(device) - own
        torch.cuda.reset_peak_memory_stats(device)
        model(images)
        torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - max(0, others)


class _LiveTensors(TorchDispatchMode):
    """Follows which storages are alive while operators run.

    Attributes:
        peak_bytes: the largest sum of their sizes so far.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak_bytes = 0
        self._note(tensors)

    def _note(self, tensors: Iterable[Tensor]) -> None:
        self._alive = {
            key: entry for key, entry in self._alive.items() if not entry[0].expired()
        }
        for tensor in tensors:
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            self._alive.setdefault(reference.cdata, (reference, storage.nbytes()))
        total = sum(size for _, size in self._alive.values())
        self.peak_bytes = max(self.peak_bytes, total)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._note(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result
