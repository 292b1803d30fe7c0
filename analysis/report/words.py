"""The top of the report in plain HTML: what was run, what to ship, and what it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import costs, summary
from analysis.certainty import Change, error_variances, part_of
from analysis.comparison import Comparison
from analysis.differences import interval
from analysis.fronts import best_name
from analysis.goal import LEAST_SAID
from analysis.numbers import (
    duration,
    fixed,
    number,
    percent,
    plain,
    plural,
    points_said,
)
from analysis.report.delivery import get_model
from analysis.report.html import Html, element, join, trial_link
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
from analysis.report.verdict import (
    MOST_LOSS,
    STEP,
    allowed_loss,
    configuration_of,
    goal_title,
    kept_changes,
    kept_goal,
    verdict,
)
from analysis.report.versus import versus_section
from analysis.run import Run

_DOT = Html(" <i>·</i> ")


def parts(
    run: Run, compared: Comparison | None, is_live: bool = False
) -> dict[str, str]:
    """What `report.html` shows without a script, by the names of its gaps; a live page is never
    without one.
    """
    first_card, further_cards = _picks(run)
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


def _picks(run: Run) -> tuple[Html, Html]:
    """The card that stands beside the front, and the others below both."""
    advised = summary.advice(run)
    if not advised:
        return Html(""), Html("")
    known = kept_changes(run)
    met = kept_goal(run)
    shipped = None if met is None else met.row
    cards = [] if shipped is None else [_shipped(run, shipped, known)]
    cards += _within_loss(run, known, first=not cards)
    cards += [
        _pick(run, advice, first=not cards and not i)
        for i, advice in enumerate(advised)
        if advice.row != shipped
    ]
    note = None
    if run.has_replicates:
        note = element(
            "p",
            "Mean ± standard deviation over seeds; the trial is the seed nearest the mean.",
            class_="note",
        )
    others = element("div", *cards[1:], class_="picks") if cards[1:] else None
    return cards[0], join([others, note])


def _shipped(run: Run, row: int, known: Mapping[Any, Change]) -> Html:
    """What the summary says to ship, since it keeps all bounds, and what it is the best of besides.

    Args:
        known: as `kept_changes`.
    """
    title = goal_title(run)
    first = best_name(run.objectives[0])  # which the title says already
    also = [name for name, picked in run.picks().items() if picked == row]
    named = [summary.pick_title(run, name) for name in also if name != first]
    advice = summary.Advice(", ".join([title[0].upper() + title[1:], *named]), row, "")
    return _pick(run, advice, first=True, change=known.get(row))


def _within_loss(run: Run, known: Mapping[Any, Change], first: bool) -> list[Html]:
    """The cheapest member of the front for a loss that the reader sets; a card for each that there
    is, of which one is seen.

    Args:
        known: as `kept_changes`.
        first: whether no card stands before.
    """
    offered, wanted = summary.within_loss(run), summary.kept_and_cost(run)
    if not offered or wanted is None:
        return []
    kept, cost = wanted
    allowed = allowed_loss(run)
    chosen = summary.cheapest_within(offered, allowed) or offered[0]
    points = points_said(allowed)
    cards = []
    for member in offered:
        title = f"Lowest {cost.metric} within {points}"
        if member.loss > allowed:
            title = f"Nearest: more than {points} of {kept.metric} is lost"
        advice = summary.Advice(title, member.row, "")
        cards.append(
            element(
                "div",
                _pick(run, advice, first, change=known.get(member.row)),
                class_="member",
                hidden=None if member == chosen else "",
                data_loss=f"{member.loss:.9g}",
            )
        )
    return [
        element(
            "div",
            _loss_slider(kept.metric, allowed),
            *cards,
            class_="within",
            data_metric=kept.metric,
            data_cost=cost.metric,
        )
    ]


def _loss_slider(metric: str, allowed: float) -> Html:
    """What the reader sets the loss with; hidden until the page's script shows it."""
    return element(
        "label",
        "Lose at most ",
        element(
            "input",
            type="range",
            id="loss",
            min="0",
            max=f"{MOST_LOSS}",
            step=f"{STEP}",
            value=f"{100 * allowed:g}",
            aria_label=f"points of {metric} that may be lost",
        ),
        element("output", points_said(allowed), id="loss-shown", for_="loss"),
        class_="loss",
        hidden="",
    )


