"""The Optuna study of a run: opened, continued, and moved to a changed space.

The journal of a run may hold several studies: where a dimension changed its choices, its
kind or its scale, Optuna refuses to go on, and a new study ("name~2", ...) takes over every
trial that the new space still contains.
"""

import json
import warnings
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.samplers import RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FixedTrial, TrialState, create_trial

from sweeps.search.samplers import sampler_of
from sweeps.space.space import Space
from sweeps.space.sweep import Sweep
from sweeps.spec.model import Spec
from trainers.seeding import derive_seed

Point = dict[str, Any]
"""Names of Optuna parameters → label or number; all of an assignment, or a part of it."""

DRAWS = 4
"""Attempts of a sampler at one configuration."""


class UndrawnError(ValueError):
    """A point lacks a dimension."""


@dataclass(frozen=True)
class Lost:
    """A configuration that a driver asked the study for and did not live to tell about.

    Attributes:
        point: what was drawn of it; all, unless the driver died over the drawing.
        given: the part of it that was not drawn but asked for.
    """

    point: Point
    given: Point


def canonical(value: Any) -> str:
    """The same text for equal JSON values."""
    return json.dumps(value, sort_keys=True)


def placed(
    space: Space, point: Mapping[str, Any]
) -> tuple[Point, dict[str, BaseDistribution]]:
    """A whole assignment with the distributions that it was drawn from in this space.

    Raises:
        UndrawnError: names the first dimension that is missing.
        ValueError: names the first one that is unknown, or does not contain its value.
    """
    given = dict(point)
    trial = FixedTrial(given)
    assignment: Point = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # out of range: told below
        for dimension in space.dimensions:
            if not dimension.active(assignment):
                continue
            try:
                assignment |= dimension.suggest(trial)
            except ValueError as error:
                if not dimension.is_drawn(given):
                    raise UndrawnError(f"{dimension.path} is missing") from error
                raise ValueError(
                    f"{dimension.path}={dimension.decode(given)!r} is outside the space"
                ) from error
    extra = [name for name in given if name not in assignment]
    if extra:
        raise ValueError(f"{extra[0]} is not searched here")
    for name, distribution in trial.distributions.items():
        if not distribution._contains(distribution.to_internal_repr(given[name])):
            raise ValueError(f"{name}={given[name]!r} is outside the space")
    return assignment, trial.distributions


def open_study(checked: Sweep, run: Path) -> tuple[optuna.Study, dict[int, Lost]]:
    """The run's study, made or continued; `optuna-dashboard RUN/study.journal` opens the same file.

    Returns:
        The study, and by number what a driver that died had asked for: without these a grid
            would lose points. Nothing in the study is unended; a trial that died before it
            had a number was drawn in vain.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _drop_half_line(run / "study.journal")
    storage = JournalStorage(JournalFileBackend(str(run / "study.journal")))
    name = checked.spec.name
    names = [
        s.study_name
        for s in storage.get_all_studies()
        if s.study_name.rpartition("~")[0] in ("", name)
    ]
    study = _create(checked, storage, names[-1] if names else name)
    points = _abandoned(study)
    if not _is_compatible(study, checked.space):
        study = _moved(checked, storage, study, f"{name}~{len(names) + 1}")
    return study, points


def seed_sampler(
    study: optuna.Study, spec: Spec, number: int, attempt: int = 0
) -> None:
    """Let what is drawn for configuration `number` follow from that and from what the study knows.

    So a sweep that was interrupted draws what it would have drawn, and never its first
    points a second time. After `DRAWS` attempts, that were all repeats, it is drawn at
    random.
    """
    if attempt < DRAWS:
        study.sampler = sampler_of(spec.search, spec.seed, number, attempt)
    else:
        seed = derive_seed(spec.seed, "sampler", number, attempt) % 2**32
        study.sampler = RandomSampler(seed=seed)


def draw(
    study: optuna.Study,
    suggest: Callable[[optuna.Trial], Point],
    identity: Callable[[Point], str],
    tried: Container[str],
    reseed: Callable[[int], None],
    attempts: int = DRAWS,
) -> tuple[optuna.Trial | None, Point]:
    """Ask for a point that was not tried; a sampler that repeats itself hears again what it knows.

    Args:
        identity: the same text for points that mean the same.
        tried: identities of points.
        reseed: called with 0, 1, ... before each attempt.

    Returns:
        The trial, None where all attempts were repeats; the point that was drawn last.
    """
    point: Point = {}
    for attempt in range(attempts):
        reseed(attempt)
        trial = study.ask()
        point = suggest(trial)
        if identity(point) not in tried:
            return trial, point
        _tell_again(study, trial, identity)
    return None, point


def _tell_again(
    study: optuna.Study, trial: optuna.Trial, identity: Callable[[Point], str]
) -> None:
    """End a trial that repeats another: with that one's values if it has them, else as FAIL."""
    mine = identity(trial.params)
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    same = next((t for t in complete if identity(t.params) == mine), None)
    if same is None:
        study.tell(trial, state=TrialState.FAIL)
        return
    for name, excess in same.constraints.items():
        trial.set_constraint(name, excess)
    study.tell(trial, same.values)


