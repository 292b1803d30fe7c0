"""Latency of whole models, measured as the blocks of a table were."""

from collections.abc import Sequence

import torch

from compress.measure.latency_table import Fingerprint
from compress.measure.model import alternating_latency, alternating_passes
from compress.measure.options import RuntimeOptions
from compress.runtimes.registry import session
from trainers.models.arch import ModelState


def options_of(mark: Fingerprint, otherwise: RuntimeOptions) -> RuntimeOptions:
    """How the blocks of a table were run, as far as it says."""
    return RuntimeOptions.model_validate(
        {
            "runtime": mark.runtime,
            "batch_size": mark.batch_size or otherwise.batch_size,
            "precision": mark.dtype or otherwise.precision,
            "threads": mark.num_threads or None,
        }
    )


def alternating(
    states: Sequence[ModelState],
    image_size: int,
    options: RuntimeOptions,
    device: torch.device,
) -> list[float]:
    """Median milliseconds of a pass of each model, taken in turns."""
    channels = states[0].arch.args["in_chans"]
    shape = (options.batch_size, channels, image_size, image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if options.runtime == "torch":
        dtype = getattr(torch, options.precision)
        modules = [state.build().to(device, dtype) for state in states]
        return alternating_latency(modules, images.to(device, dtype))
    sessions = [
        session(state, image_size, options, device=device.type) for state in states
    ]
    return alternating_passes([each.timed_pass(images.numpy()) for each in sessions])
