"""The Optuna study of a run: opened, continued, and moved to a changed space.

The journal of a run may hold several studies. Where a dimension changed its choices, its kind or
its scale, Optuna refuses to go on, and a new study ("name~2", ...) takes over every trial that the
new space still contains.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.samplers import RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from analysis.contract import STUDY_FILE
from sweeps.search.optuna_internals import enqueued_parameters, sampler_notes
from sweeps.search.samplers import sampler_of
from sweeps.space.space import Space
from sweeps.space.sweep import Sweep
from sweeps.spec.model import Spec
from trainers.seeding import derive_seed

Draw = dict[str, Any]
"""Optuna's parameters of a configuration, or a part of them: name → label or number."""

DRAWS = 4
"""Attempts of a sampler at one configuration."""


class UndrawnError(ValueError):
    """A draw lacks a dimension."""


@dataclass(frozen=True)
class Abandoned:
    """A configuration that a driver asked the study for, and did not live to see ended.

    Attributes:
        draw: what the study holds of it; all, unless the driver died while it was drawn.
        enqueued: the part of it that was not drawn, but asked for by name.
    """

    draw: Draw
    enqueued: Draw


def canonical(value: Any) -> str:
    """The same text for equal JSON values."""
    return json.dumps(value, sort_keys=True)


def checked_draw(
    space: Space, given: Mapping[str, Any]
) -> tuple[Draw, dict[str, BaseDistribution]]:
    """A whole draw with the distributions that it comes from in this space.

    Raises:
        UndrawnError: names the first dimension that is missing.
        ValueError: names the first one that is unknown, or does not contain its value.
    """
    given = dict(given)
    trial = FixedTrial(given)
    draw: Draw = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # out of range: an error of our own follows
        for dimension in space.dimensions:
            if not dimension.active(draw):
                continue
            try:
                draw |= dimension.suggest(trial)
            except ValueError as error:
                if not dimension.is_drawn(given):
                    raise UndrawnError(f"{dimension.path} is missing") from error
                raise ValueError(
                    f"{dimension.path}={given.get(dimension.path)!r} is outside the space"
                ) from error
    extra = [name for name in given if name not in draw]
    if extra:
        raise ValueError(f"{extra[0]} is not searched here")
    for name, distribution in trial.distributions.items():
        if not contains(distribution, given[name]):
            raise ValueError(f"{name}={given[name]!r} is outside the space")
    return draw, trial.distributions


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a distribution can give this label or number."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution), distribution
    if not distribution.low <= value <= distribution.high:
        return False
    if distribution.step is None:
        return True
    steps = (value - distribution.low) / distribution.step
    return abs(steps - round(steps)) < 1e-8


def open_study(
    sweep: Sweep, run: Path, unended: Collection[int] = ()
) -> tuple[optuna.Study, dict[int, Abandoned]]:
    """The run's study, made or continued.

    `optuna-dashboard RUN/study.journal` opens the same file.

    Args:
        unended: numbers of configurations that will be told, again where a failed replicate runs
            once more: Optuna takes nothing back, so the study moves on without what it heard.

    Returns:
        The study, and by number what a driver that died had asked for: without these a grid
            would lose configurations. Nothing in the study is unended. A trial that died before it
            had a number was drawn in vain.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _drop_half_line(run / STUDY_FILE)
    storage = JournalStorage(JournalFileBackend(str(run / STUDY_FILE)))
    name = sweep.spec.name
    names = [
        s.study_name
        for s in storage.get_all_studies()
        if s.study_name.rpartition("~")[0] in ("", name)
    ]
    study = _create(sweep, storage, names[-1] if names else name)
    abandoned = _end_abandoned(study)
    trials = study.get_trials(deepcopy=False)
    is_outdated = any(_is_outdated(trial, unended) for trial in trials)
    if is_outdated or not _is_compatible(study, sweep.space):
        new_name = f"{name}~{len(names) + 1}"
        study = _moved(sweep, storage, study, new_name, unended)
    return study, abandoned


def seed_sampler(
    study: optuna.Study, spec: Spec, number: int, attempt: int = 0
) -> None:
    """Let what is drawn for a configuration follow from its number and from what the study knows.

    So a sweep that was interrupted draws what it would have drawn, and never its first
    configurations a second time. After `DRAWS` attempts that were all repeats, it is drawn at
    random.
    """
    if attempt < DRAWS:
        study.sampler = sampler_of(spec.search, spec.seed, number, attempt)
    else:
        seed = derive_seed(spec.seed, "sampler", number, attempt) % 2**32
        study.sampler = RandomSampler(seed=seed)


def draw(
    study: optuna.Study,
    suggest: Callable[[optuna.Trial], Draw],
    key_of: Callable[[Draw], str],
    tried: Container[str],
    reseed: Callable[[int], None],
    attempts: int = DRAWS,
) -> tuple[optuna.Trial | None, Draw]:
    """Ask for a configuration that was not tried.

    A sampler that repeats itself hears again what the study knows of the repeat.

    Args:
        key_of: the same text for draws that mean the same configuration.
        tried: such texts.
        reseed: called with 0, 1, ... before each attempt.

    Returns:
        The trial, None where all attempts were repeats; what was drawn last.
    """
    found: Draw = {}
    for attempt in range(attempts):
        reseed(attempt)
        trial = study.ask()
        found = suggest(trial)
        if key_of(found) not in tried:
            return trial, found
        _end_repeat(study, trial, key_of)
    return None, found


def _end_repeat(
    study: optuna.Study, trial: optuna.Trial, key_of: Callable[[Draw], str]
) -> None:
    """End a trial that repeats another: with that one's values if it has them, else as FAIL."""
    mine = key_of(trial.params)
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    same = next((t for t in complete if key_of(t.params) == mine), None)
    if same is None:
        study.tell(trial, state=TrialState.FAIL)
        return
    for name, excess in same.constraints.items():
        trial.set_constraint(name, excess)
    study.tell(trial, same.values)


