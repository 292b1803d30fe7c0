"""Rows of a table that takes long, in a Parquet file that is written after each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd


class KeptRows:
    """The rows of a file, so that a command that was stopped goes on where it was.

    Args:
        file: where they are; it need not exist.
        key: columns that tell a row from all others.
    """

    def __init__(self, file: Path, key: Sequence[str]) -> None:
        self.file = file
        self.key = key
        self.rows: list[dict[Any, Any]] = []
        if file.exists():
            self.rows = pd.read_parquet(file).to_dict("records")

    def has(self, *values: Any) -> bool:
        """Whether there is a row with these values of the key."""
        return any(tuple(row[k] for k in self.key) == values for row in self.rows)

    def add(self, row: dict[Any, Any]) -> None:
        """Print a row and write the file with it."""
        self.rows.append(row)
        print(row, flush=True)
        pd.DataFrame(self.rows).to_parquet(self.file, index=False)
