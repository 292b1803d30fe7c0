"""From what a user typed to a checked sweep: look, time the source, choose, write the spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from analysis.numbers import duration, number, percent, plural, points_said, quantity
from compress.measure.options import RuntimeName, RuntimeOptions
from sweeps.check import check_spec
from sweeps.drive.metrics import units
from sweeps.shrink import look as looking
from sweeps.shrink.candidates import epoch_seconds, is_trained
from sweeps.shrink.deliver import SPEC
from sweeps.shrink.identity import notes, refuse_changed
from sweeps.shrink.look import Look, Speed
from sweeps.shrink.memory import Room, room
from sweeps.shrink.methods import TUNED_EPOCHS, Methods, training_config
from sweeps.shrink.reach import refuse_impossible
from sweeps.shrink.request import Request, max_loss, metric_of_loss
from sweeps.shrink.spec import spec_for, text_of
from sweeps.shrink.wish import Wish
from sweeps.space.sweep import Sweep
from sweeps.spec.load import spec_from
from sweeps.spec.yaml_text import SpecError, Tree, did_you_mean, parse_yaml, read_text
from trainers.words import listed

_CALIBRATION_IMAGES = 600
"""Images that an untrained candidate looks at besides those it is evaluated on, about."""
_EVALUATIONS = 2.0
"""Passes over validation and test part of a candidate: in torch and in the runtime."""
_OVERHEAD_SECONDS = 10.0
"""Of a candidate: to write the file, to load it, to time it."""
_OF_EVERY_CLASS = ("auroc", "balanced_accuracy", "f1_macro")
"""Metrics that are a mean over the classes: without images of one they say something else."""


@dataclass(frozen=True)
class Plan:
    """What is going to be done.

    Attributes:
        sweep: checked.
        text: of the spec's file.
        lines: for the user, before anything runs.
        runtime: of deployment.
        hours: for the search.
    """

    sweep: Sweep
    text: str
    lines: tuple[str, ...]
    runtime: RuntimeName

    @property
    def hours(self) -> float:
        return self.sweep.spec.search.hours or 0.0


def plan(request: Request) -> Plan:
    """Plan a search, or take up the one in the request's folder.

    Raises:
        SpecError: the first mistake found, in a line; nothing was written.
    """
    path = request.folder / SPEC
    if path.is_file():
        return _taken_up(request, path)
    if request.folder.exists() and (
        not request.folder.is_dir() or any(request.folder.iterdir())
    ):
        raise SpecError(
            f"-o: {request.folder} holds something else; give an empty folder, or a new name"
        )
    wished = _runtime(request.runtime)
    source = looking.source_section(request.model, request.name)
    section = looking.data_section(request.data)
    metric, mode, unit = metric_of_loss(request.metric)
    bound = max_loss(request.max_loss, unit)
    seen = looking.look(source, section, wished)
    _refuse_unvalidated(metric, seen)
    runtime = seen.runtimes[0]
    wish = Wish(
        request.goals,
        {"metric": metric, "mode": mode, "bound": bound},
        runtime,
        request.batch_size,
        request.threads,
        request.hours,
    )
    options = RuntimeOptions.model_validate(wish.measure)
    speed = _speed(seen, options)
    refuse_impossible(wish.goals, seen, speed, options)
    raw, methods = spec_for(wish, seen, speed, request.folder)
    raw = {"name": raw.pop("name"), "title": request.title, **raw, "seed": request.seed}
    batch = training_config(seen, 0)["batch_size"]
    fits = room(seen, speed, batch, local=request.local)
    if fits.memory_gb is not None:
        raw["resources"] = {"memory_gb": fits.memory_gb}
    sweep = check_spec(spec_from(raw), local=request.local)
    lines = _lines(wish, seen, speed, methods, raw, fits, units(sweep))
    return Plan(sweep, _text(raw, request, methods), tuple(lines), runtime)


def _refuse_unvalidated(metric: str, seen: Look) -> None:
    """Refuse a metric of all classes alike where the validation part lacks some.

    Raises:
        SpecError: names the classes.
    """
    lost = seen.info.unvalidated
    if metric not in _OF_EVERY_CLASS or not lost:
        return
    larger = looking.in_a_file(seen.data, "val_fraction: SHARE")
    raise SpecError(
        f"--metric: {metric} needs an image of every class in the validation part, whose"
        f" {plural(seen.info.num_val, 'image')} show none of {listed(lost)}; take a larger"
        f" part ({larger}), add images of these classes, or give --metric accuracy"
    )


def _text(raw: Tree, request: Request, methods: Methods) -> str:
    said = [f"It answers: {request.identity}", *notes(request), *methods.left_out]
    return text_of(raw, request.command, said)


def _runtime(name: str | None) -> tuple[RuntimeName, ...]:
    known: tuple[RuntimeName, ...] = get_args(RuntimeName)
    if name is None:
        return ()
    if name not in known:
        raise SpecError(
            f"--runtime: there is no runtime {name!r}; {did_you_mean(name, known)}valid:"
            f" {', '.join(known)}"
        )
    return (name,)  # type: ignore[return-value]  # it is one of these


def _speed(seen: Look, options: RuntimeOptions) -> Speed:
    try:
        return looking.speed(seen, options)
    except ValueError as error:
        raise SpecError(f"--runtime: {' '.join(str(error).split())}") from error


def _taken_up(request: Request, path: Path) -> Plan:
    """The plan of the same command before; the time may be another one."""
    text = read_text(path)
    (raw, *_) = parse_yaml(text, str(path))
    asked = " ".join(f"It answers: {request.identity}".split())
    written = " ".join(text.replace("\n#", "\n").split())
    if asked not in written or not isinstance(raw, dict):
        raise SpecError(
            f"-o: {request.folder} is the result of another command (see {path}); choose"
            f" another folder, or go on with: sweeps run {path}"
        )
    refuse_changed(request, written, path)
    raw["search"]["hours"] = request.hours
    sweep = check_spec(spec_from(raw), local=request.local)
    runtime = sweep.spec.measure.runtime
    return Plan(sweep, text, (f"going on with {path}",), runtime)


def _lines(
    wish: Wish,
    seen: Look,
    speed: Speed,
    methods: Methods,
    raw: Tree,
    fits: Room,
    unit_of: Mapping[str, str],
) -> list[str]:
    """The plan for the user."""
    goals = ", ".join(
        _said(objective, unit_of.get(objective["metric"], ""))
        for objective in wish.objectives
    )
    installed = ", ".join(seen.runtimes)
    first = raw["search"]["points"]
    trained = sum(map(is_trained, first))
    lines = [
        f"model    {seen.arch.name}: {number(speed.file_bytes)} bytes,"
        f" {number(speed.latency_ms)} ms in {wish.runtime}, batch {wish.batch_size}",
        f"data     {seen.info.describe()}",
        f"input    {looking.preprocessing(seen)}",
        f"machine  {plural(seen.cores, 'core')}; runtimes: {installed}",
        f"at once  {fits.said()}",
        f"goal     {goals}",
        f"methods  {', '.join(_alternatives(methods))}",
        *[f"         {line}" for line in methods.left_out],
        f"first    {len(first) - trained} without training, about"
        f" {duration(_untrained_seconds(seen, speed))} each; then {trained} with, about"
        f" {_tuning_said(speed, methods, first)} of training each",
        f"time     {duration(3600 * wish.hours)}"
        + ("" if wish.is_open else ", or until the goal is met with certainty"),
    ]
    short = _too_short(wish, len(first) - trained, _untrained_seconds(seen, speed))
    return lines + [f"note     {remark}" for remark in [*short, *seen.remarks()]]


def _too_short(wish: Wish, candidates: int, seconds: float) -> list[str]:
    """A remark where the time is over before all that needs no training has been tried."""
    needed = candidates * seconds
    if needed <= 3600 * wish.hours:
        return []
    return [
        "The time is too short for all candidates without training, which take about"
        f" {duration(needed)} one after the other; give more --hours."
    ]


def _said(objective: Tree, unit: str) -> str:
    bound, metric = objective.get("bound"), objective["metric"]
    if bound is None:
        return f"{metric} as small as it can be"
    word = "at most" if objective["mode"] == "min" else "at least"
    if not isinstance(bound, dict):
        return f"{metric} {word} {quantity(bound, unit)}"
    if "times" in bound:
        return f"{metric} {word} {bound['times']:g} times the source's"
    loss, side = bound["loss"], "below" if objective["mode"] == "max" else "above"
    if bound.get("relative"):
        lost = percent(loss)
    elif unit == "fraction":
        lost = points_said(loss)
    else:
        lost = quantity(loss, unit)
    return f"{metric} at most {lost} {side} the source's"


def _alternatives(methods: Methods) -> list[str]:
    return [
        name
        for slot in methods.slots.values()
        for name, config in slot.items()
        if config is not None
    ]


def _untrained_seconds(seen: Look, speed: Speed) -> float:
    images = _CALIBRATION_IMAGES + _EVALUATIONS * (
        seen.info.num_val + seen.info.num_test
    )
    return _OVERHEAD_SECONDS + images * speed.pass_seconds


def _tuning_said(speed: Speed, methods: Methods, first: list[Tree]) -> str:
    """What the shortest and the longest tuning of those that come first take."""
    found = [
        duration(seconds)
        for seconds in sorted(
            point[TUNED_EPOCHS] * epoch_seconds(point, methods, speed)
            for point in first
            if TUNED_EPOCHS in point
        )
    ]
    return " to ".join(dict.fromkeys([found[0], found[-1]])) if found else duration(0.0)