def _drop_half_line(journal: Path) -> None:
    """Cut what a killed driver or a full disk left of a last line.

    With more lines after it none of them could be read.
    """
    if not journal.exists():
        return
    with open(journal, "r+b") as file:
        text = file.read()
        file.truncate(text.rfind(b"\n") + 1)


def _create(sweep: Sweep, storage: JournalStorage, name: str) -> optuna.Study:
    objectives = sweep.spec.objectives
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


def distributions_of(space: Space) -> dict[str, BaseDistribution]:
    """Those of all dimensions, whatever is chosen in the slots."""
    found: dict[str, BaseDistribution] = {}
    for probe in space.probes():
        found |= checked_draw(space, probe)[1]
    return found


def _is_compatible(study: optuna.Study, space: Space) -> bool:
    now = distributions_of(space)
    seen: dict[str, BaseDistribution] = {}
    for trial in study.get_trials(deepcopy=False):
        seen |= trial.distributions
    for name in seen.keys() & now.keys():
        try:
            check_distribution_compatibility(seen[name], now[name])
        except ValueError:
            return False
    return True


def _is_outdated(trial: FrozenTrial, unended: Collection[int]) -> bool:
    """Whether a trial of the study says what a configuration gave that will be told again."""
    is_told = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    return is_told and trial.user_attrs.get("number") in unended


def _moved(
    sweep: Sweep,
    storage: JournalStorage,
    old: optuna.Study,
    name: str,
    unended: Collection[int],
) -> optuna.Study:
    """A new study with the trials of `old` that the space contains; of those that are told again
    nothing but what the sampler noted.
    """
    kept = []
    for trial in old.get_trials(deepcopy=False):
        state = TrialState.FAIL if _is_outdated(trial, unended) else trial.state
        try:
            params, distributions = checked_draw(sweep.space, trial.params)
        except ValueError:
            continue
        kept.append(
            create_trial(
                state=state,
                values=trial.values if state == TrialState.COMPLETE else None,
                params=params,
                distributions=distributions,
                user_attrs=trial.user_attrs,
                system_attrs=trial.system_attrs,
                intermediate_values=trial.intermediate_values,
            )
        )
    new = _create(sweep, storage, name)
    new.add_trials(kept)
    return new


def _end_abandoned(study: optuna.Study) -> dict[int, Abandoned]:
    """Make FAIL what nobody runs; by number what had one."""
    abandoned: dict[int, Abandoned] = {}
    unended = (TrialState.RUNNING, TrialState.WAITING)
    for trial in study.get_trials(deepcopy=False, states=unended):
        if "number" in trial.user_attrs:
            enqueued = enqueued_parameters(trial) or {}
            number = trial.user_attrs["number"]
            abandoned[number] = Abandoned(enqueued | trial.params, enqueued)
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
    # the driver died between enqueueing and asking
    for _ in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.tell(study.ask(), state=TrialState.FAIL)
    return abandoned


def notes_by_number(study: optuna.Study) -> dict[int, dict[str, Any]]:
    """What the sampler noted about the last trial of each configuration's number."""
    return {
        trial.user_attrs["number"]: sampler_notes(trial)
        for trial in study.get_trials(deepcopy=False)
        if "number" in trial.user_attrs
    }


def asked_for(study: optuna.Study) -> Iterator[str]:
    """Canonical texts of the draws that were asked for by name and got a number."""
    for trial in study.get_trials(deepcopy=False):
        enqueued = enqueued_parameters(trial)
        if "number" in trial.user_attrs and enqueued is not None:
            yield canonical(enqueued)
