"""Tables of a document that are queries over Parquet files in the repository: checked, and written.

In Markdown, a comment says where a table comes from, and the table follows it:

    <!-- table trials=results/demo.parquet
    select init as "initialisation", printf('%.1f %%', 100 * avg(accuracy)) as "accuracy"
    from trials group by 1 -->
    | initialisation | accuracy |
    |---|---|
    | random | 91.2 % |

Paths are relative to the folder of the command. Cells are what DuckDB returns, as text;
numbers are best formatted in the query, so that the document holds the same digits
everywhere.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from analysis.files import write_text
from analysis.queries import select

_BLOCK = re.compile(
    r"(<!-- table (?P<sources>[^\n]+)\n(?P<sql>.*?)-->\n)(?P<table>(?:\|[^\n]*\n)*)",
    re.DOTALL,
)


def render(text: str, root: Path) -> str:
    """The document with every table made anew.

    Raises:
        ValueError: a source that is not name=path, a file that is none, or a query that
            DuckDB refuses.
    """
    return _BLOCK.sub(
        lambda found: (
            found[1] + markdown_table(_result(found["sources"], found["sql"], root))
        ),
        text,
    )


def _result(sources: str, sql: str, root: Path) -> pd.DataFrame:
    tables = {}
    for source in sources.split():
        name, equals, path = source.partition("=")
        if not equals or not (root / path).is_file():
            raise ValueError(
                f"table source {source!r}: write name=path of a Parquet file that is"
                " there"
            )
        tables[name] = pq.read_table(root / path)
    return select(tables, sql)


def markdown_table(rows: pd.DataFrame) -> str:
    """A Markdown table of text; numeric columns are right-aligned, what is missing is empty."""
    right = [pd.api.types.is_numeric_dtype(kind) for kind in rows.dtypes]
    cells = [
        [_cell(value) for value in row]
        for row in rows.astype(object).itertuples(index=False)
    ]
    lines = [
        list(map(_cell, rows.columns)),
        ["---:" if r else "---" for r in right],
        *cells,
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: object) -> str:
    if pd.isna(value):  # type: ignore[call-overload]
        return ""
    return str(value).replace("|", "\\|").replace("\n", " ")


def main(arguments: Sequence[str] | None = None) -> int:
    """Check documents, or write their tables; exit code 1 where a table differs."""
    parser = argparse.ArgumentParser(
        description="check the tables of documents against their Parquet files"
    )
    parser.add_argument("documents", nargs="+", type=Path)
    parser.add_argument(
        "--write",
        action="store_true",
        help="write the tables instead of comparing them",
    )
    given = parser.parse_args(arguments)
    differing = 0
    for document in given.documents:
        text = document.read_text(encoding="utf-8")
        made = render(text, Path.cwd())
        if made == text:
            continue
        if given.write:
            write_text(document, made)
            continue
        differing += 1
        lines = difflib.unified_diff(
            text.splitlines(),
            made.splitlines(),
            str(document),
            "its Parquet files",
            lineterm="",
            n=1,
        )
        print("\n".join(lines))
    tables = sum(
        len(_BLOCK.findall(d.read_text(encoding="utf-8"))) for d in given.documents
    )
    print(
        f"{tables} tables in {len(given.documents)} documents: "
        + ("they differ" if differing else "all as published")
    )
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
