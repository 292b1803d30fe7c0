"""Whether an exported file computes what the model computes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from compress.measure.options import Precision
from compress.runtimes.onnx_file import quiet
from trainers.models.quantised import QuantisedModel, computing_by, moved_slightly
from trainers.seeding import derive_seed

TOLERANCES: Mapping[Precision, float] = MappingProxyType(
    {"float32": 1e-4, "float16": 2e-2, "bfloat16": 0.1}
)
"""Largest allowed |difference| of a logit in a precision, in units of the largest logit or of 1."""
INTEGER_TOLERANCE = 4.0
"""The same for models in integers, in units of what rounding itself leaves open: a runtime may
round a value between two steps to the other one, and later layers carry that on. See `_open`.
"""
_BATCHES = (1, 3)


def example_images(batch: int, channels: int, size: int) -> Tensor:
    """Standard normal images (B, C, S, S), the same on every call."""
    generator = torch.Generator().manual_seed(derive_seed(batch, "export"))
    return torch.randn(batch, channels, size, size, generator=generator)


def largest_difference(
    run: Callable[[Path, Tensor], Tensor],
    module: nn.Module,
    folder: Path,
    channels: int,
    size: int,
    name: str,
    precision: Precision,
) -> float:
    """The largest difference of a logit between the module and a format's `run`.

    Args:
        channels, size: of the images, the size in pixels.
        name: of the format.
        precision: in which the file was written.

    Raises:
        ValueError: it is past the tolerance.
    """
    worst = 0.0
    for batch in _BATCHES:
        images = example_images(batch, channels, size)
        with torch.no_grad():
            wanted = module(images)
        tolerance = TOLERANCES[precision] * max(1.0, float(wanted.abs().max()))
        if isinstance(module, QuantisedModel):
            tolerance += INTEGER_TOLERANCE * _open(module, images, wanted)
        with quiet():
            found = run(folder, images)
        difference = (
            float((found - wanted).abs().max())
            if found.shape == wanted.shape
            else float("inf")
        )
        if not difference <= tolerance:
            raise ValueError(
                f"the {name} export differs from the model by {difference:.3g} in a"
                " logit; nothing was written"
            )
        worst = max(worst, difference)
    return worst


def _open(module: QuantisedModel, images: Tensor, wanted: Tensor) -> float:
    """The largest difference of a logit when values are moved slightly before they are rounded;
    three draws, the same on every call.
    """
    moved = moved_slightly(derive_seed(len(images), "rounding"))
    with torch.no_grad(), computing_by(moved):
        return max(float((module(images) - wanted).abs().max()) for _ in range(3))