def _pick(
    run: Run, advice: summary.Advice, first: bool, change: Change | None = None
) -> Html:
    """The card of a picked trial; `change` is how it differs in the metric that is kept."""
    row = configuration_of(run, advice.row)
    trial_id = str(row["trial_id"])
    figures = [
        element(
            "div",
            element(
                "dt",
                name,
                _measured_on(run, name),
                title=run.metrics.of(name).description or None,
            ),
            element("dd", text),
        )
        for name, text in summary.figures_of(run, row)
    ]
    return element(
        "article",
        element(
            "header",
            element("h3", advice.title),
            trial_link(trial_id, f"trial {trial_id}"),
        ),
        element("dl", *figures),
        _against(run, row),
        element("p", _pick_note(run, advice), class_="note"),
        _loss_sureness(run, change),
        _sureness(run, advice.row, with_error=change is None) if first else None,
        element("p", _parameters(run, row), class_="config"),
        get_model(run, row, is_open=first),
        class_="pick first" if first else "pick",
    )


def _against(run: Run, row: pd.Series) -> Html | None:
    """What the configuration gains and costs beside the baseline."""
    text = summary.beside_baseline(run, row, with_parts=True)
    if run.baseline is None or not text:
        return None
    return element("p", f"{text} against {run.baseline.name}.", class_="against")


def _measured_on(run: Run, name: str) -> Html | None:
    """The part on which a figure was measured."""
    part = part_of(name, run.classes)
    if part is None:
        return None
    return element("small", f" {part.name}, {plural(part.images, 'image')}")


def _loss_sureness(run: Run, change: Change | None) -> Html | None:
    """How sure the loss beside the baseline is; the page writes the chance for another limit."""
    if change is None or run.baseline is None or not change.variance > 0:
        return None
    limits = np.arange(0, MOST_LOSS + STEP / 2, STEP) / 100
    chances = [summary.chance_text(float(p)) for p in change.kept(limits)]
    allowed = allowed_loss(run)
    mine = chances[round(100 * allowed / STEP)]
    ends = f"{summary.points(change.low)} to {summary.points(change.high)} points"
    luck = None
    if change.flattery >= LEAST_SAID:
        luck = (
            f" About {fixed(100 * change.flattery, 1)} points are left out here as luck: these"
            " images chose it among several."
        )
    return element(
        "p",
        f"Its true difference from {run.baseline.name}: {ends} (95 %, the latter taken as"
        " measured). A loss of at most ",
        element("span", points_said(allowed), class_="limit"),
        " has a probability of ",
        element("b", mine, class_="chance"),
        ".",
        luck,
        class_="note",
        data_chances=",".join(chances),
    )


def _sureness(run: Run, row: int, with_error: bool) -> Html | None:
    """What the chance means; with the error of a configuration's uncertain objectives."""
    if not run.is_noisy:
        return None
    rows = run.configurations()
    variances = error_variances(rows, run.objectives, run.classes)[0]
    mine = variances[rows.index.get_loc(row)]
    half = [
        summary.sure_to(run.metrics.of(o.metric), 1.96 * float(variance) ** 0.5)
        for o, variance in zip(run.objectives, mine, strict=True)
        if variance > 0
    ]
    text = f"Sure to {', '.join(half)} (95 %). " if half and with_error else ""
    text += (
        f"“{summary.CHANCE}”: how likely no other is better in all, given such errors."
    )
    return element("p", text, class_="note")


def _pick_note(run: Run, advice: summary.Advice) -> str:
    if len(run.objectives) == 1:
        return ""
    if not advice.text:
        return ""
    if "best compromise" in advice.title:
        return "Farthest from the line between the front's ends."
    return f"{advice.text} beside the best compromise."


def _parameters(run: Run, row: pd.Series) -> Html:
    """The parameters that a configuration has, with their values."""
    values = [(name, row.get(f"config/{name}")) for name in run.parameters]
    shown = [
        join([name, " ", element("b", plain(value))])
        for name, value in values
        if value is not None and pd.notna(value)
    ]
    return join(shown, ", ")
