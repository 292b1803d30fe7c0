"""What tensors an architecture has, found on the meta device, also where its description
comes from a file.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

from torch.nn.modules import module as hooks

from trainers.models.arch import BUILD_ERRORS, Arch, meta_device
from trainers.models.parameters import linear_and_conv_parameters

_MODULES_PER_TENSOR = 64


@dataclass(frozen=True)
class ArchTensors:
    """Tensors of an architecture's state dict.

    Attributes:
        shapes: by name, in order.
        indexable: names of the parameters of linear and convolutional layers.
    """

    shapes: dict[str, tuple[int, ...]]
    indexable: frozenset[str]


def arch_tensors(arch: Arch, most_tensors: int) -> ArchTensors:
    """Build `arch` without memory and look.

    Args:
        most_tensors: how many it should have; far above, building stops (few bytes may ask
            for a million layers).

    Raises:
        ValueError: it cannot be built, reads files, or has far more tensors.
    """
    try:
        return _arch_tensors(json.dumps(arch.to_json()), most_tensors)
    except BUILD_ERRORS as error:
        raise ValueError(
            f"model {arch.name!r} cannot be built here: {error or type(error).__name__}"
        ) from error


@lru_cache(
    maxsize=64
)  # a sweep packs many models of few architectures; timm initialises them slowly
def _arch_tensors(description: str, most_tensors: int) -> ArchTensors:
    arch = Arch.from_json(json.loads(description))
    with meta_device(), _at_most(most_tensors):
        module = arch.build()
    shapes = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    return ArchTensors(shapes, frozenset(linear_and_conv_parameters(module)))


@contextmanager
def _at_most(tensors: int) -> Iterator[None]:
    """Let modules of at most so many parameters and buffers be built."""
    registered = {"tensors": 0, "modules": 0}
    thread = threading.get_ident()

    def count(kind: str, limit: int) -> None:
        if threading.get_ident() != thread:  # the hooks are the process's
            return
        registered[kind] += 1
        if registered[kind] > limit:
            raise ValueError(f"it has more than the {tensors} tensors of the file")

    # buffers that are not saved and parameters that are replaced count too: hence the factor
    limit = 4 * tensors + 64
    handles = [
        hooks.register_module_parameter_registration_hook(
            lambda *_: count("tensors", limit)
        ),
        hooks.register_module_buffer_registration_hook(
            lambda *_: count("tensors", limit)
        ),
        hooks.register_module_module_registration_hook(
            lambda *_: count("modules", _MODULES_PER_TENSOR * limit)
        ),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
