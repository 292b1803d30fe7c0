"""Who reads a value: a value that only layers in float read is not rounded for them."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trainers.models.quantised import IMAGES, OUTPUT, Calls, Place

_LOOKS = frozenset({"__get__", "dim", "size"})
"""Functions that ask for a tensor's shape and do not use its values."""


class _Readers(TorchFunctionMode):
    """Notes in which modules the results of functions are read."""

    def __init__(self, calls: Calls, images: Tensor) -> None:
        super().__init__()
        self.calls = calls
        self.kept: list[Any] = [images]  # an id is a tensor's only as long as it lives
        self.made: dict[int, Place] = {id(images): Place(*IMAGES, OUTPUT)}
        self.readers: dict[Place, set[str]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        call = self.calls.next(name)
        if name not in _LOOKS:
            self._read(call[0], (args, kwargs or {}))
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor):
            self.kept.append(output)
            self.made[id(output)] = Place(*call, OUTPUT)
        return output

    def _read(self, module: str, value: Any) -> None:
        if isinstance(value, Tensor):
            place = self.made.get(id(value))
            if place is not None:
                self.readers.setdefault(place, set()).add(module)
        elif isinstance(value, dict):
            self._read(module, list(value.values()))
        elif isinstance(value, list | tuple):
            for each in value:
                self._read(module, each)


@torch.no_grad()
def readers_of(module: nn.Module, images: Tensor) -> dict[Place, set[str]]:
    """Place of a result → paths of the modules in which it is read.

    Args:
        module: in eval mode, norms folded; not changed.
        images: some, to follow them through the model.
    """
    module = copy.deepcopy(module)
    calls = Calls(module)
    calls.start()
    with _Readers(calls, images) as found:
        module(images)
    return found.readers


def read_by_none_but(
    layers: set[str], group: Iterable[Place], readers: dict[Place, set[str]]
) -> bool:
    """Whether all that a quantiser gives is read by these layers alone.

    Args:
        group: the places of the quantiser.
    """
    for place in group:
        found = readers.get(place, set()) if place.port == OUTPUT else {place.module}
        if not found or not found <= layers:
            return False
    return True
