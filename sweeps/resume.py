"""What may change between the parts of a sweep that was interrupted, and how it is taken up
again.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from analysis.contract import BASELINE, RUN_FILE
from sweeps.check import check_spec
from sweeps.run.folder import trial_folder
from sweeps.run.record import TrialRecord, trial_records
from sweeps.run.storage import local_folder
from sweeps.space.overrides import apply_overrides
from sweeps.space.slots import is_slot
from sweeps.space.sweep import Sweep
from sweeps.spec.load import spec_from
from sweeps.spec.model import Spec
from sweeps.spec.yaml_text import SpecError
from trainers import plugins
from trainers.files import read_json

FREE = (
    "title",
    "search.trials",
    "search.hours",
    "search.gpu_hours",
    "search.images",
    "search.epoch_seconds",
    "search.stop_when",
    "search.space",
    "search.points",
    "search.sampler",
    "search.sampler_options",
    "search.cost",
    "search.max_failures",
    "search.early_stopping",
    "search.from",
    "search.race",
    "search.refine",
    "resources",
    "trackers",
    "plugins",
    "storage",
)
"""What decides how much is searched, where and with what; no finished trial means anything
else by it.
"""


def changed_keys(old: dict[str, Any], new: Spec) -> list[str]:
    """Dotted keys in which a run's spec and `new` differ, without those that are free to.

    A slot may gain and lose alternatives; those that stay must stay as they are.

    Raises:
        SpecError: the run's spec is not valid any more.
    """
    try:
        before = spec_from(old).raw
    except SpecError as error:
        raise SpecError(
            f"the run's own spec is not valid with this version: {error}"
        ) from error
    return [
        key
        for key in _differences(before, new.raw, "")
        if not key.startswith(tuple(f"{f}." for f in FREE))
    ]


def _differences(old: Any, new: Any, place: str) -> Iterator[str]:
    """Dotted places, each with a closing dot."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys: Sequence[str] = list(dict.fromkeys([*old, *new]))
        if is_slot(old) and is_slot(new):
            old, new = old["one_of"], new["one_of"]
            keys = [key for key in old if key in new]
        for key in keys:
            if key not in old or key not in new:
                yield f"{place}{key}."
            else:
                yield from _differences(old[key], new[key], f"{place}{key}.")
    elif old != new:
        yield place


def refuse_changes(run: Path, old: dict[str, Any], new: Spec) -> None:
    """Let a run go on only with what its finished trials mean.

    Raises:
        SpecError: names every key that differs.
    """
    changed = changed_keys(old, new)
    if changed:
        names = ", ".join(key.removesuffix(".") for key in changed)
        raise SpecError(
            f"{run} holds another sweep: {names}"
            f" differ{'s' if len(changed) == 1 else ''}, which would change what its"
            " finished trials mean; choose another name, or give --overwrite"
        )


def refuse_changed_plugins(run: Path) -> None:
    """Let a run go on only with the plugins that its trials used.

    Raises:
        SpecError: names the first one that is missing or has changed.
    """
    recorded: dict[str, str] = {}
    for record in trial_records(run):
        recorded |= record.plan.plugins
    try:
        plugins.require_unchanged(recorded)
    except ValueError as error:
        raise SpecError(f"{run}: {error}") from error


def resumed_spec(run: Path, overrides: Sequence[str], *, local: bool = True) -> Sweep:
    """The checked spec with which a run goes on: its own, with changes of budget and space.

    Raises:
        SpecError: a change of anything else (names the keys), or a spec that does not hold.
    """
    header = read_json(run / RUN_FILE)
    if header is None or not isinstance(header.get("spec"), dict):
        raise SpecError(f"{run}: its {RUN_FILE} cannot be read")
    old = header["spec"]
    before = spec_from(old).raw
    raw = apply_overrides(before, overrides)
    moved = local_folder(before["storage"]).absolute() != run.parent
    spec = spec_from(raw | ({"storage": str(run.parent)} if moved else {}))
    changed = changed_keys(old, spec)
    if changed:
        names = ", ".join(key.removesuffix(".") for key in changed)
        raise SpecError(
            f"resume: {names} would change what the finished trials of {run} mean; "
            f"what may change: {', '.join(FREE[:-1])}, and alternatives of a slot"
        )
    if spec.name != run.name:
        raise SpecError(
            f"{run}: the folder of the sweep {spec.name!r} was renamed; give it its"
            " name back"
        )
    return check_spec(spec, local=local)


def reopen(run: Path, status: Literal["failed", "pruned"]) -> int:
    """Let trials that ended like this run again, under their numbers; how many there are."""
    count = 0
    baseline = TrialRecord.read(trial_folder(run, BASELINE))
    for record in chain(trial_records(run), [baseline]):
        if record is not None and record.status == status:
            record.reopen(f"to be run again: it was {status}")
            count += 1
    return count
