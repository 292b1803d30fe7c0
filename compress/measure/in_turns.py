"""Times of models and of single layers, in the runtime of the deployed file, that a stage compares
with each other: passes are taken in turns, and nothing else is measured on the machine meanwhile.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.measure.latency import SLOW_PASSES_SECONDS, Pass, times_in_turns
from compress.measure.options import RuntimeOptions
from compress.measure.through_runtime import batch_of
from compress.runtimes.registry import runtime, session
from trainers import measuring
from trainers.models.arch import ModelState

Times = NDArray[np.float64]
_MODEL_SECONDS = 20.0
_LAYER_ROUNDS = 9
_LAYER_SECONDS = 3.0


def model_times(
    states: Sequence[ModelState],
    image_size: int,
    options: RuntimeOptions,
    device: torch.device,
    rounds: int,
) -> Times:
    """Milliseconds of a batch of each model (n, rounds); fewer rounds where models are slow."""
    passes = [
        session(state, image_size, options, device=device.type).timed_pass(
            batch_of(state, image_size, options.batch_size)
        )
        for state in states
    ]
    return _in_turns(passes, device, rounds, _MODEL_SECONDS)


def layer_times(
    layers: Sequence[tuple[nn.Module, Tensor]],
    options: RuntimeOptions,
    device: torch.device,
) -> Times:
    """Median milliseconds (n,) that modules in eval mode add to a pass, for inputs of the shapes
    of those beside each.

    A layer alone is not what it is in a model: it takes a call, and its input and output are
    copied into the layout of the runtime and back, which for a narrow convolution is most of its
    time. So each stands behind a layer that makes its input of one channel, its output is
    averaged over all places, and what the same takes without it is taken off. What is left is a
    hundredth of the whole at least: less is noise.
    """
    kinds = [(_is_of_convolutions(each), tuple(x.shape)) for each, x in layers]
    places = [
        _InPlace(*kind, layer) for kind, (layer, _) in zip(kinds, layers, strict=True)
    ]
    empty = {kind: _InPlace(*kind) for kind in kinds}
    passes = [
        runtime(options.runtime)
        .session_of(each.eval(), each.one_channel, options, device.type)
        .timed_pass(each.one_channel.numpy())
        for each in (*places, *empty.values())
    ]
    times = _in_turns(passes, device, _LAYER_ROUNDS, _LAYER_SECONDS)
    medians: Times = np.median(times, axis=1)
    own, others = np.split(medians, [len(layers)])
    without_ms = dict(zip(empty, others, strict=True))
    taken_off = np.array([without_ms[kind] for kind in kinds])
    return np.maximum(own - taken_off, 0.01 * own)


def _is_of_convolutions(layer: nn.Module) -> bool:
    return any(isinstance(each, nn.Conv2d) for each in layer.modules())


class _InPlace(nn.Module):
    """A layer between two others, or only those: one channel → its inputs → it → means over
    places (B, outputs).

    Args:
        shape: of its inputs, whose channels are axis 1 for convolutions, else the last.

    Attributes:
        one_channel: the input of the whole.
    """

    def __init__(
        self,
        of_convolutions: bool,
        shape: tuple[int, ...],
        layer: nn.Module | None = None,
    ) -> None:
        super().__init__()
        axis = 1 if of_convolutions else len(shape) - 1
        channels = shape[axis]
        self.one_channel = torch.zeros(*shape[:axis], 1, *shape[axis + 1 :])
        self.before = (
            nn.Conv2d(1, channels, 1) if of_convolutions else nn.Linear(1, channels)
        )
        self.layer = layer
        self.places = [i for i in range(1, len(shape)) if i != axis]

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x).relu()
        if self.layer is not None:
            x = self.layer(x).relu()
        return x.mean(self.places) if self.places else x


def _in_turns(
    passes: Sequence[Pass], device: torch.device, rounds: int, max_seconds: float
) -> Times:
    with measuring.alone(device, 2 * max_seconds + SLOW_PASSES_SECONDS):
        times = times_in_turns(passes, warmup=2, rounds=rounds, max_seconds=max_seconds)
    return np.array(times)
