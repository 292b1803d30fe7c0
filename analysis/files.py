"""Files written whole or not at all, and only within the run folder that they belong to.

`trainers.files` writes the same way for the layers that may import it; this package imports none
of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def inside(run: Path, path: Path) -> Path:
    """`path`, which is about to be written or removed, if it lies in the run folder `run`.

    A run folder of somebody else may hold links that lead out of it.

    Raises:
        ValueError: a link on the way leads elsewhere.
    """
    if not path.resolve().is_relative_to(run.resolve()):
        raise ValueError(
            f"{path}: a link leads out of the run folder to {path.resolve()}, where nothing of"
            " this run is written; remove the link"
        )
    return path


def atomic_write(path: Path, write: Callable[[Any], object]) -> None:
    """Let `write` fill a file beside `path`, then rename it to `path`, so that readers see
    the old or the new. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """A file, written whole or not at all. Raises OSError."""
    atomic_write(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    """A text file, written whole or not at all. Raises OSError."""
    write_bytes(path, text.encode("utf-8"))
