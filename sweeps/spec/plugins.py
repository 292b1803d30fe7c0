"""The plugins that a spec names: read, so that they can travel, and loaded."""

from collections.abc import Sequence
from pathlib import Path

from sweeps.spec.yaml_text import SpecError, Tree
from trainers import plugins
from trainers.files import expanded
from trainers.plugins import PluginFile


def plugins_of(raw: Tree) -> tuple[PluginFile, ...]:
    """The plugins that a spec's plain values name; nothing of them is executed.

    Raises:
        SpecError: `plugins` is no list of texts, or one of them is not there.
    """
    entries = raw.get("plugins") or []
    if not isinstance(entries, list | tuple) or not all(
        isinstance(entry, str) for entry in entries
    ):
        raise SpecError(
            f"plugins: a list of .py files and of modules (lab.stages); got {entries!r}"
        )
    return read_plugins(entries)


def read_plugins(
    entries: Sequence[str], folder: Path = Path()
) -> tuple[PluginFile, ...]:
    """Read plugins; paths are relative to `folder`.

    Raises:
        SpecError: one of them is not there.
    """
    try:
        return tuple(plugins.read(entry, folder) for entry in entries)
    except ValueError as error:
        raise SpecError(str(error)) from error


def load_plugins(files: Sequence[PluginFile]) -> None:
    """Execute plugins, so that specs can name what they offer.

    Raises:
        SpecError: one that cannot be imported, that offers nothing of use, or that takes a
            name of ours.
    """
    if not files:
        return
    from compress.metrics import metrics
    from compress.pipeline import stages
    from trainers.data.open import openers
    from trainers.training.epoch_metrics import epoch_metrics

    try:
        plugins.load(files)
        for names in (stages, metrics, openers, epoch_metrics):
            names()
    except ValueError as error:
        raise SpecError(str(error)) from error


def absolute_entries(raw: Tree, folder: Path) -> Tree:
    """The spec with paths of plugin files made absolute; they are relative to `folder`."""
    entries = raw.get("plugins")
    if not isinstance(entries, list):
        return raw
    found = [_absolute(entry, folder) for entry in entries]
    return raw | {"plugins": found}


def _absolute(entry: object, folder: Path) -> object:
    if not isinstance(entry, str) or not plugins.is_path(entry):
        return entry
    return str((folder / expanded(entry)).absolute())
