"""Which code a record was made with."""

import hashlib
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

_PACKAGES = ("sweeps", "compress", "trainers", "analysis")


@lru_cache(maxsize=1)
def code_version() -> dict[str, Any]:
    """{"sha256" of all our source files, "commit" of the checkout and whether it is
    "dirty"; None without git}.
    """
    root = Path(__file__).resolve().parent.parent.parent
    digest = hashlib.sha256()
    for path in sorted(p for name in _PACKAGES for p in (root / name).rglob("*.py")):
        digest.update(
            f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes()
        )
    commit = _git(root, "rev-parse", "HEAD")
    changes = (
        _git(root, "status", "--porcelain", "--", *_PACKAGES)
        if commit is not None
        else None
    )
    return {
        "sha256": digest.hexdigest(),
        "commit": commit,
        "dirty": None if changes is None else bool(changes),
    }


def _git(root: Path, *arguments: str) -> str | None:
    """What git says of our own checkout; None where there is none."""
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
