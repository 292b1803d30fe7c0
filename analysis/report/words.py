"""The top of the report in plain HTML: what was run, what to ship, and what it took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import costs, summary
from analysis.comparison import Comparison
from analysis.differences import interval
from analysis.numbers import duration, fixed, number, percent, plural
from analysis.report.html import Html, element, join
from analysis.report.picks import picks
from analysis.report.sections import (
    compare_section,
    failures_section,
    glossary_section,
    problems_section,
    remarks_section,
    reproduce_section,
    stages_section,
)
from analysis.report.still import front_picture
from analysis.report.verdict import verdict
from analysis.report.versus import versus_section
from analysis.run import Run

_DOT = Html(" <i>·</i> ")


def parts(
    run: Run, compared: Comparison | None, is_live: bool = False
) -> dict[str, str]:
    """What `report.html` shows without a script, by the names of its gaps; a live page is never
    without one.
    """
    first_card, further_cards = picks(run)
    return {
        "kind": "Comparison of sweeps" if run.members else "Sweep report",
        "meta": _meta(run),
        "summary": _summary(run, compared),
        "pick": first_card,
        "picks": further_cards,
        "tiles": _tiles(run),
        "remarks": remarks_section(run),
        "compare": compare_section(run, compared),
        "versus": Html("") if is_live else versus_section(run, compared),
        "stages": stages_section(run),
        "still": Html("") if is_live else front_picture(run),
        "glossary": glossary_section(run),
        "failures": failures_section(run),
        "problems": problems_section(run),
        "reproduce": reproduce_section(run),
    }


def live_section(secret: str, version: str) -> Html:
    """What the live page shows above the report: filled by its script."""
    field = element(
        "textarea",
        id="try-text",
        rows="6",
        spellcheck="false",
        aria_label="Configuration to try, as YAML or JSON: parameter: value",
    )
    form = element(
        "details",
        element("summary", "Try a configuration"),
        element(
            "form",
            element(
                "p",
                "A line for each parameter, as in search.points; what is left out is drawn."
                " It takes the place of the next one that the search would draw.",
                class_="note",
            ),
            field,
            element("button", "Try it", type="submit", class_="button"),
            id="try",
        ),
        id="try-box",
        hidden="",
    )
    return element(
        "section",
        element("h2", "Now"),
        element("p", class_="note", id="live-note", role="status"),
        element("ul", id="live-trials"),
        element("p", class_="controls", id="live-controls"),
        form,
        element("ul", id="live-requests"),
        class_="card",
        id="live",
        data_nav="Now",
        data_secret=secret,
        data_version=version,
    )


def _meta(run: Run) -> Html:
    items: list[Any] = list(run.members)
    if not items:
        created = pd.to_datetime(run.created, errors="coerce", utc=True)
        if not pd.isna(created):
            items.append(f"{created.day} {created:%B %Y, %H:%M} UTC")
        devices = run.trials["device"].dropna().unique()
        items += list(devices[:2])
        if len(devices) > 2:
            items.append(f"{len(devices) - 2} more")
        if run.seed is not None:
            items.append(f"seed {run.seed}")
    return join((element("span", item) for item in items), _DOT)


def _counts(status: dict[str, int]) -> str:
    """'31 complete, 4 pruned and 3 failed'."""
    words = [f"{number(count)} {name}" for name, count in status.items()]
    if len(words) < 2:
        return "".join(words) or "none"
    return ", ".join(words[:-1]) + " and " + words[-1]


def _summary(run: Run, compared: Comparison | None) -> Html:
    total = summary.totals(run)
    if not total["trials"]:
        return element(
            "p", "No trial has begun yet: a trial shows here from its plan on."
        )
    facts = [
        f"{plural(total['trials'], 'trial')}: {_counts(total['status'])}.",
        _seeds(run),
        _baseline(run),
        _front(run, total["front"]),
    ]
    first = [_leader(compared), verdict(run)]
    lines = [
        element("p", _sentences(first)) if any(first) else None,
        element("p", _sentences(facts), class_="note"),
    ]
    return join(lines)


def _sentences(sentences: Sequence[Any]) -> Html:
    """Sentences one after another; a number stays on one line with what it counts."""
    text = join((s for s in sentences if s is not None), " ")
    return Html(text.replace(" %", "\u00a0%").replace(" ×", "\u00a0×"))


def _seeds(run: Run) -> str | None:
    if not run.has_replicates:
        return None
    rows = run.configurations()
    most = int(rows["replicates"].max())
    return (
        f"They are {plural(len(rows), 'configuration')}, each with up to {most} seeds."
    )


def _baseline(run: Run) -> Html | None:
    figures = summary.baseline_figures(run)
    if run.baseline is None or not figures:
        return None
    return join(["The baseline is ", element("b", run.baseline.name), f": {figures}."])


def _front(run: Run, count: int) -> Any:
    if not count:
        return None
    if len(run.objectives) < 2:
        return None
    goals = [
        join(
            [
                "low " if o.mode == "min" else "high ",
                element(
                    "b", o.metric, title=run.metrics.of(o.metric).description or None
                ),
            ]
        )
        for o in run.objectives
    ]
    what = "configurations" if run.has_replicates else "trials"
    subject = (
        "One offers a"
        if count == 1
        else f"{number(count)} {what} are on the front, each a"
    )
    return join(
        [f"{subject} trade of ", join(goals, " against "), " that no other beats."]
    )


def _leader(compared: Comparison | None) -> Html | None:
    if compared is None or len(compared.groups) < 2:
        return None
    first, second = compared.groups[:2]
    common = sorted(first.by_seed.keys() & second.by_seed.keys())
    pairs = [first.by_seed[seed] - second.by_seed[seed] for seed in common]
    mean, low, high = interval(np.array(pairs))
    said = [
        element("b", first.name),
        f" dominates {percent(first.volume)} of the space between the best values and the"
        f" reference point, {second.name} {percent(second.volume)}",
    ]
    if first.configurations != second.configurations:
        counts = f"{number(first.configurations)} and {number(second.configurations)}"
        said.append(
            f"; they have {counts} configurations, so that their seeds are no pairs and which is"
            f" better cannot be judged. After {plural(compared.budget, 'configuration')} each it"
            f" is {percent(first.budget)} and {percent(second.budget)}."
        )
    elif len(pairs) < 2:
        said.append("; one pair of seeds does not tell which is better.")
    else:
        points = f"{fixed(100 * low, 1)} to {fixed(100 * high, 1)} points"
        ahead = "ahead" if low > 0 else "not distinguishable"
        said.append(
            f"; over {len(pairs)} pairs of seeds the first is {ahead}"
            f" (difference {fixed(100 * mean, 1)}, 95 % interval {points})."
        )
    return join(said)


def _tiles(run: Run) -> Html:
    total = summary.totals(run)
    saved, spent = total["seconds_saved"], total["seconds"]
    without = "no stage was read from it"
    if saved:
        without = f"without it {duration(saved + spent)}"
    shared = sorted(costs.shared_stages(run))
    if shared:
        without += f"; {', '.join(shared)} once, as all share it"
    earlier = costs.earlier_stages(run)
    before = "all together"
    if earlier:
        took = duration(sum(stage.seconds for stage in earlier))
        before = f"and {took} before this run: {', '.join(s.name for s in earlier)}"
    what = "configuration" if run.has_replicates else "trial"
    complete = total["status"].get("complete", 0)
    counted = plural(len(run.configurations()), f"complete {what}")
    tiles = [
        ("Trials", number(total["trials"]), f"{number(complete)} complete"),
        ("On the front", number(total["front"]), f"of {counted}"),
        ("Time of trials", duration(spent), before),
        ("Saved by the cache", duration(saved), without),
    ]
    return element("dl", *(_tile(*tile) for tile in tiles), class_="tiles")


def _tile(name: str, value: str, note: str) -> Html:
    return element(
        "div",
        element("dt", name),
        element("dd", value, element("small", note)),
        class_="tile",
    )
