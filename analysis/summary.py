"""A run in numbers and words, for the report and the command line."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from analysis import costs
from analysis.certainty import part_of
from analysis.configurations import is_numeric
from analysis.contract import Objective
from analysis.fronts import KNEE, best_name, interval_columns
from analysis.metrics import Metric, on_test_set
from analysis.numbers import percent, plain, plural, plus_minus, quantity, significant
from analysis.run import Run
from analysis.where import where_columns


def front_table(run: Run, front: pd.DataFrame | None = None) -> pd.DataFrame:
    """The front (or `front`) as numbers: trial_id, the objectives and the searched
    parameters, by their plain names.

    Where configurations have replicates: their number as `seeds`, and each objective's standard
    deviation as `<metric> sd`.
    """
    front = run.front() if front is None else front
    seeds = len(front) > 0 and run.has_replicates
    columns = {"trial_id": "trial_id"}
    for objective in run.objectives:
        columns[f"metric/{objective.metric}"] = objective.metric
        if seeds:
            columns[f"sd/{objective.metric}"] = f"{objective.metric} sd"
    columns |= {"replicates": "seeds"} if seeds else {}
    columns |= {f"config/{p}": p for p in run.parameters if f"config/{p}" in front}
    return front[list(columns)].rename(columns=columns).reset_index(drop=True)


def front_text(run: Run, front: pd.DataFrame | None = None) -> pd.DataFrame:
    """`front_table` as text, as the report writes it: objectives with their units and, over
    seeds, their standard deviation ('92.41 ± 0.64 %'), or the measured quartiles of a latency
    ('12.1 ms (11.8 to 12.4)'); empty where a parameter is not set.
    """
    front = run.front() if front is None else front
    columns = {"trial_id": [str(v) for v in front["trial_id"]]}
    for objective in run.objectives:
        metric = objective.metric
        unit = run.metrics.unit(metric)
        pairs = zip(front[f"metric/{metric}"], front[f"sd/{metric}"], strict=True)
        texts = [plus_minus(mean, spread, unit) for mean, spread in pairs]
        intervals = [interval_text(objective, row) for _, row in front.iterrows()]
        columns[metric] = [
            f"{text} ({interval})" if interval else text
            for text, interval in zip(texts, intervals, strict=True)
        ]
    if len(front) and run.has_replicates:
        columns["seeds"] = [str(v) for v in front["replicates"]]
    if len(front) and run.is_noisy:
        columns[CHANCE] = [chance_text(v) for v in run.chances()[front.index]]
    for name in run.parameters:
        if f"config/{name}" in front:
            values = front[f"config/{name}"]
            columns[name] = ["" if pd.isna(v) else plain(v) for v in values]
    return pd.DataFrame(columns, dtype="object")


CHANCE = "on the front"
"""Head of the column with the probability that a configuration is on the front."""


def chance_text(probability: float) -> str:
    """A probability that was counted out of some hundred draws: '93 %', '> 99 %'."""
    if probability > 0.99:
        return "> 99 %"
    return percent(probability, 0) if probability >= 0.01 else "< 1 %"


def also_possible(run: Run, front: pd.DataFrame | None = None) -> str:
    """A sentence about the configurations that are not on the front (or on `front`) and may as
    well be, the likeliest first; "" where there is none.
    """
    front = run.front() if front is None else front
    chances = run.chances().drop(front.index)
    likely = chances[chances >= WORTH_NAMING].sort_values(ascending=False)
    if likely.empty or not run.is_noisy:
        return ""
    ids = run.trials["trial_id"][likely.index]
    pairs = list(zip(ids, likely, strict=True))[:5]
    named = [f"{trial_id} ({chance_text(chance)})" for trial_id, chance in pairs]
    more = f" and {len(likely) - 5} more" if len(likely) > 5 else ""
    return f"may be on the front as well: {', '.join(named)}{more}"


WORTH_NAMING = 0.2
"""Probability from which a configuration outside the front is named beside it."""


def interval_text(objective: Objective, row: pd.Series) -> str:
    """The measured quartiles of an objective, '11.8 to 12.4'; "" where there are none."""
    names = interval_columns(objective) or ()
    ends = [row.get(f"metric/{name}") for name in names]
    shown = [
        significant(float(end), 3)
        for end in ends
        if end is not None and not pd.isna(end) and not isinstance(end, str)
    ]
    return " to ".join(shown) if len(shown) == 2 else ""


def nothing_passes(run: Run, where: str) -> str:
    """A sentence for a constraint that no configuration of the front's candidates passes: what
    there is of the metrics and parameters that it names.
    """
    rows = run.configurations()
    if rows.empty:
        return f"no configuration passes {where}: no trial is complete"
    there_is = [
        f"{column.partition('/')[2] or column} {_range(run, column, rows[column])}"
        for column in where_columns(where, rows)
    ]
    count = f"the {len(rows)} configurations have"
    if len(rows) == 1:
        count = "the one configuration has"
    return f"no configuration within the bounds passes {where}; {count} {', '.join(there_is)}"


def _range(run: Run, name: str, column: pd.Series) -> str:
    """Least and largest of numbers, or the first few of other values."""
    known = column.dropna()
    if known.empty:
        return "nowhere"
    if is_numeric(column):
        unit = run.metrics.unit(name.partition("/")[2])
        ends = [quantity(float(v), unit) for v in (known.min(), known.max())]
        return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
    values = [plain(v) for v in known.drop_duplicates()]
    more = f" and {len(values) - 8} more" if len(values) > 8 else ""
    return f"{', '.join(values[:8])}{more}"


def totals(run: Run) -> dict[str, Any]:
    """Counts of trials by status, seconds spent, and seconds that the stage cache saved.

    Keys: "trials", "front", "status" (status -> count, those that occur), "seconds",
    "seconds_saved". The saving counts the trials that state both what they took and what
    the whole pipeline would have taken, without what all of them share (see `analysis.costs`).
    """
    trials = run.trials
    saved = (trials["seconds_full"] - trials["seconds"]).dropna().clip(lower=0)
    return {
        "trials": len(trials),
        "front": len(run.front()),
        "status": run.status_counts(),
        "seconds": float(trials["seconds"].sum()),
        "seconds_saved": max(0.0, float(saved.sum()) - costs.shared_reading(run)),
    }


def stage_table(run: Run) -> pd.DataFrame:
    """For each stage: method, phase, runs, cache hits, seconds spent and seconds saved by
    the cache, 0 of a stage that all trials share.
    """
    cached = run.stages["cached"].fillna(False)
    saved = costs.stage_saving(run)
    stages = run.stages.assign(saved=saved, hit=cached.astype("int64"))
    groups = stages.groupby(["name", "stage", "phase"], dropna=False, sort=False)
    table = groups.agg(
        position=("index", "mean"),
        runs=("hit", "size"),
        hits=("hit", "sum"),
        seconds=("seconds", "sum"),
        saved=("saved", "sum"),
    ).reset_index()
    return table.sort_values("position", kind="stable").drop(columns="position")


def other_costs(run: Run) -> list[tuple[str, int, float]]:
    """What a run took beside its stages: name, how often, seconds. With the stages they add up to
    what its trials and its baseline took, and what they found computed before.
    """
    spent = run.trials[["trial_id", "seconds"]].dropna()
    of_stages = run.stages.groupby("trial_id")["seconds"].sum().to_dict()
    rest = sum(
        seconds - of_stages.get(trial, 0.0)
        for trial, seconds in zip(spent["trial_id"], spent["seconds"], strict=True)
    )
    found = []
    if rest > 0.5:
        found.append(("start, data and measuring", len(spent), float(rest)))
    if run.baseline is not None and run.baseline.seconds is not None:
        found.append(("baseline", 1, run.baseline.seconds))
    earlier = costs.earlier_stages(run)
    return found + [(costs.named_earlier(s), s.results, s.seconds) for s in earlier]


def failures(run: Run) -> pd.DataFrame:
    """Errors of the trials, those that differ in numbers only as one; the commonest first.

    Columns: error and traceback of the first, trial_ids that met it, count, and alike, the
    number of different texts.
    """
    failed = run.trials[run.trials["error"].notna()]
    kinds = failed["error"].str.replace(r"\d+(\.\d+)?", "0", regex=True)
    groups = failed.groupby(kinds, sort=False).agg(
        text=("error", "first"),
        trial_ids=("trial_id", list),
        traceback=("error_traceback", "first"),
        count=("trial_id", "size"),
        alike=("error", "nunique"),
    )
    table = groups.reset_index(drop=True).rename(columns={"text": "error"})
    return table.sort_values("count", ascending=False, kind="stable").reset_index(
        drop=True
    )


class Advice(NamedTuple):
    """A picked trial: what it is, its row of `trials`, and what it offers."""

    title: str
    row: int
    text: str


def pick_title(run: Run, name: str) -> str:
    """A pick in words: 'best compromise', 'lowest gmacs', 'highest accuracy'."""
    if name == KNEE:
        return "best compromise"
    words = {"min": "lowest", "max": "highest"}
    titles = {best_name(o): f"{words[o.mode]} {o.metric}" for o in run.objectives}
    return titles[name]


def advice(run: Run) -> list[Advice]:
    """Which model to ship: each picked trial, the recommended one first.

    The knee is recommended, or the best of a single objective; the others say what they
    give and cost beside it.
    """
    picks = run.picks()
    if not picks:
        return []
    titles: dict[int, list[str]] = {}
    for name in sorted(picks, key=lambda name: name != KNEE):
        titles.setdefault(picks[name], []).append(pick_title(run, name))
    rows = run.configurations()
    values = dict(zip(rows.index, run.values(rows).tolist(), strict=True))
    metrics = [run.metrics.of(o.metric) for o in run.objectives]
    first = next(iter(titles))
    found = []
    for row, names in titles.items():
        if row == first:
            text = ", ".join(
                f"{metric.name} {quantity(value, metric.unit)}"
                for metric, value in zip(metrics, values[row], strict=True)
            )
        else:
            pairs = zip(metrics, values[first], values[row], strict=True)
            changes = [change(*pair) for pair in pairs]
            text = ", ".join(c for c in changes if c) or "the same figures"
        found.append(Advice(", ".join(names), row, text))
    return found


def change(metric: Metric, before: float, after: float) -> str:
    """A change of a metric in words: '+3.2 points accuracy', '2.4 × the gmacs', '−38 %
    latency_ms'; '' for none.
    """
    if before == after:
        return ""
    sign = "+" if after > before else "−"
    if metric.unit == "fraction":
        return f"{sign}{significant(100 * abs(after - before), 2)} points {metric.name}"
    if before <= 0 or after <= 0:
        return (
            f"{metric.name} {quantity(before, metric.unit)} →"
            f" {quantity(after, metric.unit)}"
        )
    ratio = after / before
    if ratio >= 2:
        return f"{significant(ratio, 3)} × the {metric.name}"
    return f"{sign}{significant(100 * abs(ratio - 1), 2)} % {metric.name}"


def beside_baseline(run: Run, row: pd.Series, with_parts: bool = False) -> str:
    """How a configuration's objectives differ from the baseline's, in words: 'accuracy −1.2 points,
    gmacs 5.2 × lower'; "" where nothing can be compared.

    With parts: 'accuracy −1.2 points (validation, 288 images; test −2.1 points)'.
    """
    if run.baseline is None:
        return ""
    found = []
    for objective in run.objectives:
        before = run.baseline.metrics.get(objective.metric)
        after = row.get(f"metric/{objective.metric}")
        if before is not None and after is not None and pd.notna(after):
            metric = run.metrics.of(objective.metric)
            difference = _difference(metric, before, float(after))
            part = _parts(run, row, objective.metric) if with_parts else ""
            found.append(f"{metric.name} {difference}{part}")
    return ", ".join(found)


def _parts(run: Run, row: pd.Series, name: str) -> str:
    """The images on which a difference was measured, and the difference on the test set."""
    found = []
    part = part_of(name, run.classes)
    if part is not None:
        found.append(f"{part.name}, {plural(part.images, 'image')}")
    tested = on_test_set(name)
    before = run.baseline.metrics.get(tested) if run.baseline is not None else None
    after = row.get(f"metric/{tested}")
    if before is not None and after is not None and pd.notna(after):
        difference = _difference(run.metrics.of(tested), before, float(after))
        found.append(f"test {difference}")
    return f" ({'; '.join(found)})" if found else ""


_LARGEST_LIMIT = 10
"""Points that a reader may allow to be lost."""


def points(difference: float) -> str:
    """A difference of shares in points: '−1.04'; where it is small, with more digits rather than so
    short that it seems to keep a limit of a quarter of a point beyond which it is.
    """
    value = 100 * abs(difference)
    text = significant(value, 3)
    is_beyond = abs(value - round(4 * value) / 4) > 1e-7
    if value < _LARGEST_LIMIT and is_beyond and (4 * float(text)).is_integer():
        text = significant(value, 6)
    return f"{'−' if difference < 0 else '+'}{text}"


def _difference(metric: Metric, before: float, after: float) -> str:
    """'−1.2 points', '5.2 × lower', '8 % higher', 'the same'."""
    if before == after:
        return "the same"
    if metric.unit == "fraction":
        return f"{points(after - before)} points"
    if before <= 0 or after <= 0:
        return f"{quantity(before, metric.unit)} → {quantity(after, metric.unit)}"
    way = "lower" if after < before else "higher"
    ratio = max(before, after) / min(before, after)
    if ratio >= 1.5:
        return f"{significant(ratio, 3)} × {way}"
    return f"{significant(100 * abs(after / before - 1), 2)} % {way}"


def sure_to(metric: Metric, half: float) -> str:
    """Half an interval of a metric in words: '±2.5 points of accuracy'."""
    if metric.unit == "fraction":
        return f"±{significant(100 * half, 2)} points of {metric.name}"
    return f"±{quantity(float(f'{half:.2g}'), metric.unit)} of {metric.name}"


class WithinLoss(NamedTuple):
    """A member of the front that is the cheapest for a loss.

    Attributes:
        loss: how much less of the kept metric it has than the baseline; 0 where it has more.
        row: of `trials`.
    """

    loss: float
    row: int


MOST_OFFERED = 40
"""Members of the front that are offered by what they lose."""


def kept_and_cost(run: Run) -> tuple[Objective, Objective] | None:
    """The metric of which little shall be lost, and what shall be low for it: the first share to
    maximise that the baseline has, and the first objective to minimise. None where one is missing.
    """
    if run.baseline is None:
        return None
    kept = [
        o
        for o in run.objectives
        if o.mode == "max"
        and run.metrics.unit(o.metric) == "fraction"
        and o.metric in run.baseline.metrics
    ]
    costs = [o for o in run.objectives if o.mode == "min"]
    return (kept[0], costs[0]) if kept and costs else None


def within_loss(run: Run) -> list[WithinLoss]:
    """The front's members by what they lose beside the baseline: with each more is lost, and the
    cost is lower. The one to ship for a loss is the last that loses no more.

    Empty without a baseline to compare with (see `kept_and_cost`).
    """
    found = kept_and_cost(run)
    if found is None or run.baseline is None:
        return []
    kept, cost = found
    front = run.front().sort_values(
        [f"metric/{kept.metric}", f"metric/{cost.metric}"],
        ascending=[False, True],
        kind="stable",
    )
    before = run.baseline.metrics[kept.metric]
    offered: list[WithinLoss] = []
    least = math.inf
    for row, after, price in zip(
        front.index,
        front[f"metric/{kept.metric}"],
        front[f"metric/{cost.metric}"],
        strict=True,
    ):
        if price >= least:
            continue
        least = float(price)
        loss = max(0.0, before - float(after))
        if offered and offered[-1].loss == loss:
            offered.pop()  # both lose nothing: this one costs less
        offered.append(WithinLoss(loss, int(row)))
    return offered[:MOST_OFFERED]


def cheapest_within(offered: Sequence[WithinLoss], loss: float) -> WithinLoss | None:
    """What to ship where so much may be lost; None where every member loses more."""
    # the last bits of a difference shall not decide
    fitting = [member for member in offered if member.loss <= loss + 1e-9]
    return fitting[-1] if fitting else None


def baseline_figures(run: Run) -> str:
    """The baseline's objectives: 'accuracy 93.1 %, gmacs 0.0119'; "" without a baseline."""
    if run.baseline is None:
        return ""
    metrics = run.baseline.metrics
    return ", ".join(
        f"{o.metric} {quantity(metrics[o.metric], run.metrics.unit(o.metric))}"
        for o in run.objectives
        if o.metric in metrics
    )