def _drop_half_line(journal: Path) -> None:
    """Cut what a killed driver or a full disk left of a last line; with more lines after it
    none could be read.
    """
    if not journal.exists():
        return
    with open(journal, "r+b") as file:
        text = file.read()
        file.truncate(text.rfind(b"\n") + 1)


def _create(checked: Sweep, storage: JournalStorage, name: str) -> optuna.Study:
    objectives = checked.spec.objectives
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        load_if_exists=True,
        directions=["minimize" if o.mode == "min" else "maximize" for o in objectives],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([o.metric for o in objectives])
    return study


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    """Those of all dimensions, whatever is chosen in the slots."""
    found: dict[str, BaseDistribution] = {}
    for point in space.probes():
        found |= placed(space, point)[1]
    return found


def _is_compatible(study: optuna.Study, space: Space) -> bool:
    now = _distributions(space)
    seen: dict[str, BaseDistribution] = {}
    for trial in study.get_trials(deepcopy=False):
        seen |= trial.distributions
    for path in seen.keys() & now.keys():
        try:
            check_distribution_compatibility(seen[path], now[path])
        except ValueError:
            return False
    return True


def _moved(
    checked: Sweep, storage: JournalStorage, old: optuna.Study, name: str
) -> optuna.Study:
    """A new study with the trials of `old` that the space contains."""
    kept = []
    for trial in old.get_trials(deepcopy=False):
        try:
            params, distributions = placed(checked.space, trial.params)
        except ValueError:
            continue
        kept.append(
            create_trial(
                state=trial.state,
                values=trial.values if trial.state == TrialState.COMPLETE else None,
                params=params,
                distributions=distributions,
                user_attrs=trial.user_attrs,
                system_attrs=trial.system_attrs,
                intermediate_values=trial.intermediate_values,
            )
        )
    new = _create(checked, storage, name)
    new.add_trials(kept)
    return new


def _abandoned(study: optuna.Study) -> dict[int, Lost]:
    """Make FAIL what nobody runs; by number what had one."""
    lost: dict[int, Lost] = {}
    for trial in study.get_trials(
        deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)
    ):
        if "number" in trial.user_attrs:
            given = trial.system_attrs.get("fixed_params", {})
            lost[trial.user_attrs["number"]] = Lost(given | trial.params, given)
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
    for _ in study.get_trials(
        deepcopy=False, states=(TrialState.WAITING,)
    ):  # it died between enqueueing and asking
        study.tell(study.ask(), state=TrialState.FAIL)
    return lost


def tried_points(study: optuna.Study) -> Iterator[str]:
    """Canonical texts of the points that were asked for by name and got a number."""
    for trial in study.get_trials(deepcopy=False):
        if "number" in trial.user_attrs and "fixed_params" in trial.system_attrs:
            yield canonical(trial.system_attrs["fixed_params"])
