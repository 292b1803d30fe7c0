"""Sections of the report that are plain HTML: comparison, stages, failures, how to reproduce."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis import summary
from analysis.comparison import Comparison, Group
from analysis.metrics import Metric
from analysis.numbers import duration, number, percent, plural, quantity
from analysis.report.html import (
    Html,
    card,
    cell,
    element,
    heads,
    join,
    table,
    trial_link,
)
from analysis.run import Run

_MAX_NAMED = 200
"""Files, and trials of one failure, that are named one by one."""
_MAX_HOSTS = 4


def compare_section(run: Run, found: Comparison | None) -> Html:
    """The groups of a comparison in numbers, and the gap for their curves."""
    if found is None:
        return Html("")
    with_spread = any(math.isfinite(group.spread) for group in found.groups)
    names = ["Configurations", "On common front", "Hypervolume"]
    names += ["± seeds"] if with_spread else []
    names.append(f"after {plural(found.budget, 'configuration')}")
    names.append(f"after {duration(found.time)}")
    names += [f"best {o.metric}" for o in run.objectives]
    reference = ", ".join(
        f"{metric} {quantity(value, run.metrics.unit(metric))}"
        for metric, value in found.reference.items()
    )
    note = (
        "Hypervolume of each front, as a share of the box between the best values of all and"
        f" the common reference point ({reference}). The columns “after” give all the same"
        " budget: as many configurations as the smallest group has, or as much time of trials"
        " as the shortest took. “On common front” counts how many of a group's own front are on"
        " the front of all."
    )
    return card(
        "compare",
        f"Compared by {found.by}",
        note,
        table(
            join([element("th", found.by), heads([*names, "Time"])]),
            [_group_row(run, group, with_spread) for group in found.groups],
        ),
        element("div", class_="controls", id="compare-controls"),
        element("div", class_="legend"),
        element("div", class_="plot low", id="compare-plot"),
    )


def _group_row(run: Run, group: Group, with_spread: bool) -> Html:
    shares = [group.volume, *([group.spread] if with_spread else [])]
    shares += [group.budget, group.at_time]
    best = [
        cell(value, quantity(value, run.metrics.unit(objective.metric)))
        for value, objective in zip(group.best, run.objectives, strict=True)
    ]
    return element(
        "tr",
        element("th", group.name, scope="row"),
        cell(group.configurations, number(group.configurations)),
        cell(group.on_front, f"{number(group.on_front)} of {number(group.front)}"),
        *(cell(share, percent(share)) for share in shares),
        *best,
        cell(group.seconds, duration(group.seconds)),
    )


def stages_section(run: Run) -> Html:
    """What each stage cost, and what the stage cache saved."""
    stages = summary.stage_table(run)
    if stages.empty:
        return Html("")
    others = summary.other_costs(run)
    spent = float(stages["seconds"].sum()) + sum(seconds for _, _, seconds in others)
    longest = max(float((stages["seconds"] + stages["saved"]).max()), 1e-9)
    named = stages.fillna({"name": "", "stage": "", "phase": ""})
    key = element("span", element("i"), "spent ", element("u"), "saved", class_="key")
    return card(
        "stages",
        "Cost and stage cache",
        "A stage that was already run on the same input, by an earlier trial or before this run, is"
        " read from the stage cache: a hit. “Saved” is what the trials would have taken longer"
        " without the cache; a stage that all share would have been computed once in any case, so"
        " its hits save nothing here.",
        table(
            join(
                [
                    element("th", "Stage"),
                    element("th", "Phase"),
                    heads(["Runs", "Hits", "Spent", "Saved"]),
                    element("td", key, class_="wide"),
                ]
            ),
            [_stage_row(row, longest) for row in named.to_dict("records")]
            + [_other_cost(*cost) for cost in others],
            _cost_foot(run, spent, float(stages["saved"].sum())),
        ),
    )


def _other_cost(name: str, count: int, seconds: float) -> Html:
    """A row of what is no stage."""
    empty = element("td", "–", class_="n none")
    return element(
        "tr",
        element("th", name, scope="row"),
        element("td"),
        cell(count, number(count)),
        empty,
        cell(seconds, duration(seconds)),
        empty,
        element("td", class_="wide"),
    )


def _cost_foot(run: Run, spent: float, saved: float) -> Html:
    """The sum of all rows, in seconds."""
    total = summary.totals(run)
    return element(
        "tr",
        element("th", "All together", scope="row"),
        element("td"),
        cell(total["trials"], plural(total["trials"], "trial")),
        element("td"),
        cell(spent, duration(spent)),
        cell(saved, duration(saved) if saved else "–"),
        element("td", class_="wide"),
    )


def _stage_row(row: Mapping[Any, Any], longest: float) -> Html:
    method = None
    if row["name"] != row["stage"]:
        method = join([" ", element("small", row["stage"])])
    bar = element(
        "span",
        element("i", style=f"width:{100 * row['seconds'] / longest:.2f}%"),
        element("u", style=f"width:{100 * row['saved'] / longest:.2f}%"),
        class_="bar",
    )
    return element(
        "tr",
        element("th", row["name"], method, scope="row"),
        element("td", row["phase"]),
        cell(row["runs"], number(row["runs"])),
        cell(row["hits"], number(row["hits"])),
        cell(row["seconds"], duration(row["seconds"])),
        cell(row["saved"], duration(row["saved"]) if row["saved"] else "–"),
        element("td", bar, class_="wide"),
    )


def failures_section(run: Run) -> Html:
    """The errors of the trials, those that differ in numbers only as one."""
    failures = summary.failures(run)
    if failures.empty:
        return Html("")
    count = int(failures["count"].sum())
    items = [_failure(row) for row in failures.to_dict("records")]
    return card(
        "failures",
        "Failures",
        f"{plural(count, 'trial')} ended with an error.",
        element("ul", *items, class_="failures"),
    )


def _failure(row: Mapping[Any, Any]) -> Html:
    trial_ids = row["trial_ids"]
    more = len(trial_ids) - _MAX_NAMED
    trace = None
    if not pd.isna(row["traceback"]):
        trace = element(
            "details",
            element("summary", "Traceback"),
            element("pre", row["traceback"], tabindex="0"),
        )
    return element(
        "li",
        element("p", row["error"], class_="error"),
        element(
            "p",
            "Trials ",
            join((trial_link(trial_id) for trial_id in trial_ids[:_MAX_NAMED]), " "),
            f" and {number(more)} more" if more > 0 else None,
            "; other numbers in the others" if row["alike"] > 1 else None,
            class_="ids",
        ),
        trace,
    )


def remarks_section(run: Run) -> Html:
    """The data set, and what must be known of it and of the source."""
    if not run.data and not run.remarks:
        return Html("")
    return card(
        "remarks",
        "Data and source",
        run.data,
        *([_listed(run.remarks)] if run.remarks else []),
    )


def glossary_section(run: Run) -> Html:
    """What the names of metrics mean, as the run describes them; objectives first."""
    names = [objective.metric for objective in run.objectives]
    measured = [
        name.partition("/")[2]
        for name in map(str, run.trials)
        if name.startswith("metric/") and run.trials[name].notna().any()
    ]
    names = list(dict.fromkeys([*names, *run.metrics.in_order(measured)]))
    entries = [
        join([element("dt", name), element("dd", _with_unit(run.metrics.of(name)))])
        for name in names
        if run.metrics.of(name).description
    ]
    if not entries:
        return Html("")
    listed = element(
        "details",
        element("summary", plural(len(entries), "metric")),
        element("dl", *entries, class_="glossary"),
    )
    return card("glossary", "What the names mean", "", listed, nav="Names")


_UNSAID = {"", "1", "text"}
"""Units that a description needs not to be followed by."""


def _with_unit(metric: Metric) -> str:
    unit = "" if metric.unit in _UNSAID else f" ({metric.unit.replace('10^9', '10⁹')})"
    return f"{metric.description}{unit}"


def problems_section(run: Run) -> Html:
    """The files that could not be read."""
    if not run.problems:
        return Html("")
    return card(
        "problems",
        "Files that could not be read",
        "The rest of the run is shown.",
        _listed(run.problems),
    )


def _listed(lines: Sequence[str]) -> Html:
    items = [element("li", line) for line in lines[:_MAX_NAMED]]
    more = len(lines) - _MAX_NAMED
    if more > 0:
        items.append(element("li", f"and {number(more)} more"))
    return element("ul", *items, class_="problems")


def reproduce_section(run: Run) -> Html:
    """Command, versions, hosts and spec of the run, or of each of several."""
    runs = run.members or {"": run}
    bodies = [_reproduce(member, label) for label, member in runs.items()]
    if not any(bodies):
        return Html("")
    return card("reproduce", "How to reproduce", "", *bodies)


def _reproduce(run: Run, label: str) -> Html | None:
    facts = _facts(run)
    if not (facts or run.command or run.spec):
        return None
    entries = [
        element("div", element("dt", name), element("dd", text)) for name, text in facts
    ]
    spec = None
    if run.spec:
        spec = element(
            "details",
            element("summary", "Resolved spec"),
            element(
                "pre",
                json.dumps(run.spec, indent=2, ensure_ascii=False),
                tabindex="0",
            ),
        )
    return join(
        [
            element("h3", label) if label else None,
            element("pre", run.command, class_="command", tabindex="0")
            if run.command
            else None,
            element("dl", *entries, class_="facts"),
            spec,
        ]
    )


def _facts(run: Run) -> list[tuple[str, str]]:
    """Seed, versions of the libraries, and hosts."""
    facts = [] if run.seed is None else [("seed", str(run.seed))]
    for column in map(str, run.trials):
        found = run.trials[column].dropna().unique()
        if column.startswith("version/") and len(found):
            facts.append((column.partition("/")[2], ", ".join(map(str, found))))
    hosts = list(run.trials["host"].dropna().unique())
    if hosts:
        more = " …" if len(hosts) > _MAX_HOSTS else ""
        facts.append(("host", ", ".join(hosts[:_MAX_HOSTS]) + more))
    return facts
