"""Latency of whole models, measured as the blocks of a table were."""

from collections.abc import Sequence

import numpy as np
import torch

from compress.int8.timing import in_integers
from compress.measure.latency import times_in_turns
from compress.measure.latency_table import Fingerprint
from compress.measure.model import alternating_latency
from compress.measure.options import RuntimeOptions
from compress.runtimes.interface import INTEGERS, Session
from compress.runtimes.registry import runtime, session
from trainers.models.arch import ModelState


def options_of(mark: Fingerprint, otherwise: RuntimeOptions) -> RuntimeOptions:
    """How the blocks of a table were run, as far as it says; of integers, what stays in float."""
    return RuntimeOptions.model_validate(
        {
            "runtime": mark.runtime,
            "batch_size": mark.batch_size or otherwise.batch_size,
            "precision": "float32"
            if mark.dtype == INTEGERS
            else mark.dtype or otherwise.precision,
            "threads": mark.num_threads or None,
        }
    )


def alternating(
    states: Sequence[ModelState],
    image_size: int,
    options: RuntimeOptions,
    device: torch.device,
    *,
    integers: bool = False,
) -> list[float]:
    """Median milliseconds of a pass of each model, taken in turns.

    Args:
        integers: time float models as they would be in 8-bit integers.
    """
    channels = states[0].arch.args["in_chans"]
    shape = (options.batch_size, channels, image_size, image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if options.runtime == "torch":
        dtype = getattr(torch, options.precision)
        modules = [state.build().to(device, dtype) for state in states]
        return alternating_latency(modules, images.to(device, dtype))

    def loaded(state: ModelState) -> Session:
        if not integers:
            return session(state, image_size, options, device=device.type)
        module = in_integers(state.build(), images)
        return runtime(options.runtime).session_of(module, images, options, device.type)

    passes = [loaded(state).timed_pass(images.numpy()) for state in states]
    times = times_in_turns(passes, warmup=2, rounds=25, max_seconds=60.0)
    return [float(ms) for ms in np.median(times, axis=1)]
