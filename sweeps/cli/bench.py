"""`sweeps bench`: a model's latency in each runtime, at several batch sizes and threads."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeps.cli.terminal import console, say, table, warn

if TYPE_CHECKING:
    from compress.measure.options import RuntimeOptions
    from compress.runtimes.interface import Session
    from trainers.models.arch import ModelState

_SECONDS = 120.0
"""For all timed passes, but for the least number of rounds."""


def bench(
    model: Annotated[
        str,
        typer.Argument(
            metavar="FILE|RUN",
            help="a folder with model.safetensors, a coded file, or, with TRIAL, a run",
        ),
    ],
    trial: Annotated[
        str | None, typer.Argument(metavar="[TRIAL]", help="a trial of the run")
    ] = None,
    runtime: Annotated[str, typer.Option(help="names with commas, or all")] = "all",
    batch: Annotated[str, typer.Option(help="images a pass: 1,8")] = "1",
    threads: Annotated[str, typer.Option(help="of the CPU: 1,2")] = "1",
    precision: Annotated[str, typer.Option(help="float32, bfloat16, float16")] = (
        "float32"
    ),
    image_size: Annotated[
        int | None, typer.Option(min=1, help="pixels; default: the model's own")
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="timed passes of each")] = 30,
) -> None:
    """Time a model in every runtime on this machine, the passes taken in turns."""
    from compress.runtimes.registry import RUNTIMES, session
    from compress.runtimes.registry import runtime as runtime_of

    state = _state(model, trial)
    size = image_size or _size(state)
    names = RUNTIMES if runtime == "all" else tuple(runtime.split(","))
    counts = _numbers("--batch", batch), _numbers("--threads", threads)
    sessions = []
    for name, images, cores in itertools.product(names, *counts):
        options = _options(
            runtime=name, batch_size=images, threads=cores, precision=precision
        )
        try:
            runtime_of(name).check(options)
            runtime_of(name).check_model(state.arch)
        except ValueError as error:
            if runtime != "all":
                raise
            warn(f"left out: {error}")
            continue
        sessions.append(session(state, size, options))
    _show(sessions, _times(sessions, state, size, rounds))


def _options(**given: str | int) -> "RuntimeOptions":
    """Raises ValueError: an option of the command that the runtime's options do not take."""
    from pydantic import ValidationError

    from compress.measure.options import RuntimeOptions

    try:
        return RuntimeOptions.model_validate(given)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ValueError(f"--{wrong['loc'][0]}: {wrong['msg']}") from None


def _state(model: str, trial: str | None) -> "ModelState":
    from compress.codec.file import decode
    from sweeps.export.models import trial_model
    from sweeps.run.folder import full_trial_id
    from sweeps.run.storage import find_run
    from trainers.models.arch import ModelState

    if trial is not None:
        return trial_model(find_run(model, to_read=True), full_trial_id(trial))
    if Path(model).is_file():
        return decode(Path(model))
    if not (Path(model) / "model.json").exists():
        _refuse_run(model)
    return ModelState.load(Path(model))


def _refuse_run(model: str) -> None:
    """Raises ValueError: a run was given without one of its trials."""
    from sweeps.run.record import trial_records
    from sweeps.run.storage import find_run
    from sweeps.spec.yaml_text import SpecError

    try:
        folder = find_run(model, to_read=True)
    except SpecError:
        return  # it is no run either, and is refused as a model
    complete = (r.trial_id for r in trial_records(folder) if r.status == "complete")
    trial = next(complete, None)
    remedy = (
        "none of its trials is complete"
        if trial is None
        else f"give a TRIAL: sweeps bench {model} {trial}"
    )
    raise ValueError(f"{model}: a run, and a model is timed; {remedy}")


def _size(state: "ModelState") -> int:
    size = state.arch.args.get("img_size")
    if size is None:
        raise ValueError("the model takes images of any size; give --image-size")
    return int(size[0] if isinstance(size, list) else size)


def _numbers(option: str, text: str) -> list[int]:
    if not all(part.isdecimal() and int(part) > 0 for part in text.split(",")):
        raise ValueError(f"{option} is a list of numbers like 1,8; got {text!r}")
    return [int(part) for part in text.split(",")]


def _times(
    sessions: "list[Session]", state: "ModelState", size: int, rounds: int
) -> list[list[float]]:
    """Milliseconds of each session's passes, one of each in a round, while the trials of this
    machine stand still.
    """
    import torch

    from compress.measure.latency import times_in_turns
    from compress.runtimes.onnx_file import example_images
    from trainers import measuring

    passes = []
    for each in sessions:
        images = example_images(state, size, each.options.batch_size)
        passes.append(each.timed_pass(images.numpy()))
    with measuring.alone(torch.device("cpu"), _SECONDS) as alone:
        times = times_in_turns(passes, warmup=3, rounds=rounds, max_seconds=_SECONDS)
    if not alone:
        warn("other work on this machine went on meanwhile")
    return times


def _show(sessions: "list[Session]", times: list[list[float]]) -> None:
    import numpy as np

    shown = table(
        "runtime", "computes in", "batch", "threads", "ms", "quartiles", "img/s"
    )
    for each, measured in zip(sessions, times, strict=True):
        options = each.options
        p25, median, p75 = np.percentile(measured, (25, 50, 75))
        shown.add_row(
            options.runtime,
            each.precision,
            str(options.batch_size),
            str(options.threads),
            f"{median:.3g}",
            f"{p25:.3g}–{p75:.3g}",
            f"{1000 * options.batch_size / median:.4g}",
        )
    if sessions:
        console.print(shown)
    else:
        say("no runtime that was asked for is installed")
