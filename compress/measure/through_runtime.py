"""What is measured of the file that is deployed, in the runtime that executes it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from compress.measure.metric import TEXT, Metric, Value
from compress.measure.options import MeasureConfig, RuntimeOptions
from compress.runtimes.interface import Floats, Session
from compress.runtimes.registry import runtime

if TYPE_CHECKING:
    from trainers.data.splits import Data
    from trainers.models.arch import ModelState

_LEAST_PASSES = 3
MEGABYTE = 1e6


@dataclass(frozen=True)
class Deployed:
    """A model as a runtime has it.

    Attributes:
        state: the model.
        options: of the runtime.
        device: kind of device that executes it.
        folder: holds the file while the model is measured.
        file: what was loaded.
        session: ready to run.
    """

    state: ModelState
    options: RuntimeOptions
    device: str
    folder: tempfile.TemporaryDirectory[str]
    file: Path
    session: Session


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
    state: ModelState, image_size: int, options: RuntimeOptions, device: str
) -> Deployed:
    """Write a model's file and load it.

    Args:
        image_size: side of the square images, pixels.
        device: kind of the trial's; a runtime that does not run there takes the CPU.

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
    return Deployed(state, options, device, folder, file, session)


def latency(
    model: Deployed,
    data: Data,
    config: MeasureConfig,
    known: Mapping[str, Value],
) -> dict[str, Value]:
    """Times of passes of one batch."""
    import numpy as np

    size, channels = data.info.image_size, model.state.arch.args.get("in_chans", 3)
    shape = (model.options.batch_size, channels, size, size)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    timed = model.session.timed_pass(images)
    _repeat(timed, config.warmup, 1, config.max_seconds / 2)
    times = _repeat(timed, config.repeats, _LEAST_PASSES, config.max_seconds)
    p25, median, p75, p95 = map(float, np.percentile(times, (25, 50, 75, 95)))
    return {
        "latency_ms": median,
        "latency_p25_ms": p25,
        "latency_p75_ms": p75,
        "p95_latency_ms": p95,
        "throughput": 1000 * model.options.batch_size / median,
        "latency_batch_size": model.options.batch_size,
        "latency_repeats": len(times),
        "latency_dtype": model.session.precision,
    }


def _repeat(
    timed: Callable[[], float], most: int, least: int, max_seconds: float
) -> list[float]:
    begin = time.perf_counter()
    times: list[float] = []
    while len(times) < least or (
        len(times) < most and time.perf_counter() - begin < max_seconds
    ):
        times.append(timed())
    return times


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
    been evaluated already.
    """
    options = model.options
    if (options.runtime, options.precision) == ("torch", "float32"):
        return {"runtime_accuracy": known["accuracy"]}
    return {"runtime_accuracy": accuracy_of(model.session, data)}


def accuracy_of(session: Session, data: Data) -> float:
    """The share of the validation images that a session recognises."""
    import torch

    from trainers.data.splits import eval_batches

    right = images = 0
    for batch, labels in eval_batches(data, "val", 256, torch.device("cpu")):
        pixels: Floats = batch.numpy()
        right += int((session.run(pixels).argmax(1) == labels.numpy()).sum())
        images += len(labels)
    return right / images


def peak_memory(
    model: Deployed,
    data: Data,
    config: MeasureConfig,
    known: Mapping[str, Value],
) -> dict[str, Value]:
    """Memory of one pass: of torch by its tensors, of a file in a process of its own."""
    from compress.measure.memory import peak_memory_bytes

    options = model.options
    if options.runtime == "torch":
        module = model.state.build()
        peak = peak_memory_bytes(
            module,
            data.info.image_size,
            model.device,
            batch_size=options.batch_size,
            dtype=options.precision,
        )
        return {"peak_memory_mb": peak / MEGABYTE}
    return {}


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
            Metric("throughput", "images a second at the median", "1", True),
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
