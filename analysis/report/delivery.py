"""How the model of a trial is had: the commands, which file each writes, and how large that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from analysis import summary
from analysis.numbers import quantity
from analysis.report.html import Html, element, join
from analysis.run import Run

_FORMATS = {
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "executorch": "executorch",
    "tensorrt": "tensorrt",
}
"""Runtime in which a run measures → the format of `sweeps export` whose file it executes."""
_NAMES = {
    "onnx": "ONNX file",
    "openvino": "OpenVINO file",
    "executorch": "ExecuTorch file",
    "tensorrt": "TensorRT file",
    "packed": "Coded file",
}
_CODED = "coded_bytes"
"""Size of the file of `sweeps export --format packed`."""
_DEPLOYED = "file_bytes"
"""Size of the file that the measured runtime executes."""
_PLAIN = "model_bytes"
"""Size of the weights as they are, about that of a file without coding."""
LOAD_PACKED = 'compress.codec.decode(Path("model.wfn")).build()'


class Delivery(NamedTuple):
    """One command about a trial.

    Attributes:
        name: of the file that it writes, or what it does.
        what: a format of `sweeps export`, or "reproduce".
        size: metric with the size of that file; None: not measured.
        counted: the objective that counts this size; None where none does.
    """

    name: str
    what: str
    size: str | None = None
    counted: str | None = None


def deliveries(run: Run) -> list[Delivery]:
    """What is offered of every complete trial: first the file whose size an objective counts."""
    named = {objective.metric for objective in run.objectives}
    found = [_file(run, _deployed_format(run), _DEPLOYED, named)]
    if _is_measured(run, _CODED):
        found.append(_file(run, "packed", _CODED, named))
    found.sort(key=lambda delivery: delivery.counted is None)
    return [*found, Delivery("Run again", "reproduce")]


def _file(run: Run, what: str, size: str, named: set[str]) -> Delivery:
    is_measured = _is_measured(run, size)
    if size == _DEPLOYED:
        is_measured = is_measured and _runtime(run) in _FORMATS
    return Delivery(
        _NAMES[what],
        what,
        size if is_measured else None,
        size if is_measured and size in named else None,
    )


def _runtime(run: Run) -> str | None:
    """The runtime in which the run measures; of several runs the first one's."""
    spec: Any = next(iter(run.members.values()), run).spec
    options = spec.get("measure") if isinstance(spec, Mapping) else None
    found = options.get("runtime") if isinstance(options, Mapping) else None
    return found if isinstance(found, str) else None


def _deployed_format(run: Run) -> str:
    return _FORMATS.get(_runtime(run) or "", "onnx")


def _is_measured(run: Run, metric: str) -> bool:
    column = f"metric/{metric}"
    return column in run.trials and bool(run.trials[column].notna().any())


def note_of(run: Run, delivery: Delivery, row: Mapping[Any, Any] | pd.Series) -> str:
    """How large the file is, and whether that is what an objective counts."""
    if delivery.what == "reproduce":
        return ""
    if delivery.size is None:
        plain = _size(run, _PLAIN, row)
        return f"size not measured; its weights are {plain} uncoded" if plain else ""
    size = _size(run, delivery.size, row) or "size not measured"
    return f"{size}, which {delivery.counted} counts" if delivery.counted else size


def _size(run: Run, metric: str, row: Mapping[Any, Any] | pd.Series) -> str:
    value = row.get(f"metric/{metric}")
    if value is None or pd.isna(value):
        return ""
    return quantity(float(value), run.metrics.unit(metric) or "bytes")


def needed(run: Run) -> list[str]:
    """What the commands need beside themselves, in sentences."""
    found = [
        "Needed: `sweeps` (this package, installed), the run folder and `_cache` beside it, where"
        " the models lie; paths are those from where the report was written."
    ]
    if _is_measured(run, _CODED):
        found.append(f"The coded file, `model.wfn`, is loaded by `{LOAD_PACKED}`.")
    return found


def get_model(run: Run, row: pd.Series, is_open: bool) -> Html:
    """The commands about a configuration's trial, in a box that opens."""
    trial_id = str(row["trial_id"])
    entries = [
        _entry(
            delivery.name,
            note_of(run, delivery, row),
            summary.command(run, trial_id, delivery.what),
        )
        for delivery in deliveries(run)
    ]
    return element(
        "details",
        element("summary", "Get this model"),
        element("dl", *entries, class_="commands"),
        element("p", join(map(_with_code, needed(run)), " "), class_="note"),
        class_="get",
        open="" if is_open else None,
    )


def _entry(name: str, note: str, text: str) -> Html:
    said = element("small", f" {note}") if note else None
    code = element("dd", element("code", text))
    return join([element("dt", name, said), code])


def _with_code(sentence: str) -> Html:
    """A sentence whose parts between backquotes are code."""
    parts = sentence.split("`")
    return join(
        element("code", part) if place % 2 else part for place, part in enumerate(parts)
    )


def commands_data(
    run: Run, wanted: Sequence[str], row_of: Mapping[str, int]
) -> dict[str, Any]:
    """For the page of a trial.

    Keys: "commands": beginning of a trial's id ("" where there is one run) → [name, command with
    `TRIAL` for the id]; "sizes": by row the notes of these commands, of the `wanted` trials;
    "needed": sentences.
    """
    offered = deliveries(run)
    labels = [f"{label}/" for label in run.members] or [""]
    commands = {
        label: [
            [each.name, summary.command(run, f"{label}TRIAL", each.what)]
            for each in offered
        ]
        for label in labels
    }
    kept = [f"metric/{name}" for name in (_CODED, _DEPLOYED, _PLAIN)]
    columns = ["trial_id", *(name for name in kept if name in run.trials)]
    mine = run.trials.loc[run.trials["trial_id"].isin(set(wanted)), columns]
    sizes = {
        str(row_of[row["trial_id"]]): [note_of(run, each, row) for each in offered]
        for row in mine.to_dict("records")
    }
    return {"commands": commands, "sizes": sizes, "needed": needed(run)}
