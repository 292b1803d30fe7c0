"""What processes leave behind that were killed: half-written files and folders, beside their place.

A file or folder that is to be renamed when it is whole has a hidden name until then, which ends in
a tag of its process. So the next process knows what nobody will finish: on this host a process that
is gone, elsewhere something that has not changed for a day.
"""

import contextlib
import hashlib
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from trainers.processes import process_exists

_TAG = re.compile(r"[.-]([0-9a-f]{6})-([0-9]+)-[0-9a-f]{8}(?:\.tmp)?$")
_UNTAGGED = re.compile(r"\.(?:probe|new|damaged)-[0-9a-f]+$|\..+\.tmp$")
"""Names that earlier versions gave, and `analysis.files`."""
SILENT_SECONDS = 86_400.0
"""What nobody has written to for so long will not be finished."""


def tag() -> str:
    """The end of a hidden name: host, process, and something that no other name has."""
    return f"{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


@cache
def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


def is_leftover(name: str, age_seconds: float) -> bool:
    """Whether a file or folder of that name will not be finished.

    Args:
        age_seconds: since it last changed, by the clock of its file system.
    """
    if not name.startswith("."):
        return False
    if is_of_gone_process(name):
        return True
    found = _TAG.search(name)
    if found is not None and found[1] == _host():
        return False
    is_ours = found is not None or _UNTAGGED.match(name) is not None
    return is_ours and age_seconds > SILENT_SECONDS


def is_of_gone_process(name: str) -> bool:
    """Whether a name has the tag of a process of this host that is gone."""
    found = _TAG.search(name)
    here = found is not None and found[1] == _host()
    return found is not None and here and not process_exists(int(found[2]))


def remove_leftovers(folder: Path, *, below: bool = False) -> int:
    """Remove what killed processes left in a folder; nothing that a living one still writes.

    Args:
        below: in all folders below it too. Links are not followed.

    Returns:
        How many files and folders were removed.
    """
    count = 0
    if not folder.is_dir():
        return count
    now = _clock_of(folder)
    for path in _hidden(folder, below):
        with contextlib.suppress(OSError):  # another process was quicker
            if not is_leftover(path.name, now - path.lstat().st_mtime):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            count += 1
    return count


def _hidden(folder: Path, below: bool) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        hidden = [name for name in folders if name.startswith(".")]
        yield from (Path(place, name) for name in hidden)
        yield from (Path(place, name) for name in files if name.startswith("."))
        folders[:] = [name for name in folders if name not in hidden] if below else []


def _clock_of(folder: Path) -> float:
    """Now, as the file system has it: clocks of nodes and file servers differ."""
    probe = folder / f".probe-{tag()}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
