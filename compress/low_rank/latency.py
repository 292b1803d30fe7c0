"""Measured latency of layers as they are and as products, in the runtime of the deployed file.

A layer is timed at a few ranks, in turns, and linearly interpolated between them; more ranks cost
no less: what is measured otherwise is noise. Runtimes fuse layers, so that the sum over layers is
not the model's latency; the stage measures whole models to meet its target.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import torch

from compress.low_rank.layers import LayerSize
from compress.measure.in_turns import layer_times, model_times
from compress.measure.options import RuntimeOptions
from trainers.models.arch import ModelState
from trainers.models.factored import factored_layer

_SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Of the largest rank: where a layer is measured."""
_ROUNDS = 15
"""In which whole models take turns."""


def layer_latencies(
    sizes: Mapping[str, LayerSize], options: RuntimeOptions, device: torch.device
) -> dict[str, tuple[float, Callable[[int], float]]]:
    """Path → milliseconds of a batch as it is, and rank → those of the product."""
    return {
        path: _layer(size, options.model_dump_json(), device.type)
        for path, size in sizes.items()
    }


@lru_cache(
    maxsize=256
)  # a ViT has few different layers, and trials of a process share them
def _layer(
    size: LayerSize, options_json: str, device: str
) -> tuple[float, Callable[[int], float]]:
    options = RuntimeOptions.model_validate_json(options_json)
    most = min(size.inputs, size.outputs)
    ranks = sorted({max(1, round(share * most)) for share in _SHARES})
    shape = size.shape()
    whole = shape.module(size.outputs, size.inputs)
    inputs = torch.zeros(shape.input_shape(options.batch_size, size.inputs))
    layers = [whole, *(factored_layer(whole, rank) for rank in ranks)]
    whole_ms, *rank_ms = layer_times(
        [(layer.eval(), inputs) for layer in layers], options, torch.device(device)
    ).tolist()
    rising = np.maximum.accumulate(rank_ms)
    return whole_ms, lambda rank: float(np.interp(rank, ranks, rising))


def model_latencies(
    states: list[ModelState],
    image_size: int,
    options: RuntimeOptions,
    device: torch.device,
) -> list[float]:
    """Median milliseconds of a batch of each model, taken in turns."""
    times = model_times(states, image_size, options, device, _ROUNDS)
    found: list[float] = np.median(times, axis=1).tolist()
    return found
