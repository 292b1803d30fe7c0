"""Which model family works with which method, measurement and file format?

    python benchmarks/model_matrix.py run [--families ViT Swin] [--workdir DIR] [--limit 600]
    python benchmarks/model_matrix.py page

Each family of `model_families.py` meets each column in a process of its own, with random
weights, on a handful of images. A cell works, is refused by what `sweeps validate` checks (an
export: when it is asked for), or is broken: another error, a refusal that comes only when the
stage runs, or a result that fails its check. `run` writes each cell to the working folder as
it comes, and goes on from there when called again; what is broken is tried again. At its
end it writes what it found into `results/model_matrix.json`; cells that it did not try stay there.
`page` writes the table into `docs/models.md`.
Time: 20 to 30 minutes of a core.
"""

import argparse
import importlib
import json
import multiprocessing
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from model_cases import Case, Refused
from model_columns import COLUMNS, Column
from model_families import FAMILIES, Family
from model_page import page

from trainers.models.arch import on_meta
from trainers.models.make import make_arch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "model_matrix.json"
PAGE = ROOT / "docs" / "models.md"

FORK = multiprocessing.get_context("fork")
"""Processes that start with everything imported, which takes longer than most cells."""
Status = Literal["works", "refuses", "broken"]


@dataclass(frozen=True)
class Cell:
    """One family and one column.

    Attributes:
        status: works, refuses, or broken.
        reason: the sentence of a refusal, or the error; empty where it works.
        seconds: spent on it.
    """

    status: Status
    reason: str = ""
    seconds: float = 0.0


def cell(case: Case, column: Column) -> Cell:
    """Try one cell."""
    begin = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            column.run(case)
        status, reason = "works", ""
    except Refused as error:
        status, reason = "refuses", " ".join(str(error).split())
    except Exception as error:  # noqa: BLE001 (whatever it is, the matrix looks for it)
        lines = str(error).strip().splitlines() or [""]
        status, reason = "broken", f"{type(error).__name__}: {lines[0][:300]}"
    seconds = round(time.perf_counter() - begin, 2)
    return Cell(status, reason, seconds)  # type: ignore[arg-type]


@dataclass
class Row:
    """What is known of a family: its cells, in a file that grows by a line each.

    Attributes:
        path: of the file.
        cells: by column; of several tries the last.
        begun: a column that was begun and not finished, or None.
    """

    path: Path
    cells: dict[str, Cell] = field(default_factory=dict)
    begun: str | None = None

    @classmethod
    def read(cls, folder: Path, family: Family) -> "Row":
        found = cls(folder / f"{family.slug}.jsonl")
        lines = found.path.read_text().splitlines() if found.path.exists() else []
        for line in lines:
            note = json.loads(line)
            column = note.pop("column")
            found.begun = column if not note else None
            if note:
                found.cells[column] = Cell(**note)
        return found

    def write(self, column: str, made: Cell | None = None) -> None:
        note = {"column": column} | (asdict(made) if made else {})
        with self.path.open("a") as file:
            file.write(json.dumps(note) + "\n")

    def missing(self) -> list[str]:
        """Columns that are yet to be tried; what was broken is tried again."""
        return [
            name
            for name in COLUMNS
            if name not in self.cells or self.cells[name].status == "broken"
        ]


def run_family(folder: Path, name: str, columns: Iterable[str]) -> None:
    """Try a family's cells in this process."""
    torch.set_num_threads(1)
    (family,) = (f for f in FAMILIES if f.name == name)
    row = Row.read(folder, family)
    with tempfile.TemporaryDirectory(dir=folder) as workdir:
        case = Case(family, Path(workdir))
        for column in columns:
            row.write(column)
            row.write(column, cell(case, COLUMNS[column]))


def run_all(
    folder: Path, families: list[Family], columns: list[str], limit: float
) -> None:
    """Try every missing cell, a process for each family; one that dies loses one cell."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    _import_what_is_slow()
    for family in families:
        done: set[str] = set()
        while left := [
            name
            for name in Row.read(folder, family).missing()
            if name in columns and name not in done
        ]:
            process = FORK.Process(target=run_family, args=(folder, family.name, left))
            process.start()
            process.join(limit)
            if process.is_alive():
                process.kill()
                process.join()
                why = f"it took more than {limit:g} s"
            else:
                why = f"its process ended with {process.exitcode}"
            row = Row.read(folder, family)
            if row.begun is None:
                done |= set(left)
                break
            row.write(row.begun, Cell("broken", why))
            done |= set(left[: left.index(row.begun) + 1])
        print(_summary(family, Row.read(folder, family)), flush=True)


def _import_what_is_slow() -> None:
    """Once for the processes of all families."""
    importlib.import_module("torch.onnx._internal.exporter._core")
    importlib.import_module("onnxruntime")
    on_meta(make_arch("vit_tiny_patch16_224", num_classes=2, image_size=32))


def _summary(family: Family, row: Row) -> str:
    counts = {
        status: sum(made.status == status for made in row.cells.values())
        for status in ("works", "refuses", "broken")
    }
    seconds = sum(made.seconds for made in row.cells.values())
    broken = "".join(
        f"\n    {name}: {made.reason}"
        for name, made in row.cells.items()
        if made.status == "broken"
    )
    return f"{family.name:32s} {counts} {seconds:.0f} s{broken}"


def collected(folder: Path) -> dict[str, Any]:
    """All rows that have a cell, as the result's file has them."""
    rows = {}
    for family in FAMILIES:
        cells = Row.read(folder, family).cells
        if not cells:
            continue
        rows[family.name] = {
            "kind": family.kind,
            "model": family.model,
            "args": family.args,
            "image_size": family.image_size,
            "cells": {
                name: [cells[name].status, cells[name].reason]
                for name in COLUMNS
                if name in cells
            },
        }
    return rows


def merged(known: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Rows of the result's file with the cells that were found; what was not tried again stays.

    What families and columns there are no longer goes.
    """
    rows = {}
    for family in FAMILIES:
        before, now = known.get(family.name, {}), found.get(family.name, {})
        cells = before.get("cells", {}) | now.get("cells", {})
        if cells:
            rows[family.name] = {
                **before,
                **now,
                "cells": {name: cells[name] for name in COLUMNS if name in cells},
            }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("run", "page"))
    parser.add_argument("--families", nargs="*", default=[])
    parser.add_argument("--columns", nargs="*", default=list(COLUMNS))
    parser.add_argument("--workdir", type=Path, default=Path("/tmp/model-matrix"))
    parser.add_argument("--limit", type=float, default=600, help="seconds of a family")
    parser.add_argument("--afresh", action="store_true", help="forget earlier cells")
    options = parser.parse_args()
    if options.task == "run":
        if options.afresh:
            shutil.rmtree(options.workdir, ignore_errors=True)
        by_name = {family.name: family for family in FAMILIES}
        chosen = [by_name[name] for name in options.families or by_name]
        run_all(options.workdir, chosen, options.columns, options.limit)
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        found = merged(known, collected(options.workdir))
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        return
    PAGE.write_text(page(PAGE.read_text(), json.loads(RESULTS.read_text()), COLUMNS))


if __name__ == "__main__":
    main()
