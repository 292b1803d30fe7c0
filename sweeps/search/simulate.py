"""A recorded table as a simulator: searches are replayed on it, in seconds that nobody waits for.

A configuration gets what the table holds of the nearest one: that with the same labels, and
numbers at the least distance, each on its own (logarithmic) scale from 0 to 1; where labels
differ everywhere, each counts as a distance of 1. Its stages take the recorded seconds, none where
the same parameters up to and with the stage were computed before; the parameters themselves count
there, not the nearest recorded ones, so that a continuous prefix is as hard to hit as in truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
import pandas as pd

from analysis import pareto
from sweeps.search.costs import Known, known_configuration
from sweeps.search.named import named_draws
from sweeps.search.optuna_internals import enqueue_again
from sweeps.search.prefixes import REST, Key
from sweeps.search.proposals import Proposals
from sweeps.search.study import (
    DRAWS,
    Draw,
    checked_draw,
    distributions_of,
    draw,
    seed_sampler,
)
from sweeps.search.surrogate import Encoder
from sweeps.search.warm_start import configurations_of, constraints_of
from sweeps.space.space import Space
from sweeps.space.sweep import Sweep
from sweeps.spec.model import Spec
from sweeps.spec.yaml_text import SpecError
from trainers.words import listed

MEASURE = "measure"
"""`seconds/measure` is what a table says of measuring the final model."""


class _Rows(NamedTuple):
    """What was recorded, a row a configuration.

    Attributes:
        draws: (n,) what was tried.
        values: (n, k) its objectives.
        stages: (m,) names of the stages, `REST` for what is never cached.
        seconds: (n, m) what each took where nothing was cached.
    """

    draws: list[Draw]
    values: np.ndarray
    stages: list[str]
    seconds: np.ndarray


class RecordedTable:
    """Trials that were recorded, as a function of a configuration.

    Args:
        table: columns `config/PARAMETER` for each dimension of the space, without `stages.`
            before it; `metric/NAME` for each objective; `seconds/STAGE` for each stage that took
            any, and `seconds/measure`. Rows of one configuration count as replicates, and rows
            without an objective for none. Or a run folder, whose complete trials count, as far as
            the space contains them.

    Attributes:
        encoder: from draws to numbers.
        draws: (n,) the recorded configurations.
        values: (n, k) their objectives.

    Raises:
        SpecError: a column that is lacking, a row of a table that the space does not contain, or
            no row at all.
    """

    def __init__(self, table: pd.DataFrame | Path, space: Space, spec: Spec) -> None:
        rows = (
            _of_run(table, space, spec)
            if isinstance(table, Path)
            else _of_table(table, space, spec)
        )
        self.draws, self.values, self._stages, self._seconds = rows
        self.encoder = Encoder(distributions_of(space))
        self._encoded = self.encoder.encoded(self.draws)

    def row_of(self, draw: Mapping[str, Any]) -> int:
        """Index of the nearest recorded configuration."""
        mine = self.encoder.encoded([draw])
        apart = np.abs(self._encoded - mine)
        lacking = np.isnan(apart)
        differ = np.isnan(self._encoded) != np.isnan(mine)
        apart = np.where(lacking, differ, apart)
        labels = self.encoder.is_label
        apart[:, labels] = apart[:, labels] > 0
        return int(apart.sum(axis=1).argmin())

    def values_of(self, row: int) -> tuple[float, ...]:
        """The objectives of a row."""
        return tuple(float(v) for v in self.values[row])

    def seconds_of(self, row: int) -> dict[str, float]:
        """Stage → seconds where nothing is cached."""
        return dict(zip(self._stages, map(float, self._seconds[row]), strict=True))


def config_column(path: str) -> str:
    """The column of a dimension: `config/train.lr` of `stages.train.lr`."""
    return f"config/{path.removeprefix('stages.')}"


def _of_run(run: Path, space: Space, spec: Spec) -> _Rows:
    """The complete trials of a run, by their own draws: its tables spell them otherwise.

    Raises:
        SpecError: the space contains none of them.
    """
    found: list[tuple[Known, tuple[float, ...]]] = []
    refused = ""
    for number, records in configurations_of(run).items():
        known = known_configuration(number, records, spec.objectives, 1)
        if known is None or known.values is None:
            continue
        try:
            checked_draw(space, known.draw)
        except ValueError as error:
            refused = refused or f": {records[0].trial_id}: {error}"
            continue
        found.append((known, known.values))
    if not found:
        raise SpecError(
            f"{run}: no trial of this space is complete, with all objectives{refused}"
        )
    stages = list(dict.fromkeys(name for known, _ in found for name in known.seconds))
    return _Rows(
        [known.draw for known, _ in found],
        np.array([values for _, values in found]),
        stages,
        np.array([[k.seconds.get(name, 0.0) for name in stages] for k, _ in found]),
    )


def _of_table(table: pd.DataFrame, space: Space, spec: Spec) -> _Rows:
    """Raises SpecError: what is lacking, or the first row that the space does not contain."""
    metrics = [f"metric/{o.metric}" for o in spec.objectives]
    configs = [config_column(d.path) for d in space.dimensions]
    seconds = [c for c in map(str, table) if c.startswith("seconds/")]
    missing = [column for column in [*configs, *metrics] if column not in table]
    if not seconds:
        missing.append("seconds/STAGE")
    if missing:
        raise SpecError(
            f"the table has no column {listed(map(repr, missing))}; give the folder of a run,"
            " or a table that `python benchmarks/search_table.py` has recorded"
        )
    table = table.loc[
        np.isfinite(table[metrics].to_numpy(dtype=np.float64)).all(axis=1)
    ]
    if table.empty:
        raise SpecError("the table has no row with all objectives")
    grouped = table.groupby(configs, dropna=False, sort=False)
    rows = grouped[[*metrics, *seconds]].mean().reset_index()
    records = rows[configs].to_dict("records")
    return _Rows(
        [
            _draw_of(space, {str(name): value for name, value in row.items()})
            for row in records
        ],
        rows[metrics].to_numpy(dtype=np.float64),
        [
            REST if c == f"seconds/{MEASURE}" else c.removeprefix("seconds/")
            for c in seconds
        ],
        rows[seconds].fillna(0.0).to_numpy(dtype=np.float64),
    )


def _draw_of(space: Space, row: Mapping[str, Any]) -> Draw:
    """Raises SpecError for values outside the space."""
    found: dict[str, Any] = {}
    for dimension in space.dimensions:
        value = row[config_column(dimension.path)]
        if dimension.active(found) and not pd.isna(value):
            is_whole = dimension.kind == "int" or isinstance(value, np.integer)
            plain = value.item() if isinstance(value, np.generic) else value
            found |= space.encode({dimension.path: int(plain) if is_whole else plain})
    return checked_draw(space, found)[0]


@dataclass(frozen=True)
class Replay:
    """What a simulated search had found when.

    Attributes:
        seconds: (n,) clock at the end of each trial, in their order.
        alone: (n,) the same as if nothing were cached.
        shares: (n,) hypervolume so far as a share of the whole table's.
        predicted: (n,) seconds that were expected of the trial; NaN where nothing was.
        spent: (n,) seconds that it took.
    """

    seconds: np.ndarray
    alone: np.ndarray
    shares: np.ndarray
    predicted: np.ndarray
    spent: np.ndarray

    def until(self, share: float, *, cached: bool = True) -> float:
        """Seconds until this share of the hypervolume was reached; inf where it never was."""
        reached = np.flatnonzero(self.shares >= share)
        clock = self.seconds if cached else self.alone
        return float(clock[reached[0]]) if len(reached) else float("inf")


def replay(
    sweep: Sweep,
    table: RecordedTable,
    enough: float = 1.0,
    reference: np.ndarray | None = None,
) -> Replay:
    """Search the space of a sweep on a recorded table, with its sampler, budget and seed.

    What the spec names is tried first, as in truth: `search.points`, and of `search.from` what is
    a table or a run whose values mean something else.

    Args:
        enough: share of the table's hypervolume at which the search ends.
        reference: (k,) point of the hypervolume; default: 10 % beyond the worst row.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    spec, space, objectives = sweep.spec, sweep.space, sweep.spec.objectives
    study = optuna.create_study(
        directions=["minimize" if o.mode == "min" else "maximize" for o in objectives]
    )
    proposals = Proposals(spec, space, study)
    named, _ = named_draws(sweep, {}, study, is_exhaustive=False)
    if reference is None:
        reference = pareto.reference_point(table.values, objectives)
    whole = pareto.hypervolume(table.values, objectives, reference)
    tried: set[str] = set()
    finished: set[Key] = set()
    found: list[tuple[float, ...]] = []
    rows: list[tuple[float, float, float, float, float]] = []
    clock, alone = 0.0, 0.0
    for number in range(spec.search.trials):
        trial, point, expected = _next(sweep, study, proposals, named, number, tried)
        tried.add(space.identity(point))
        row = table.row_of(point)
        values, seconds = table.values_of(row), table.seconds_of(row)
        each = np.array(proposals.prefixes.by_entry(seconds))
        alone += each.sum()
        keys = proposals.prefixes.keys(point)
        for place, key in enumerate(keys):
            if key in finished:
                each[place] = 0.0
        finished.update(keys)  # not before: entries without a parameter share their key
        clock += each.sum()
        for name, excess in constraints_of(values, objectives).items():
            trial.set_constraint(name, excess)
        study.tell(trial, values)
        proposals.learn(Known(number, point, values, seconds))
        found.append(values)
        share = pareto.hypervolume(np.array(found), objectives, reference) / whole
        rows.append((clock, alone, share, expected, each.sum()))
        if share >= enough:
            break
    return Replay(*np.array(rows).T)


def _next(
    sweep: Sweep,
    study: optuna.Study,
    proposals: Proposals,
    named: list[Draw],
    number: int,
    tried: set[str],
) -> tuple[optuna.Trial, Draw, float]:
    """The trial of a study for a number, its draw, and the seconds expected of it.

    Args:
        named: what the spec names and is left; the first of it is taken away.
    """
    spec, space = sweep.spec, sweep.space
    if named:
        study.enqueue_trial(named.pop(0))
        seed_sampler(study, spec, number)
        trial = study.ask()
        return trial, space.suggest(trial), float("nan")
    left = 1 - number / spec.search.trials
    proposal = proposals.choose(number, left, tried)
    if proposal is not None:
        enqueue_again(study, proposal.draw, proposal.notes, {})
        trial = study.ask()
        return trial, space.suggest(trial), proposal.seconds

    def reseed(attempt: int) -> None:
        seed_sampler(study, spec, number, attempt)

    asked, point = draw(study, space.suggest, space.identity, tried, reseed, 2 * DRAWS)
    if asked is None:  # only repeats are left
        study.enqueue_trial(point)
        asked = study.ask()
        space.suggest(asked)
    return asked, point, float("nan")
