"""How long a start is an advantage: test accuracy by the epochs that follow it, as a figure.

python benchmarks/start_curves.py 'TABLES*.parquet' TITLE ['TABLES*.parquet' TITLE …] -o FILE.svg

A panel for each pattern of files. Each table has a row for each training: `start`, `seed`,
`epochs`, `accuracy` (validation) and `test_accuracy`, and `lr` where that was searched; then the
best on validation counts, for each start, seed and number of epochs. Lines are means, bands reach
from the lowest to the highest seed.
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from analysis.report.figures import PALETTE

_KEYS = ["start", "seed", "epochs"]
_PANEL_INCHES = (5.6, 4.4)


def read(pattern: str) -> pd.DataFrame:
    """All files of a pattern, one below the other.

    Raises:
        SystemExit: there are none.
    """
    given = Path(pattern)
    files = sorted(given.parent.glob(given.name))
    if not files:
        raise SystemExit(f"{pattern}: no such file")
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)


def chosen(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each start, seed and number of epochs: the rate that was best on validation."""
    ordered = table.sort_values([*_KEYS, "accuracy"], kind="stable")
    return ordered.groupby(_KEYS, as_index=False).tail(1)


def draw(axes: Axes, table: pd.DataFrame, title: str) -> None:
    """A panel: the starts in the order of their accuracy after the fewest epochs."""
    percent = chosen(table).assign(test=lambda rows: 100 * rows["test_accuracy"])
    by_epochs = percent.groupby(["start", "epochs"])["test"]
    found = by_epochs.agg(["mean", "min", "max"]).reset_index()
    fewest = found[found["epochs"] == found["epochs"].min()]
    names = fewest.sort_values("mean", ascending=False)["start"]
    for name, colour in zip(names, PALETTE, strict=False):
        of_start = found[found["start"] == name]
        epochs = of_start["epochs"]
        axes.plot(
            epochs,
            of_start["mean"],
            "o-",
            color=colour,
            label=name.replace("_", " "),
            ms=4,
        )
        axes.fill_between(
            epochs, of_start["min"], of_start["max"], color=colour, alpha=0.15, lw=0
        )
    axes.set_xscale("log")
    axes.set_xticks(sorted(set(found["epochs"])), labels=sorted(set(found["epochs"])))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("epochs after the start")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(color="#ecece7")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("panels", nargs="+", metavar="TABLE TITLE")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    tables, titles = given.panels[::2], given.panels[1::2]
    if len(tables) != len(titles):
        parser.error("give a title after each table")
    mpl.rcParams["svg.hashsalt"] = "sweeps"  # same data, same bytes
    mpl.rcParams["svg.fonttype"] = "none"  # letters, not their outlines
    mpl.rcParams["font.family"] = "sans-serif"
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * len(tables), height), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, table, title in zip(panels, tables, titles, strict=True):
        draw(axes, read(table), title)
    figure.savefig(given.output, metadata={"Date": None})


if __name__ == "__main__":
    main()