def figures_of(run: Run, row: pd.Series) -> list[tuple[str, str]]:
    """Name and text of a configuration's objectives with their spread or measured quartiles, then
    of the same metrics on the test set.
    """
    by_name = {objective.metric: objective for objective in run.objectives}
    names = [o.metric for o in run.objectives]
    names += [on_test_set(name) for name in names if on_test_set(name) not in names]
    found = []
    for name in names:
        value = row.get(f"metric/{name}")
        if value is not None and pd.notna(value) and not isinstance(value, str):
            spread = row.get(f"sd/{name}")
            text = plus_minus(float(value), spread, run.metrics.unit(name))
            interval = interval_text(by_name[name], row) if name in by_name else ""
            found.append((name, f"{text} ({interval})" if interval else text))
    chance = run.chances().get(row.name) if run.is_noisy else None
    if chance is not None:
        found.append((CHANCE, chance_text(chance)))
    return found


def command(run: Run, trial_id: str, what: str) -> str:
    """A shell command about a trial: `what` is "reproduce", or a format of `sweeps export`."""
    folder, name = run.source_of(trial_id)
    path, here = folder.resolve(), Path.cwd()
    place = str(path.relative_to(here) if path.is_relative_to(here) else path)
    words = ["sweeps", "reproduce"]
    if what != "reproduce":
        words = ["sweeps", "export", "--format", what]
        words += ["-o", f"./{path.name}-{name}-{what}"]
    dashes = ["--"] if place.startswith("-") or name.startswith("-") else []
    return shlex.join([*words, *dashes, place, name])
