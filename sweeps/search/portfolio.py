"""First configurations from elsewhere: the front of a run with other data or objectives, or of a
table.

What such a run measured says nothing here: an accuracy on other images is no accuracy. What was
good there, by rank, is worth being tried first. Some configurations of its front are taken, from
one end to the other; of each what this space has, and the sampler draws the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from analysis.contract import RUN_FILE, Objective
from sweeps.search.study import Draw, contains, distributions_of
from sweeps.search.warm_start import (
    complete_values,
    configurations_of,
    mean_values,
)
from sweeps.space.space import Space
from sweeps.spec.model import Spec
from sweeps.spec.yaml_text import SpecError
from trainers.config import DataConfig, SourceConfig
from trainers.files import read_json
from trainers.words import listed

MOST = 4
"""Configurations of one run or table."""

TABLE = ".parquet"
"""How the name of a recorded table ends."""


def split_earlier(spec: Spec) -> tuple[list[Path], list[Path]]:
    """The entries of `search.from`: runs whose values mean the same here, and all others."""
    alike = [path for path in spec.search.earlier_runs if _is_alike(path, spec)]
    return alike, [path for path in spec.search.earlier_runs if path not in alike]


def _is_alike(path: Path, spec: Spec) -> bool:
    """Whether a run has this sweep's objectives, data and source."""
    if path.suffix == TABLE:
        return False
    header = read_json(path / RUN_FILE) or {}
    goals = [(o.metric, o.mode) for o in _objectives(header)]
    if goals != [(o.metric, o.mode) for o in spec.objectives]:
        return False
    said = header.get("spec")
    if not isinstance(said, Mapping):
        return True  # nothing is known of its data
    try:
        data = DataConfig.model_validate(said.get("data", {}))
        source = SourceConfig.model_validate(said.get("source", {}))
    except ValidationError:
        return False
    return data == spec.data and source == spec.source


def _objectives(header: Mapping[str, Any]) -> list[Objective]:
    return [
        Objective(str(each["metric"]), each["mode"])
        for each in header.get("objectives", [])
    ]


def check_portfolio(path: Path, objectives: Sequence[Objective]) -> None:
    """Refuse what can offer no configurations.

    Raises:
        SpecError: neither a run folder nor a table with an objective of this sweep.
    """
    if path.suffix != TABLE:
        if read_json(path / RUN_FILE) is None:
            raise SpecError(
                f"search.from: {path} is not a run folder (no {RUN_FILE} in it), nor a table"
                f" (*{TABLE})"
            )
        return
    if not path.is_file():
        raise SpecError(f"search.from: there is no file {path}")
    columns = [f"metric/{o.metric}" for o in objectives]
    import pyarrow.parquet  # only where there is a table

    have = pyarrow.parquet.read_schema(path).names
    if not set(columns) & set(have):
        raise SpecError(
            f"search.from: {path} has none of the columns {', '.join(columns)}, by which its"
            f" configurations would be ranked; it has {listed(have)}"
        )


def first_draws(
    path: Path, space: Space, objectives: Sequence[Objective]
) -> tuple[list[Draw], str]:
    """What to try first, parts of draws of this space; and a line about it.

    Args:
        objectives: of this sweep. A run is ranked by its own.
    """
    if path.suffix == TABLE:
        draws, values, goals = _of_table(path, space, objectives)
    else:
        draws, values, goals = _of_run(path)
    found: dict[str, Draw] = {}
    for index in _along_front(values, goals):
        fitting = _fitting(space, draws[index])
        if fitting:
            found.setdefault(json.dumps(fitting, sort_keys=True), fitting)
    taken = list(found.values())
    return taken, f"{path}: {len(taken)} of its front's configurations are tried first"


def _of_run(path: Path) -> tuple[list[Draw], np.ndarray, list[Objective]]:
    goals = _objectives(read_json(path / RUN_FILE) or {})
    draws, values = [], []
    for records in configurations_of(path).values():
        seeds = complete_values(records, goals)
        if seeds:
            draws.append(dict(records[0].plan.draw))
            values.append(mean_values(seeds))
    return draws, np.array(values).reshape(len(values), len(goals)), goals


def _of_table(
    path: Path, space: Space, objectives: Sequence[Objective]
) -> tuple[list[Draw], np.ndarray, list[Objective]]:
    import pandas as pd  # a spec is checked without it

    table = pd.read_parquet(path)
    goals = [Objective(o.metric, o.mode) for o in objectives]
    goals = [o for o in goals if f"metric/{o.metric}" in table]
    metrics = [f"metric/{o.metric}" for o in goals]
    table = table.loc[
        np.isfinite(table[metrics].to_numpy(dtype=np.float64)).all(axis=1)
    ]
    draws = []
    for row in table.to_dict("records"):
        draw: Draw = {}
        for dimension in space.dimensions:
            value = row.get(f"config/{dimension.path.removeprefix('stages.')}")
            plain = value.item() if isinstance(value, np.generic) else value
            if (
                isinstance(plain, float)
                and plain.is_integer()
                and dimension.kind == "int"
            ):
                plain = int(plain)
            if plain is not None and not pd.isna(plain):
                draw |= _encoded(space, dimension.path, plain)
        draws.append(draw)
    return draws, table[metrics].to_numpy(dtype=np.float64), goals


def _encoded(space: Space, path: str, value: Any) -> Draw:
    """One parameter as a draw has it; nothing where the space does not contain it."""
    try:
        return space.encode({path: value})
    except SpecError:
        return {}


def _along_front(values: np.ndarray, goals: Sequence[Objective]) -> list[int]:
    """Rows of the front, evenly from one end of the first objective to the other."""
    from analysis import pareto  # pandas: a spec is checked without it

    if not len(values):
        return []
    front = np.flatnonzero(pareto.front_mask(values, goals))
    order = np.argsort(pareto.to_costs(values[front], goals)[:, 0], kind="stable")
    places = np.linspace(0, len(front) - 1, min(MOST, len(front)))
    return [int(front[order[round(place)]]) for place in places]


def _fitting(space: Space, draw: Mapping[str, Any]) -> Draw:
    """What of a draw this space contains."""
    known = distributions_of(space)
    return {
        name: value
        for name, value in draw.items()
        if name in known and contains(known[name], value)
    }
