"""Ranges of activations and weights from calibration images, and what rounding moved.

Legend
    lo, hi      range of a quantiser; 0 is always in it, so that padding and ReLU stay exact
    s, z        its step and zero point: s = (hi − lo) / 255, z = round(−lo / s) in uint8; for
                symmetric ranges s = max(|lo|, |hi|) / 127, z = 0 in int8
    c           share of a range that remains after clipping

Rules: min-max; percentile (the range that holds a share of the values); mse (the c of least squared
error; Nagel et al., A White Paper on Neural Network Quantization, 2021, section 3.1).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compress.stage import Context
from trainers.models.quantised import (
    Operators,
    QuantisedModel,
    computing_by,
    dequantise,
    quantise,
    round_to_steps,
)
from trainers.training.evaluate import laid_out

RangeRule = Literal["minmax", "percentile", "mse"]
CALIBRATION_BATCH = 32


def images_of(ctx: Context, count: int) -> list[Tensor]:
    """The first `count` training images, in batches on the CPU."""
    size = min(count, CALIBRATION_BATCH)
    batches = ctx.batches(-(-count // size), size)
    found = [images.cpu().contiguous() for images, _ in batches]
    last = count - size * (len(found) - 1)
    return [*found[:-1], found[-1][:last]]


RANGE_RULES: tuple[RangeRule, ...] = ("minmax", "percentile", "mse")
_MOST_VALUES = 1 << 15
"""Values of a batch that a quantiser remembers for percentiles and errors."""
_CLIPS = torch.linspace(0.2, 1.0, 41).tolist()
_LEAST = 1e-8
_IMAGES_AT_ONCE = 8
"""Images whose inputs to all layers are held at once."""


class Values:
    """What passed one quantiser."""

    def __init__(self) -> None:
        self.low = 0.0
        self.high = 0.0
        self.sample: list[Tensor] = []

    def add(self, value: Tensor) -> None:
        flat = value.detach().reshape(-1).float()
        self.low = min(self.low, float(flat.min()))
        self.high = max(self.high, float(flat.max()))
        self.sample.append(flat[:: max(1, len(flat) // _MOST_VALUES)].cpu())


@torch.no_grad()
def observe(model: QuantisedModel, batches: Sequence[Tensor]) -> list[Values]:
    """What passes each quantiser while nothing is rounded.

    Args:
        model: with real weights (a plan without weights).
    """
    seen = [Values() for _ in model.plan.signed]
    numbers = {id(model.get_buffer(f"step_{i}")): i for i in range(len(seen))}

    def note(value: Tensor, step: Tensor, zero_point: Tensor) -> Tensor:
        seen[numbers[id(step)]].add(value)
        return value

    with computing_by(Operators(note, dequantise)):
        for images in batches:
            model(images)
    return seen


@torch.no_grad()
def logits_of(module: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    """(N, classes) of all batches."""
    return torch.cat([module(laid_out(images)) for images in batches])


def activation_step(
    seen: Values, rule: RangeRule, percentile: float, *, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """(s, z) of a quantiser; z's type says whether its integers have a sign."""
    low, high = seen.low, seen.high
    values = torch.cat(seen.sample) if seen.sample else torch.zeros(1)
    if rule == "percentile":
        ends = torch.tensor([1 - percentile / 100, percentile / 100])
        few = values[:: max(1, len(values) // (1 << 20))]  # quantile takes no more
        low, high = (float(end) for end in torch.quantile(few, ends))
        low, high = min(low, 0.0), max(high, 0.0)
    if rule != "mse":
        return _step_of(low, high, symmetric)
    few = values[:: max(1, len(values) // (1 << 17))]
    candidates = [_step_of(c * low, c * high, symmetric) for c in _CLIPS]
    errors = [
        float((quantise(few, *each) - few).square().mean()) for each in candidates
    ]
    return candidates[errors.index(min(errors))]


def _step_of(low: float, high: float, symmetric: bool) -> tuple[Tensor, Tensor]:
    if symmetric and low < 0:
        step = max(-low, high, _LEAST) / 127
        return torch.tensor(step), torch.zeros((), dtype=torch.int8)
    step = max(high - low, _LEAST) / 255
    zero = min(255, max(0, round(-low / step)))
    return torch.tensor(step), torch.tensor(zero, dtype=torch.uint8)


def weight_steps(weight: Tensor, bits: int, rule: RangeRule) -> Tensor:
    """s of each output channel (C,) of a weight (C, …), symmetric. Few bits are always
    clipped where that lowers the squared error; 8 bits only by the rule mse.
    """
    largest = 2 ** (bits - 1) - 1
    flat = weight.detach().reshape(len(weight), -1)
    full = flat.abs().amax(1).clamp_min(_LEAST) / largest
    if bits == 8 and rule != "mse":
        return full
    best, least = full, torch.full_like(full, float("inf"))
    for c in _CLIPS:
        steps = full * c
        error = (
            (round_to_steps(flat, steps, bits) * steps[:, None] - flat).square().sum(1)
        )
        best = torch.where(error < least, steps, best)
        least = torch.minimum(error, least)
    return best


@torch.no_grad()
def mean_inputs(
    model: QuantisedModel, layers: Sequence[str], batches: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Layer → the mean of each channel of its input (C,), while nothing is rounded.

    Args:
        model: as for `observe`.
        layers: paths of inner Linear and Conv2d layers.
    """
    unrounded = Operators(lambda value, step, zero: value, dequantise)
    parts = (part for batch in batches for part in batch.split(_IMAGES_AT_ONCE))
    sums: dict[str, Tensor] = {}
    count = 0
    with _last_inputs(model.inner, layers) as inputs, computing_by(unrounded):
        for images in parts:
            model(images)
            count += len(images)
            for path, value in inputs.items():
                means = _means_over_places(model.inner.get_submodule(path), value)
                sums[path] = sums.get(path, torch.zeros(())) + means.sum(0)
            inputs.clear()
    return {path: total / count for path, total in sums.items()}


@contextmanager
def _last_inputs(
    model: nn.Module, layers: Sequence[str]
) -> Iterator[dict[str, Tensor]]:
    """Layer → the input of its last call, in this block."""
    inputs: dict[str, Tensor] = {}
    handles = []
    for path in layers:
        layer: Any = model.get_submodule(path)

        def note(layer: Any, args: Any, path: str = path) -> None:
            # no mean is taken here: it would count as a call of the model's own
            inputs[path] = args[0]

        handles.append(layer.register_forward_pre_hook(note))
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _means_over_places(layer: nn.Module, value: Tensor) -> Tensor:
    """Means (B, C) of a layer's input over all but images and channels."""
    channels = value if isinstance(layer, nn.Conv2d) else value.movedim(-1, 1)
    return channels.flatten(2).mean(2) if channels.ndim > 2 else channels


def moved_output(layer: nn.Module, difference: Tensor, mean: Tensor) -> Tensor:
    """By how much a change of a layer's weight moves the mean of its outputs (O,); the padding of
    convolutions is neglected (Nagel et al., Data-Free Quantization, ICCV 2019, equation 7).

    Args:
        difference: new weight minus old one.
        mean: of the input's channels (C,).
    """
    if isinstance(layer, nn.Conv2d):
        height, width = difference.shape[-2:]
        constant = mean.view(1, -1, 1, 1).expand(1, -1, height, width)
        return nn.functional.conv2d(constant, difference, groups=layer.groups).flatten()
    return difference @ mean
