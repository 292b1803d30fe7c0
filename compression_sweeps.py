"""Entry point of the command `sweeps`, in a module whose name no other distribution has.

Our packages have plain names, and another distribution may have a package of the same name:
`sweeps` is one on PyPI. Installed later, it replaces our files; earlier on the path, it hides
them. Then the command says so in one line, where an import error would only name a module.
"""

import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

DISTRIBUTION = "compression-sweeps"
PACKAGES = ("analysis", "compress", "sweeps", "trainers")
MARK = "DISTRIBUTION"
"""What `sweeps/__init__.py` has, so that another file in its place is noticed."""


def hidden_package() -> str | None:
    """A line about the first of our packages that is not ours here; None if all are."""
    here = Path(__file__).resolve().parent
    for name in PACKAGES:
        spec = find_spec(name)
        place = _folder(spec)
        if place == here / name and (name != "sweeps" or _is_marked()):
            continue
        if place is None:
            return (
                f"the package {name!r} of {DISTRIBUTION} is not installed; reinstall it:"
                f" pip install --force-reinstall --no-deps {DISTRIBUTION}"
            )
        owners = packages_distributions().get(name, [])
        others = sorted({owner for owner in owners if owner != DISTRIBUTION})
        owner = f"the distribution {others[0]}" if others else "something else"
        remedy = (
            f"pip uninstall {others[0]}, then"
            f" pip install --force-reinstall --no-deps {DISTRIBUTION}"
            if others
            else "remove it from the path, or run `sweeps` from an environment without it"
        )
        return (
            f"the package {name!r} in {place} belongs to {owner}, and hides that of"
            f" {DISTRIBUTION}; {remedy}"
        )
    return None


def _folder(spec: ModuleSpec | None) -> Path | None:
    """The folder of a package; of a plain module, its file."""
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin or spec.name).resolve()


def _is_marked() -> bool:
    import sweeps

    return getattr(sweeps, MARK, None) == DISTRIBUTION


def main() -> None:
    """The command `sweeps`."""
    line = hidden_package()
    if line is not None:
        sys.exit(f"error {line}")
    from sweeps.cli.main import main as run

    run()
