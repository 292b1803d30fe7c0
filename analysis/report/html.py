"""HTML built from elements: whatever is not markup of ours already is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

from analysis.text import clean_text


class Html(str):
    """Text that is markup of ours: it is not escaped again."""

    __slots__ = ()


def escape(value: Any) -> Html:
    """Text for HTML content and quoted attributes."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(clean_text(str(value))))


def join(parts: Iterable[Any], separator: Any = "") -> Html:
    """Parts one after another; None counts as nothing."""
    return Html(escape(separator).join(escape(p) for p in parts if p is not None))


def element(tag: str, *children: Any, **attributes: Any) -> Html:
    """One element with its children; None counts as nothing.

    `class_` is the attribute class, and an underscore inside a name a dash: `data_trial`. An
    attribute of None is left out.
    """
    given = "".join(
        f" {name.rstrip('_').replace('_', '-')}='{escape(value)}'"
        for name, value in attributes.items()
        if value is not None
    )
    return Html(f"<{tag}{given}>{join(children)}</{tag}>")


def cell(value: float | None, text: Any) -> Html:
    """A table's cell of a number, by which the page sorts; a dash where there is none."""
    if value is None or not abs(value) < float("inf"):
        return element("td", "–", class_="n none")
    return element("td", text, class_="n", data_v=f"{value:.9g}")


def heads(names: Iterable[str]) -> Html:
    """Heads of columns of numbers."""
    return join(element("th", name, class_="n") for name in names)


def table(head: Any, rows: Iterable[Any], foot: Any = None) -> Html:
    """A table that the page sorts by its heads, in a box that scrolls; its foot stays below."""
    return element(
        "div",
        element(
            "table",
            element("thead", element("tr", head)),
            element("tbody", *rows),
            None if foot is None else element("tfoot", foot),
            class_="plain sortable",
        ),
        class_="scroll",
    )


def card(name: str, title: Any, note: Any, *body: Any, nav: str | None = None) -> Html:
    """A section of the page; `nav` is its title in the navigation where another one is shorter."""
    return element(
        "section",
        element("h2", title),
        element("p", note, class_="note") if note else None,
        *body,
        class_="card",
        id=name,
        data_nav=nav,
    )


def trial_link(trial_id: Any, text: Any = None) -> Html:
    """A button that marks a trial in the plots and the table."""
    return element(
        "button",
        trial_id if text is None else text,
        type="button",
        class_="link",
        data_trial=trial_id,
    )
