"""The card beside an exported model: what it is, what it was made of, what it measures, and
under which licence.

Front matter as Hugging Face's hub reads it, then the same for people. Text from the run
goes into code spans.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import JsonValue

from analysis.contract import LATENCY_FILE, RUN_FILE, SEARCH_PREFIX, TEST_PREFIX
from analysis.header import heading_of_run, metrics_of_run
from analysis.metrics import Metrics, on_test_set
from analysis.report.markdown import code
from compress.measure.options import RuntimeOptions
from compress.pipeline import stages
from compress.runtimes.registry import runtime
from sweeps.run.folder import trial_folder
from sweeps.run.record import TrialRecord, named_record
from trainers.config import DataConfig, SourceConfig
from trainers.files import read_json, sha256_file, write_atomic
from trainers.models.arch import ModelState
from trainers.timm_library import timm
from trainers.training.epoch_metrics import epoch_metrics

UNKNOWN = "unknown"
CODE_LICENCE = "Apache-2.0"
_MOST_DIMS = 500
"""Characters of a model's dimensions that a person may still read; a CNN whose channels were cut
and which computes in integers has thousands.
"""


@dataclass(frozen=True)
class About:
    """What the card says of the file itself.

    Attributes:
        format_name: as it was asked for.
        library: what loads it, as Hugging Face's hub names that.
        usage: Python that loads it.
        options: how its runtime executes it, if one of ours does.
        licence: SPDX identifier that was given for the weights.
    """

    format_name: str
    library: str
    usage: str
    options: RuntimeOptions | None
    licence: str | None


def write_card(
    folder: Path,
    run: Path,
    trial_id: str,
    state: ModelState,
    about: About,
    input_shape: Sequence[int | str],
    difference: float,
    accuracy: float | None,
) -> None:
    """Write `README.md` about the other files of `folder`.

    Args:
        difference: the largest that was seen of a logit.
        accuracy: of the validation part through the file, if that was asked for.
    """
    record = named_record(run, trial_id)
    source = _source_licence(record.plan.source)
    name = f"{heading_of_run(run)}, trial {record.trial_id}"
    chosen = about.licence or source or UNKNOWN
    header = yaml.safe_dump(
        _front_matter(run, record, about.library, chosen),
        sort_keys=False,
        allow_unicode=True,
    )
    metrics = _latest_metrics(run, record)
    blocks = [
        f"---\n{header}---",
        f"# {code(name)}",
        _model(state, input_shape),
        "## Use",
        f"```python\n{about.usage}\n```",
        _input(record.plan.data, input_shape),
        "## As deployed",
        _deployed(record, about, metrics, folder, accuracy),
        "## Method",
        _method(record),
        "## Data",
        _data(run, record),
        "## Metrics",
        _metrics(run, metrics),
        "## How it was made",
        _made(run, record),
        "## Licence",
        _licences(chosen, source, about.licence),
        "## Files",
        _files(folder, about.format_name, difference),
    ]
    write_atomic(
        folder / "README.md", ("\n\n".join(blocks) + "\n").encode("utf-8", "replace")
    )


def _deployed(
    record: TrialRecord,
    about: About,
    metrics: Mapping[str, Any],
    folder: Path,
    accuracy: float | None,
) -> str:
    """Accuracy, latency and size of the file in the runtime that executes it."""
    lines = []
    if about.options is not None:
        lines = _in_runtime(record, about.options, metrics)
    if accuracy is not None:
        lines.append(
            f"accuracy {accuracy:.4f} of the validation part, of this very file"
        )
    size = sum(path.stat().st_size for path in folder.iterdir())
    lines.append(f"size {size:,} bytes, all files together")
    return "\n".join(f"- {line}" for line in lines)


def _in_runtime(
    record: TrialRecord, options: RuntimeOptions, metrics: Mapping[str, Any]
) -> list[str]:
    """What the trial measured in this runtime."""
    title = runtime(options.runtime).title
    runtimes = record.plan.measure.runtimes
    prefix = next((p for p, known in runtimes.items() if known == options), None)
    if prefix is None or f"{prefix}latency_ms" not in metrics:
        return [f"the trial was not measured in {title}; it is written in float32"]
    device = record.machine.device if record.machine else None
    threads = options.threads or (device.threads if device else "?")
    found = {
        name: metrics.get(prefix + name)
        for name in (
            *("latency_ms", "latency_p25_ms", "latency_p75_ms", "latency_ratio"),
            *("runtime_accuracy", "latency_dtype"),
        )
    }
    lines = [f"in {title}, which computes in {code(found['latency_dtype'])}:"]
    latency = (
        f"latency {found['latency_ms']:.4g} ms (quartiles {found['latency_p25_ms']:.4g}"
        f" to {found['latency_p75_ms']:.4g}) for a batch of {options.batch_size},"
        f" {threads} {'thread' if threads == 1 else 'threads'} of"
        f" {code(device.name if device else UNKNOWN)}"
    )
    if found["latency_ratio"] is not None:
        latency += f"; {found['latency_ratio']:.3g} of the source model's"
    lines.append(latency)
    if found["runtime_accuracy"] is not None:
        lines.append(
            f"accuracy {found['runtime_accuracy']:.4f} of the validation part, measured"
            " in the trial"
        )
    return lines


def _front_matter(
    run: Path, record: TrialRecord, library: str, licence: str
) -> dict[str, JsonValue | list[Any]]:
    dataset = record.plan.data.dataset
    measured = [
        metric.name for metric in epoch_metrics().values() if metric.on_validation
    ]
    parts = [("validation part", measured), ("test set", map(on_test_set, measured))]
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {"name": f"{dataset}, {part}", "type": dataset},
            "metrics": found,
        }
        for part, names in parts
        if (found := _results(record, names))
    ]
    return {
        "license": licence.lower(),
        "library_name": library,
        "pipeline_tag": "image-classification",
        "tags": [*dict.fromkeys(stage.kind for stage in record.plan.stages)],
        "datasets": [dataset],
        "model-index": [
            {
                "name": f"{heading_of_run(run)}, trial {record.trial_id}",
                "results": results,
            }
        ],
    }


def _results(record: TrialRecord, names: Iterable[str]) -> list[dict[str, JsonValue]]:
    """The metrics of a part of the data, as the hub names and reads them."""
    metrics = record.outcome.metrics
    return [
        {"type": name.removeprefix(TEST_PREFIX), "value": metrics[name]}
        for name in names
        if name in metrics
    ]


def _model(state: ModelState, input_shape: Sequence[int | str]) -> str:
    weights = sum(tensor.numel() for tensor in state.weights.values())
    args = ", ".join(f"{key}={value}" for key, value in state.arch.args.items())
    dims = code(state.arch.dims) if state.arch.dims else ""
    if dims:
        dims = f"; dimensions of its blocks: {dims}" if len(dims) <= _MOST_DIMS else ""
    images, logits = (
        ", ".join(map(str, input_shape)),
        f"batch, {state.arch.args.get('num_classes')}",
    )
    return (
        f"An image classifier: {code(state.arch.name)} ({code(args)}), {weights:,}"
        f" values in {len(state.weights)} tensors{dims}. Images float32 ({images}) to"
        f" logits float32 ({logits})."
    )


def _input(data: DataConfig, shape: Sequence[int | str]) -> str:
    mean, std = list(data.mean), list(data.std)
    normalised = (
        f"minus mean {code(mean)}, divided by standard deviation {code(std)}"
        if mean and std
        else "normalised as in training"
    )
    return (
        f"Images are RGB in [0, 1], resized to {shape[-1]} px"
        f" ({code(data.interpolation)}, central"
        f" {code(data.crop_fraction)} where they are larger), {normalised},"
        " channel by channel."
    )


def _method(record: TrialRecord) -> str:
    source = record.plan.source
    origin = "timm's pretrained weights" if source.pretrained else "random weights"
    if source.checkpoint:
        origin = f"checkpoint {code(str(source.checkpoint))}"
    lines = [f"0. Source: {code(source.model or 'a saved model')}, {origin}"]
    for number, stage in enumerate(record.plan.stages, start=1):
        method = stages().get(stage.kind)
        paper = f" ({method.paper})" if method is not None and method.paper else ""
        searched = [
            code(f"{path}={value}")
            for path, value in record.plan.configuration.items()
            if stage.name in path.split(".")
        ]
        chosen = f"; searched: {', '.join(searched)}" if searched else ""
        lines.append(f"{number}. {code(stage.name)}: {code(stage.kind)}{paper}{chosen}")
    return "\n".join(lines)


def _data(run: Path, record: TrialRecord) -> str:
    data, hashes = record.plan.data, record.outcome.inputs
    lines = [
        f"- data set {code(data.dataset)}"
        + (f" in {code(str(data.root))}" if data.root else "")
    ]
    lines += [
        f"- validation part (data.val_from {code(data.val_from)}, data.val_fraction"
        f" {code(data.val_fraction)}): it guided the search"
    ]
    lines += ["- the test set was looked at once, at the trial's end"]
    lines += [f"- fingerprint {code(hashes['data'])}"] if hashes.get("data") else []
    header = read_json(run / RUN_FILE) or {}
    said = [header.get("data"), *(header.get("remarks") or [])]
    lines += [f"- {code(text)}" for text in said if text]
    return "\n".join(lines)


def _latest_metrics(run: Path, record: TrialRecord) -> dict[str, Any]:
    """What the trial recorded; what was measured again when the search had ended, from then."""
    metrics = dict(record.outcome.metrics)
    path = trial_folder(run, record.trial_id) / LATENCY_FILE
    again = (read_json(path) or {}).get("metrics")
    for name, value in again.items() if isinstance(again, dict) else ():
        if name in metrics:
            metrics[SEARCH_PREFIX + name] = metrics[name]
            metrics[name] = value
    return metrics


def _metrics(run: Path, metrics: Mapping[str, Any]) -> str:
    described = metrics_of_run(run, metrics)
    rows = []
    for name in described.in_order(metrics):
        meaning = described.of(name).description
        cells = [
            code(name),
            _value(metrics[name]),
            _unit(described, name),
            code(meaning) if meaning else " ",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    head = ["| metric | value | unit | meaning |", "| --- | ---: | --- | --- |"]
    return "\n".join([*head, *rows])


def _unit(described: Metrics, name: str) -> str:
    unit = described.unit(name)
    return " " if unit in ("", "1") else unit


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else code(value)


def _made(run: Path, record: TrialRecord) -> str:
    header = read_json(run / RUN_FILE) or {}
    commands = [str(header["command"])] if header.get("command") else []
    commands.append(shlex.join(["sweeps", "reproduce", str(run), record.trial_id]))
    machine = record.machine
    assert machine is not None, "a complete trial has run somewhere"
    version, device = machine.code, machine.device
    facts = {
        "seed": record.plan.seed,
        "started": record.started,
        "seconds": record.outcome.seconds,
        "device": ", ".join([device.type, device.name]),
        "workers": machine.world_size,
        "code": (
            str(version.get("commit") or version.get("sha256") or "")
            + (" with changes" if version.get("dirty") else "")
        ),
        **machine.versions,
    }
    body = "\n".join(
        f"- {name}: {code(value)}"
        for name, value in facts.items()
        if value not in (None, "")
    )
    fenced = "\n".join(
        line
        for command in commands
        for line in command.replace("```", "'''").splitlines()
    )
    return f"```\n{fenced}\n```\n\n{body}"


def _source_licence(source: SourceConfig) -> str | None:
    """Licence of timm's pretrained weights, as timm states it."""
    if not source.pretrained or not source.model:
        return None
    if not timm.is_model(source.model.split(".")[0]):
        return None
    return timm.get_pretrained_cfg_value(source.model, "license")


def _licences(chosen: str, source: str | None, given: str | None) -> str:
    how = (
        "as given at the export"
        if given
        else (
            "that of the pretrained weights"
            if source
            else "state it before you share them"
        )
    )
    return "\n".join(
        [
            f"- weights: {code(chosen)} ({how})",
            f"- pretrained source: {code(source or 'none, or unknown')}",
            (
                f"- data: {code(UNKNOWN)} (the run does not know it; its terms may bind the"
                " weights)"
            ),
            f"- code that made them: {code(CODE_LICENCE)}",
        ]
    )


def _files(folder: Path, format_name: str, difference: float) -> str:
    rows = [
        f"| {code(p.name)} | {p.stat().st_size:,} | {code(sha256_file(p))} |"
        for p in sorted(folder.iterdir())
    ]
    table = "\n".join(["| file | bytes | sha256 |", "| --- | ---: | --- |", *rows])
    checked = (
        f"Loaded again by its own runtime as {code(format_name)}: largest difference of"
        f" a logit {difference:.2g}."
    )
    return f"{table}\n\n{checked}"
