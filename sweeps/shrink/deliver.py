"""The folder that a user gets: the deployed file, its card, the front, the report, what goes on."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from analysis.contract import REPORT_FILE
from analysis.goal import Pick
from analysis.run import Run
from compress.measure.options import RuntimeName
from sweeps.export.formats import export
from sweeps.shrink.outcome import found_front
from trainers.files import write_atomic

MODEL = "model"
SPEC = "shrink.yaml"
FRONT = "front.csv"
README = "README.md"
BY_LOSS = "what was found, by what it loses:"

_FORMATS: dict[RuntimeName, str] = {
    "openvino": "openvino",
    "onnxruntime": "onnx",
    "torch": "safetensors",
    "torch_compile": "safetensors",
    "executorch": "executorch",
    "tensorrt": "tensorrt",
}


def deliver(
    run: Run,
    pick: Pick,
    runtime: RuntimeName,
    folder: Path,
    said: Sequence[str],
    costs: Sequence[str] = (),
) -> list[Path]:
    """Export the pick into `folder`, beside what was found; the files of the model.

    Args:
        said: the result in lines, for the folder's README.
        costs: what each loss would have bought, in lines.

    Raises:
        ValueError: the model cannot be exported.
    """
    form = _FORMATS[runtime]
    target = folder / MODEL
    fresh = folder / f".{MODEL}-new"
    shutil.rmtree(fresh, ignore_errors=True)
    done = export(run.path, pick.trial_id, form, fresh)
    _put(fresh, target)
    if (run.path / REPORT_FILE).is_file():
        shutil.copyfile(run.path / REPORT_FILE, folder / REPORT_FILE)
    table = found_front(run).to_csv(index=False, lineterminator="\n")
    write_atomic(folder / FRONT, table.encode())
    results = [f"- {line}" for line in said]
    if costs:
        results += [f"- {BY_LOSS}", *(f"  - {line}" for line in costs)]
    write_atomic(folder / README, _readme(run, pick, form, folder, results).encode())
    return [target / path.name for path in done.files]


def _put(fresh: Path, target: Path) -> None:
    """Let the folder `fresh` be `target`; what was there is gone only when that is done."""
    earlier = target.with_name(f".{target.name}-earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    if target.exists():
        target.rename(earlier)
    fresh.rename(target)
    shutil.rmtree(earlier, ignore_errors=True)


def commands(run: Run, folder: Path, form: str) -> list[str]:
    """How to go on, a command a line."""
    told = {
        f"sweeps run {folder / SPEC} search.hours=HOURS": "search on",
        f"sweeps front {run.path}": "what was found",
        f"sweeps export {run.path} TRIAL --format {form}": "deploy another one",
        f"sweeps reproduce {run.path} TRIAL": "the same bits again",
    }
    width = max(map(len, told))
    return [f"{command:{width}}  # {what}" for command, what in told.items()]


def _readme(
    run: Run, pick: Pick, form: str, folder: Path, results: Sequence[str]
) -> str:
    files = {
        f"{MODEL}/": f"the deployed file (trial {pick.trial_id}), its card, `predict.py`",
        FRONT: "what was found: the configurations that no other dominates",
        REPORT_FILE: "the report, opens from disk",
        SPEC: "the search as a spec",
        f"{run.path.name}/": "its run folder; `_cache/` holds the models of all trials",
    }
    listed = [f"- `{name}`: {what}" for name, what in files.items()]
    return "\n".join(
        [
            *(f"# {run.heading}", "", *results, "", "## Files", *listed, ""),
            *("## Go on", "```", *commands(run, folder, form), "```", ""),
        ]
    )
