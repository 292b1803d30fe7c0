"""`benchmarks/model_matrix.py`: its cells on three families, and the page that it writes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from compress.pipeline import STAGES

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from model_cases import Case, Refused  # noqa: E402
from model_columns import COLUMNS, Column  # noqa: E402
from model_families import FAMILIES  # noqa: E402
from model_matrix import PAGE, RESULTS, Cell, Row, cell, merged  # noqa: E402
from model_page import FENCE, page  # noqa: E402

QUICK = (
    "checkpoint",
    "train",
    "weight_selection",
    "nvit",
    "asp",
    "uniform_quant",
    "macs",
    "torchscript",
)


def case(name: str, folder: Path) -> Case:
    (family,) = (family for family in FAMILIES if family.name == name)
    return Case(family, folder)


def cells(name: str, folder: Path) -> dict[str, Cell]:
    tried = case(name, folder)
    return {c: cell(tried, COLUMNS[c]) for c in QUICK}


def test_every_stage_has_a_column() -> None:
    covered = {kind for column in COLUMNS.values() for kind in column.kinds}
    assert covered == STAGES.keys()


@pytest.mark.parametrize(
    ("family", "refused"),
    [
        ("DeiT, distilled", {}),
        ("SigLIP (attention pooling)", {"nvit": "attention pooling"}),
        ("ResNet", {"nvit": "it is a ResNet", "asp": "no Linear layer"}),
    ],
)
def test_cells_of_a_family(
    family: str, refused: dict[str, str], tmp_path: Path
) -> None:
    found = cells(family, tmp_path)
    for name, made in found.items():
        assert made.status == ("refuses" if name in refused else "works"), made
        assert refused.get(name, "") in made.reason


def test_a_fault_is_neither_works_nor_a_refusal(tmp_path: Path) -> None:
    def wrong(case: Case) -> None:
        raise KeyError("head")

    def refuses(case: Case) -> None:
        raise Refused("model 'x'\n is too large")

    tried = case("ViT", tmp_path)
    assert cell(tried, Column("", "", wrong)).status == "broken"
    assert cell(tried, Column("", "", refuses)).reason == "model 'x' is too large"


def test_a_row_is_resumed_where_it_broke_off(tmp_path: Path) -> None:
    row = Row.read(tmp_path, FAMILIES[0])
    row.write("train")
    row.write("train", Cell("works", "", 1.0))
    row.write("codec")
    row.write("codec", Cell("broken", "KeyError: 'head'"))
    row.write("macs")
    again = Row.read(tmp_path, FAMILIES[0])
    assert again.begun == "macs"
    assert {"codec", "macs"} <= set(again.missing())
    assert "train" not in again.missing()


FEW = {
    "pwfn",
    "int8",
    "prune_channels",
    "low_rank",
    "token_merging",
    "wave",
    "sweet",
}
"""Columns that were tried on a few families so far."""


def recorded() -> dict[str, Any]:
    rows: dict[str, Any] = json.loads(RESULTS.read_text())
    return rows


def test_cells_that_were_not_tried_again_stay() -> None:
    works, fails = ["works", ""], ["broken", "why"]
    known = {
        "ViT": {"kind": "vit", "cells": {"nvit": fails, "asp": works, "gone": works}},
        "no family any more": {"cells": {"asp": works}},
    }
    found = {
        "ViT": {"kind": "vit", "cells": {"nvit": works}},
        "ResNet": {"kind": "cnn", "cells": {"asp": works}},
    }
    assert merged(known, found) == {
        "ViT": {"kind": "vit", "cells": {"nvit": works, "asp": works}},
        "ResNet": {"kind": "cnn", "cells": {"asp": works}},
    }


def test_the_page_shows_what_was_recorded() -> None:
    text = PAGE.read_text()
    assert page(text, recorded(), COLUMNS) == text
    assert text.count(FENCE[0]) == 1


def test_the_record_has_forty_whole_rows_and_no_broken_cell() -> None:
    rows = recorded()
    families = {family.name: family for family in FAMILIES}
    assert list(rows) == [name for name in families if name in rows]
    older = COLUMNS.keys() - FEW
    assert sum(row["cells"].keys() >= older for row in rows.values()) >= 40
    for name, row in rows.items():
        family = families[name]
        assert (row["model"], row["args"]) == (family.model, family.args)
        assert row["cells"].keys() <= COLUMNS.keys()
    found = [cell for row in rows.values() for cell in row["cells"].values()]
    assert {status for status, _ in found} <= {"works", "refuses"}
    for status, reason in found:
        assert (status == "refuses") == bool(reason)
        assert "\n" not in reason
        assert "\x1b" not in reason


def test_a_page_counts_its_cells() -> None:
    rows = {
        "A": {
            "kind": "K",
            "model": "a_1",
            "cells": {
                "train": ["works", ""],
                "nvit": ["refuses", "a_1: no"],
                "codec": ["broken", "KeyError"],
            },
        },
        "B": {"kind": "K", "model": "b_2", "cells": {"nvit": ["refuses", "b_2: no"]}},
    }
    chosen = {name: COLUMNS[name] for name in ("train", "nvit", "codec")}
    made = page(f"above\n{FENCE[0]}{FENCE[1]}\nbelow", rows, chosen)
    assert made.startswith("above\n")
    assert made.endswith("\nbelow")
    assert "1 cells work, 2 are refused, 1 are broken, 2 are yet to be tried" in made
    assert "| A | `a_1` | ✓ | – [1](#refusals) | ✗ [2](#refusals) |" in made
    assert "| B | `b_2` | ? | – [1](#refusals) | ? |" in made
    assert "1. MODEL: no" in made


@pytest.mark.slow
@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_every_cell_is_as_recorded(family: str, tmp_path: Path) -> None:
    tried = case(family, tmp_path)
    known = recorded().get(family, {"cells": {}})["cells"]
    for name, column in COLUMNS.items():
        made = cell(tried, column)
        status, _ = known.get(name, (made.status, ""))
        assert made.status == status != "broken", (name, made)
