"""What may change between the parts of a sweep that was interrupted, and how it is taken up
again.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from analysis.contract import BASELINE, RUN_FILE
from sweeps.check import check_spec
from sweeps.run.folder import refuse_links, trial_folder
from sweeps.run.record import TrialRecord, trial_records
from sweeps.run.storage import RunStorage, local_folder
from sweeps.space.overrides import apply_overrides
from sweeps.space.slots import is_slot
from sweeps.space.sweep import Sweep
from sweeps.spec.load import spec_from
from sweeps.spec.model import Spec
from sweeps.spec.yaml_text import SpecError
from trainers import plugins
from trainers.config import DataConfig
from trainers.data.fingerprint import PresentData, present_data
from trainers.files import read_json
from trainers.models.source import load_source
from trainers.seeding import derive_seed

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


def refuse_changed_plugins(run: Path, records: Iterable[TrialRecord]) -> None:
    """Let a run go on only with the plugins that its trials used.

    Args:
        records: of all its trials.

    Raises:
        SpecError: names the first one that is missing or has changed.
    """
    recorded: dict[str, str] = {}
    for record in records:
        recorded |= record.plan.plugins
    try:
        plugins.require_unchanged(recorded)
    except ValueError as error:
        raise SpecError(f"{run}: {error}") from error


@dataclass(frozen=True)
class _Change:
    """What of a trial's inputs is not what it was: its place in the spec, in words, and both
    hashes.
    """

    place: str
    what: str
    now: str
    then: str


def refuse_changed_inputs(
    run: Path, records: Iterable[TrialRecord], data_cache: Path
) -> None:
    """Let a run go on only with the data and source models that its complete trials had.

    Of trials with the same inputs one is looked at, and no more is read than it has read itself.
    Data and models that are not here (any more) are compared with nothing: they are of trials
    whose configuration the space has lost, or of another node, and a trial that needs them fails
    by itself.

    Args:
        records: of all its trials.
        data_cache: where hashes of large files are remembered.

    Raises:
        SpecError: names what has changed since which trial.
    """
    present: dict[DataConfig, PresentData | None] = {}
    for record in _distinct_inputs(run, records):
        config = record.plan.data
        if config not in present:
            present[config] = _present(config, data_cache)
        data = present[config]
        change = None if data is None else _change(record, data)
        if change is not None:
            raise SpecError(
                f"{change.place}: {change.what} changed since trial {record.trial_id} of {run}"
                f" ended (hash {change.now[:12]} now, {change.then[:12]} then), so that new"
                " trials could not be compared with it; begin anew under another name, in another"
                " folder or with --overwrite, or put the old files back"
            )


def _distinct_inputs(run: Path, records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Of all complete trials with the same inputs, as planned and as found, the first."""
    found: dict[tuple[str, ...], TrialRecord] = {}
    baseline = TrialRecord.read(trial_folder(run, BASELINE))
    for record in chain([] if baseline is None else [baseline], records):
        inputs, plan = record.outcome.inputs, record.plan
        # before version 0.1 none were recorded
        if record.status == "complete" and {"data", "source"} <= inputs.keys():
            given = plan.data.model_dump_json(), plan.source.model_dump_json()
            found.setdefault((*given, inputs["data"], inputs["source"]), record)
    return list(found.values())


def _present(config: DataConfig, data_cache: Path) -> PresentData | None:
    """The data as they are now; None where they are not here."""
    try:
        return present_data(config, data_cache)
    except (ValueError, OSError):
        return None


def _change(record: TrialRecord, data: PresentData) -> _Change | None:
    """What of a complete trial's inputs is not what it was; None where all is."""
    plan, then = record.plan, record.outcome.inputs
    if then["data"] not in data.fingerprints:
        root, name = plan.data.root, plan.data.dataset
        place, what = ("data", name) if root is None else ("data.root", f"{root}")
        # which of the two it would be shows only when all images are decoded
        now = data.fingerprints[0]
        return _Change(place, f"the data in {what} have", now, then["data"])
    source = plan.source
    if source.checkpoint is None and not source.pretrained:
        return None  # the seed decides, and the libraries
    try:
        model = load_source(
            source,
            num_classes=data.num_classes,
            image_size=data.image_size,
            seed=derive_seed(plan.seed, "source"),
        )
    except (ValueError, OSError):  # it is not here
        return None
    now = model.hash()
    if now == then["source"]:
        return None
    if source.checkpoint is None:
        place, what = "source.model", f"the pretrained weights of {source.model} have"
    else:
        place, what = "source.checkpoint", f"the model in {source.checkpoint} has"
    return _Change(place, what, now, then["source"])


def taken_up(
    sweep: Sweep, storage: RunStorage, data_cache: Path, *, overwrite: bool
) -> dict[str, Any] | None:
    """What a sweep's run folder says of itself, where the sweep may go on in it; None where it
    begins.

    Args:
        data_cache: where hashes of large files are remembered.
        overwrite: delete what the folder holds, if it is a run.

    Raises:
        SpecError: the folder holds something else, or what its trials mean has changed.
    """
    run = storage.run
    earlier = read_json(run / RUN_FILE)
    if earlier is None and run.exists() and any(run.iterdir()):
        raise SpecError(
            f"storage/name: {run} exists and is not a run; choose another name"
        )
    refuse_links(run)
    if earlier is None:
        return None
    if overwrite:
        storage.delete()
        return None
    refuse_changes(run, earlier.get("spec", {}), sweep.spec)
    records = list(trial_records(run))  # of thousands, reading them takes seconds
    refuse_changed_plugins(run, records)
    refuse_changed_inputs(run, records, data_cache)
    return earlier


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
