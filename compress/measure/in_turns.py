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
    """Median milliseconds (n,) of modules in eval mode on the inputs beside each."""
    passes = [
        runtime(options.runtime)
        .session_of(module, inputs, options, device.type)
        .timed_pass(inputs.numpy())
        for module, inputs in layers
    ]
    times = _in_turns(passes, device, _LAYER_ROUNDS, _LAYER_SECONDS)
    found: Times = np.median(times, axis=1)
    return found


def _in_turns(
    passes: Sequence[Pass], device: torch.device, rounds: int, max_seconds: float
) -> Times:
    with measuring.alone(device, 2 * max_seconds + SLOW_PASSES_SECONDS):
        times = times_in_turns(passes, warmup=2, rounds=rounds, max_seconds=max_seconds)
    return np.array(times)
