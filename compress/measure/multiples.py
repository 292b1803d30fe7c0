"""How many channels a runtime takes at a time, measured on layers of the model.

A runtime computes channels in vectors: a layer of 60 outputs may take as long as one of 64, so that
four channels are lost for nothing.

Legend
    d       channels that a layer loses, one of `LOSSES`; it had a multiple of the largest
    S(d)    milliseconds saved by d outputs, and by d inputs, together over the layers measured
    m       channels that are taken at a time; S is then a staircase, S(d) = ⌊d/m⌋ · m/32 · S(32)

The m whose staircase is nearest to what was measured, by least squares, is what the runtime likes.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from compress.measure.in_turns import Times, layer_times
from compress.measure.layer_shape import LayerShape
from compress.measure.options import RuntimeOptions

LOSSES = (0, 1, 2, 4, 8, 16, 32)
MULTIPLES = (1, 2, 4, 8, 16, 32)
_MOST_LAYERS = 3
_LEAST = 64
"""Channels: a layer with fewer has no staircase of steps of 32."""

_LIKED: dict[str, int | None] = {}
"""What was found in this process, by layers and options: the trials of a process share it."""


def liked_multiple(
    shapes: Iterable[LayerShape], options: RuntimeOptions, device: str
) -> int | None:
    """The number of channels that a runtime takes at a time.

    Args:
        shapes: of a model's layers; the three that compute most and have 64 channels or more are
            measured, once in a process.

    Returns:
        One of `MULTIPLES`; None where no layer is wide enough, or nothing is saved by 32 channels.
    """
    telling = _telling(shapes)
    key = repr((telling, options, device))
    if key not in _LIKED:
        _LIKED[key] = nearest_staircase(_saved(telling, options, device))
    return _LIKED[key]


def chunk_size(size: int, liked: int) -> int:
    """The largest power of two, no more than what is liked, of which there are two in `size`; 1
    where there are not.
    """
    return next(
        n for n in reversed(MULTIPLES) if n == 1 or (n <= liked and 2 * n <= size)
    )


def nearest_staircase(saved: Times) -> int | None:
    """The m of the staircase that is nearest to S(d) (7,) in the order of `LOSSES`; None where
    nothing is saved.
    """
    whole = saved[-1]
    if whole <= 0:
        return None
    losses = np.array(LOSSES)
    errors = [
        float(np.square(losses // m * m / losses[-1] - saved / whole).sum())
        for m in MULTIPLES
    ]
    return MULTIPLES[int(np.argmin(errors))]


def _telling(shapes: Iterable[LayerShape]) -> list[LayerShape]:
    """The shapes to measure, those that compute most first."""
    wide = {each for each in shapes if each.groups == 1 and any(_wide_sides(each))}
    ordered = sorted(wide, key=lambda each: (-_products(each), repr(each)))
    return ordered[:_MOST_LAYERS]


def _wide_sides(shape: LayerShape) -> tuple[bool, bool]:
    """Whether the outputs, and the inputs, can change and are many enough."""
    outputs, inputs = shape.vary
    return outputs and shape.outputs >= _LEAST, inputs and shape.inputs >= _LEAST


def _products(shape: LayerShape) -> float:
    """Multiply-accumulates of an image, but for what the border adds or takes."""
    places = math.prod(shape.places) / math.prod(shape.stride)
    return shape.outputs * shape.inputs * places * math.prod(shape.kernel)


def _saved(shapes: Sequence[LayerShape], options: RuntimeOptions, device: str) -> Times:
    """S(d) (7,), ms a batch."""
    saved = np.zeros(len(LOSSES))
    for shape in shapes:
        for side, wide in enumerate(_wide_sides(shape)):
            if wide:
                times = _times(shape, side, options, device)
                saved += times[0] - times
    return saved


def _times(shape: LayerShape, side: int, options: RuntimeOptions, device: str) -> Times:
    """Milliseconds (7,) of a layer that loses outputs (side 0) or inputs (1)."""
    whole = [n // LOSSES[-1] * LOSSES[-1] or n for n in (shape.outputs, shape.inputs)]
    cuts = []
    for loss in LOSSES:
        outputs, inputs = (n - loss * (i == side) for i, n in enumerate(whole))
        example = torch.zeros(shape.input_shape(options.batch_size, inputs))
        cuts.append((shape.module(outputs, inputs), example))
    return layer_times(cuts, options, torch.device(device))
