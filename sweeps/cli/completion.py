"""What a shell offers at TAB: names of presets, run folders and trials.

A shell waits for it, so nothing heavy is imported and no file is read. Where nothing fits, the
shell completes paths by itself.
"""

from importlib import resources
from pathlib import Path

import typer

RUNS = Path("runs")
"""Where a run folder lies unless a spec says otherwise."""


def specs(incomplete: str) -> list[str]:
    """Names of the shipped specs."""
    files = [entry.name for entry in resources.files("sweeps.presets").iterdir()]
    names = [name.removesuffix(".yaml") for name in files if name.endswith(".yaml")]
    return _beginning(incomplete, names)


def runs(incomplete: str) -> list[str]:
    """Names of run folders."""
    folders = RUNS.iterdir() if RUNS.is_dir() else ()
    names = [folder.name for folder in folders if (folder / "run.json").exists()]
    return _beginning(incomplete, names)


def trials(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ids of the run's trials."""
    given = Path(str(ctx.params.get("run") or ""))
    folder = (given if given.is_dir() else RUNS / given) / "trials"
    names = [each.name for each in folder.iterdir()] if folder.is_dir() else []
    return _beginning(incomplete, names)


def _beginning(incomplete: str, names: list[str]) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))
