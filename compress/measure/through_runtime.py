"""What is measured of the file that is deployed, in the runtime that executes it."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from compress.measure.metric import TEXT, Metric, Value
from compress.measure.options import MeasureConfig, RuntimeOptions
from compress.runtimes.interface import Floats, Runtime, Session
from compress.runtimes.registry import runtime

if TYPE_CHECKING:
    from torch import nn

    from trainers.data.recognised import Recognised
    from trainers.data.splits import Data
    from trainers.models.arch import ModelState


@dataclass
class Deployed:
    """A model as a runtime has it.

    Attributes:
        state: the model.
        options: of the runtime.
        device: kind of device that executes it.
        folder: holds the file while the model is measured.
        file: what was loaded.
        session: ready to run.
        reference: the source model in the same runtime, beside which passes are timed.
        recognised: which validation images are, once they were evaluated; None where these are
            the eager module's.
    """

    state: ModelState
    options: RuntimeOptions
    device: str
    folder: tempfile.TemporaryDirectory[str]
    file: Path
    session: Session
    reference: Session | None = None
    recognised: Recognised | None = None


Measured = Callable[
    [Deployed, "Data", MeasureConfig, Mapping[str, Value]], dict[str, Value]
]


class Part(NamedTuple):
    """A measurement of a deployed model.

    Attributes:
        name: of the measurement.
        metrics: what it gives.
        measure: (model, data, how often to repeat, what is known so far) → name → value.
        needs: see `compress.metrics.Measurement`.
    """

    name: str
    metrics: tuple[Metric, ...]
    measure: Measured
    needs: str | None = None


def deploy(
    state: ModelState,
    image_size: int,
    options: RuntimeOptions,
    device: str,
    *,
    reference: ModelState | None = None,
    reference_files: Path | None = None,
) -> Deployed:
    """Write a model's file and load it.

    Args:
        image_size: side of the square images, pixels.
        device: kind of the trial's; a runtime that does not run there takes the CPU.
        reference: the source model, which is then loaded in the same way.
        reference_files: a folder of this source's files alone, in which trials find what an earlier
            one wrote; None: it is written anew.

    Raises:
        ValueError: the runtime is not installed, or cannot hold such a model.
    """
    import torch

    if options.threads is None:
        options = options.model_copy(update={"threads": torch.get_num_threads()})
    chosen = runtime(options.runtime)
    device = device if device in chosen.devices else "cpu"
    chosen.check(options, device)
    folder = tempfile.TemporaryDirectory()
    file = chosen.write(state, Path(folder.name), image_size, options)
    session = chosen.load(file, options, device)
    beside = None
    if reference is not None:
        beside = _reference(
            chosen, reference, image_size, options, device, reference_files
        )
    return Deployed(state, options, device, folder, file, session, beside)


def _reference(
    chosen: Runtime,
    state: ModelState,
    image_size: int,
    options: RuntimeOptions,
    device: str,
    kept: Path | None,
) -> Session:
    """The source model, of a file that is kept where there is a folder for it."""
    from trainers.files import whole_folder
    from trainers.leftovers import remove_leftovers

    with tempfile.TemporaryDirectory() as scratch:
        if kept is None:
            file = chosen.write(state, Path(scratch), image_size, options)
            return chosen.load(file, options, device)
        facts = (options.runtime, options.precision, options.batch_size, image_size)
        folder = kept / "-".join(map(str, facts))
        if not folder.exists():
            remove_leftovers(folder.parent)
            with whole_folder(folder) as beside:
                chosen.write(state, beside, image_size, options)
        try:
            return chosen.load(folder / chosen.file, options, device)
        except ValueError:  # damaged
            shutil.rmtree(folder, ignore_errors=True)
    return _reference(chosen, state, image_size, options, device, None)


def batch_of(state: ModelState, image_size: int, images: int) -> Floats:
    """Standard normal images (B, C, S, S), always the same, for passes that are timed."""
    import numpy as np

    channels = state.arch.args.get("in_chans", 3)
    shape = (images, channels, image_size, image_size)
    batch: Floats = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return batch


def latency(
    model: Deployed,
    data: Data,
    config: MeasureConfig,
    known: Mapping[str, Value],
) -> dict[str, Value]:
    """Times of passes of one batch, in turns with those of the source model."""
    import torch

    from compress.measure.latency import latency_metrics, measuring_turn, timing_of

    options = model.options
    images = batch_of(model.state, data.info.image_size, options.batch_size)
    timed = model.session.timed_pass(images)
    reference = None if model.reference is None else model.reference.timed_pass(images)
    with measuring_turn(torch.device(model.device), config) as is_alone:
        timing = timing_of(
            timed,
            reference,
            warmup=config.warmup,
            repeats=config.repeats,
            max_seconds=config.max_seconds,
        )
    found: dict[str, Value] = dict(latency_metrics(timing))
    return found | {
        "throughput": 1000 * options.batch_size / timing.median_ms,
        "latency_alone": int(is_alone),
        "latency_batch_size": options.batch_size,
        "latency_dtype": model.session.precision,
    }


def file_size(
    model: Deployed,
    data: Data,
    config: MeasureConfig,
    known: Mapping[str, Value],
) -> dict[str, Value]:
    """Bytes of the file that the runtime executes, with what lies beside it."""
    folder = Path(model.folder.name)
    total = sum(path.stat().st_size for path in folder.iterdir())
    return {"file_bytes": total}


def accuracy(
    model: Deployed,
    data: Data,
    config: MeasureConfig,
    known: Mapping[str, Value],
) -> dict[str, Value]:
    """Every image of the validation part through the runtime. The eager float32 module has
    been evaluated already, and so has the file with `evaluate_in: runtime`.
    """
    options = model.options
    if _is_eager(options):
        return {"runtime_accuracy": known["accuracy"]}
    if model.recognised is None:
        model.recognised = recognised_by(model.session, data)
    return {"runtime_accuracy": model.recognised.share}


def _is_eager(options: RuntimeOptions) -> bool:
    """Whether the runtime executes the module as it is evaluated."""
    return (options.runtime, options.precision) == ("torch", "float32")


def in_place_of(module: nn.Module, model: Deployed) -> nn.Module:
    """What gives the logits that the runtime computes, for images as `module` takes them."""
    if _is_eager(model.options):
        return module
    from compress.runtimes.torch import SessionModule

    return SessionModule(model.session)


def recognised_by(session: Session, data: Data) -> Recognised:
    """Which validation images a session recognises."""
    import numpy as np
    import torch

    from trainers.data.recognised import recognised
    from trainers.data.splits import eval_batches

    predicted, true = [], []
    for batch, labels in eval_batches(data, "val", 256, torch.device("cpu")):
        pixels: Floats = batch.numpy()
        predicted.append(session.run(pixels).argmax(1))
        true.append(labels.numpy())
    return recognised(np.concatenate(predicted), np.concatenate(true))


def peak_memory(
    model: Deployed,
    data: Data,
    config: MeasureConfig,
    known: Mapping[str, Value],
) -> dict[str, Value]:
    """Memory of one pass of the eager module, whatever the runtime."""
    from compress.measure.memory import MEGABYTE, peak_memory_bytes
    from compress.runtimes.torch import TorchSession

    session = model.session
    if isinstance(session, TorchSession) and not session.compiled:
        module = session.module
    else:
        module = model.state.build()
    peak = peak_memory_bytes(
        module,
        data.info.image_size,
        model.device,
        batch_size=model.options.batch_size,
        dtype=model.options.precision,
    )
    return {"peak_memory_mb": peak / MEGABYTE}


PARTS = (
    Part(
        "latency",
        (
            Metric("latency_ms", "median time of a pass of one batch", "ms", True),
            Metric("latency_p25_ms", "first quartile of that time", "ms", True),
            Metric("latency_p75_ms", "third quartile of that time", "ms", True),
            Metric(
                "p95_latency_ms", "95 % of the passes took at most this", "ms", True
            ),
            Metric(
                "latency_ratio",
                "that time over the source model's, of passes taken in turns",
                "1",
                True,
                (0, math.inf),
                has_ratio_scale=True,
            ),
            Metric(
                "latency_ratio_low",
                "lower end of the ratio's interval of 95 %",
                "1",
                True,
                (0, math.inf),
            ),
            Metric(
                "latency_ratio_high",
                "upper end of the ratio's interval of 95 %",
                "1",
                True,
                (0, math.inf),
            ),
            Metric(
                "reference_latency_ms",
                "the source model's median time, measured in turns with the model's",
                "ms",
                True,
            ),
            Metric(
                "latency_alone",
                "1 where nothing else of ours used the node's cores or the GPU meanwhile",
                "1",
                True,
                (0, 1),
            ),
            Metric(
                "throughput",
                "images a second at the median",
                "1",
                True,
                has_ratio_scale=True,
            ),
            Metric("latency_batch_size", "images in that batch", "1", True),
            Metric("latency_repeats", "timed passes", "1", True),
            Metric(
                "latency_dtype",
                "type in which the runtime says that it computes",
                TEXT,
                True,
            ),
        ),
        latency,
        "latency",
    ),
    Part(
        "file",
        (Metric("file_bytes", "size of the files that the runtime executes", "bytes"),),
        file_size,
    ),
    Part(
        "runtime_accuracy",
        (
            Metric(
                "runtime_accuracy",
                "share of the validation images that the deployed file recognises",
                "fraction",
            ),
        ),
        accuracy,
        "validation",
    ),
    Part(
        "peak_memory",
        (
            Metric(
                "peak_memory_mb",
                "memory at the peak of a pass of one batch in torch, weights included",
                "MB",
            ),
        ),
        peak_memory,
    ),
)
"""What is measured of a model in a runtime, in this order."""
