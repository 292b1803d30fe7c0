"""Files that are whole or absent."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from trainers.leftovers import tag

_VARIABLE = re.compile(r"\$([A-Za-z_]\w*|\{[A-Za-z_]\w*\})")
_WINDOWS_PATIENCE_SECONDS = 2.0


def write_atomic(path: Path, content: bytes) -> None:
    """Write beside `path`, flush to disk, rename over it. Readers see the old file or the
    new one.
    """
    with _beside(path) as file:
        file.write(content)


def copy_atomic(source: Path, path: Path) -> None:
    """Copy a file of any size to `path` as `write_atomic` writes one."""
    with _beside(path) as file, open(source, "rb") as given:
        shutil.copyfileobj(given, file, 2**20)


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{tag()}.tmp")
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write files to, which becomes `folder` when the block ends without an error; one
    that another process made meanwhile stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{tag()}.tmp")
    beside.mkdir()
    try:
        yield beside
        for path in beside.iterdir():
            flush_to_disk(path)
        try:
            beside.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _replace(source: Path, target: Path) -> None:
    """`os.replace`; on Windows it waits for a reader that has `target` open."""
    deadline = time.monotonic() + _WINDOWS_PATIENCE_SECONDS
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if sys.platform != "win32" or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def flush_to_disk(path: Path) -> None:
    """Make sure that a file's content survives a loss of power."""
    with open(path, "r+b") as file:  # Windows flushes only what is open for writing
        os.fsync(file.fileno())


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


DEEPEST_JSON = 100
"""Levels of a JSON text that is read: code that walks what it says calls itself so often."""


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    too_deep = f"it is nested more than {DEEPEST_JSON} levels deep"
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(too_deep) from None
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEEPEST_JSON):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return value
    raise ValueError(too_deep)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is none that is whole."""
    try:
        value = parse_json(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def expanded(text: str) -> str:
    """A path as a shell reads it: `~` at its start is the home folder, `$NAME` and `${NAME}` are
    environment variables. YAML, and a shell after `=`, leave them as they are.

    Raises:
        ValueError: an environment variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1].strip("{}")
        if name not in os.environ:
            raise ValueError(
                f"{text}: the environment variable {name} is not set; set it, or write the"
                " path out"
            )
        return os.environ[name]

    found = _VARIABLE.sub(value, text)
    if found.startswith("~"):
        with contextlib.suppress(
            RuntimeError
        ):  # no such user: a name that begins with ~
            found = str(Path(found).expanduser())
    return found


def user_cache() -> Path:
    """The user's folder for what can be computed again: `$XDG_CACHE_HOME` or `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(expanded(base)) / "compression-sweeps"


def default_data_cache() -> Path:
    """Where decoded images are kept: `$SWEEPS_DATA_CACHE`, or a folder of the user's cache."""
    base = os.environ.get("SWEEPS_DATA_CACHE")
    return Path(expanded(base)) if base else user_cache()


GIT_LFS = b"version https://git-lfs"
"""How the pointer begins that Git LFS leaves in place of a file."""

_NOT_THE_FILE = {
    GIT_LFS: "is a Git LFS pointer; `git lfs pull` fetches the file",
    b"<!doctype": "is a web page, not the file; download it again",
    b"\x1f\x8b": "is compressed as a whole with gzip; unpack it",
    b"<html": "is a web page, not the file; download it again",
}


def why_not_the_file(path: Path) -> str | None:
    """What `path` holds in place of a file that was meant: nothing, a Git LFS pointer, a web page;
    None if it is none of these. The text completes "path …" and says the remedy.
    """
    with open(path, "rb") as file:
        start = file.read(32).lstrip().lower()
    if path.stat().st_size == 0:
        return "is empty (0 bytes); fetch it again"
    known = (text for mark, text in _NOT_THE_FILE.items() if start.startswith(mark))
    return next(known, None)
