"""Synthetic run folders, as the driver writes them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import analysis
from tests.analysis.browser import Browser, Page

SLOTS = ("none", "weight_selection", "sws_expand", "lets_expand")
RULES = ("uniform", "first", "random")
METRICS = {
    "accuracy": ("top-1 accuracy on the validation part", "fraction", False),
    "loss": ("loss on the validation part", "", False),
    "train_loss": ("mean training loss of the epoch", "", False),
    "test_accuracy": ("top-1 accuracy on the test set", "fraction", False),
    "gmacs": ("multiply-accumulates of one inference", "10^9", False),
    "latency_ms": ("median latency of one inference of a batch", "ms", True),
    "latency_p25_ms": ("first quartile of the latency", "ms", True),
    "latency_p75_ms": ("third quartile of the latency", "ms", True),
    "num_params": ("parameters of the model", "1", False),
    **{
        f"order_{k}": (f"weights fixed to a sum of {k} powers of two", "1", False)
        for k in range(4)
    },
}
RUN = {
    "schema": 2,
    "name": "demo",
    "created": "2026-03-04T09:00:00+00:00",
    "seed": 7,
    "objectives": [
        {"metric": "accuracy", "mode": "max", "bound": None},
        {"metric": "gmacs", "mode": "min", "bound": None},
    ],
    "params": [
        "init",
        "init.element_rule",
        "finetune.lr",
        "finetune.epochs",
        "nvit.target",
        "wfn.delta",
    ],
    "command": "sweeps run demo --trials 40",
    "spec": {"model": "vit_tiny", "data": {"name": "digits"}},
    "metrics": {
        name: {"description": text, "unit": unit, "is_time": is_time}
        for name, (text, unit, is_time) in METRICS.items()
    },
}
TRACEBACK = (
    'Traceback (most recent call last):\n  File "stage.py", line 12, in run\n    return'
    " self.cut(model)\n"
)


def _status(number: int, last: int) -> str:
    if number >= last - 1:
        return "running"
    if number % 9 == 4:
        return "pruned"
    if number % 13 == 6:
        return "failed"
    return "interrupted" if number % 29 == 17 else "complete"


def _config(rng: np.random.Generator) -> dict[str, Any]:
    init = str(rng.choice(SLOTS))
    config: dict[str, Any] = {
        "init": init,
        "finetune.lr": float(f"{10 ** rng.uniform(-4, -1.5):.3g}"),
    }
    if init == "weight_selection":
        config["init.element_rule"] = str(rng.choice(RULES))
    return config | {
        "finetune.epochs": int(rng.choice([4, 6, 8])),
        "nvit.target": round(float(rng.uniform(0.3, 1.0)), 3),
        "wfn.delta": float(f"{10 ** rng.uniform(-3, -1):.3g}"),
        "source.args.depth": 6,
        "finetune.betas": [0.9, 0.999],
    }


def _metrics(config: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    gmacs = 1.2 * config["nvit.target"] + rng.normal(0, 0.02)
    gain = 0.04 * SLOTS.index(config["init"])
    accuracy = (
        0.97
        - 0.25 * np.exp(-3.2 * gmacs)
        - 0.09
        + gain
        - 0.02 * abs(np.log10(config["finetune.lr"]) + 2.7)
    )
    accuracy = float(np.clip(accuracy + rng.normal(0, 0.008), 0, 1))
    latency = float(1.5 + 7 * gmacs + rng.normal(0, 0.15))
    return {
        "accuracy": accuracy,
        "test_accuracy": accuracy - float(rng.uniform(0.0, 0.012)),
        "gmacs": float(gmacs),
        "latency_ms": latency,
        "latency_p25_ms": 0.97 * latency,
        "latency_p75_ms": 1.04 * latency,
        "num_params": int(5e6 * gmacs),
        "order_0": 120,
        "order_1": 52000,
        "order_2": 9400,
        "order_3": 310,
    }


def _epochs(
    config: dict[str, Any], accuracy: float, seen: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    rows = []
    for stage, count in (("finetune", config["finetune.epochs"]), ("wfn", seen)):
        for epoch in range(count):
            share = 1 - np.exp(-(epoch + 1) / 2.0)
            reached = accuracy * share + rng.normal(0, 0.004)
            rows.append(
                {
                    "stage": stage,
                    "fit": "fit",
                    "epoch": epoch,
                    "step": 12 * (epoch + 1),
                    "cached": False,
                    "train_loss": 2.3 * (1 - share) + 0.1,
                    "lr": config["finetune.lr"] / (epoch + 1),
                    "accuracy": float(reached),
                    "loss": 2.3 * float(1 - reached),
                    "seconds": 1.5,
                    "images_per_second": 900.0,
                    "steps_per_second": 8.0,
                }
            )
    return rows


def _stages(config: dict[str, Any], number: int) -> list[dict[str, Any]]:
    names = [(config["init"], "init")] if config["init"] != "none" else []
    names += [("finetune", "train"), ("nvit", "prune"), ("wfn", "quantize")]
    full = {"init": 4.0, "train": 30.0, "prune": 18.0, "quantize": 9.0}
    rows = []
    for index, (stage, phase) in enumerate(names):
        cached = (phase == "init" and number > 4) or (
            phase == "train" and number % 4 == 0 and number > 0
        )
        rows.append(
            {
                "index": index,
                "name": stage,
                "stage": stage,
                "phase": phase,
                "key": f"{number:064x}",
                "cached": cached,
                "seconds": 0.02 if cached else full[phase],
                "seconds_full": full[phase],
                "metrics": {"accuracy": 0.5},
            }
        )
    return rows


def layers(config: dict[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Layers of a pruned and weight-fixed transformer of six blocks."""
    rows: list[dict[str, Any]] = []
    for block in range(config["source.args.depth"]):
        dims = {
            "heads": int(rng.integers(1, 4)),
            "qk": int(rng.integers(2, 9)) * 8,
            "v": 32,
            "mlp": int(768 * rng.uniform(0.2, 1)),
        }
        row = {"layer": f"blocks.{block}", "kind": "block", "embed": 192, **dims}
        if config["init"] == "sws_expand":
            row["source_layer"] = block // 2
        rows.append(row)
        widths = {"attn.qkv": 576, "attn.proj": 192, "mlp.fc1": dims["mlp"]}
        for name, width in widths.items():
            rows.append(
                {
                    "layer": f"blocks.{block}.{name}",
                    "kind": "Linear",
                    "shape": [width, 192],
                    "num_weights": 192 * width,
                    "num_unique": int(rng.integers(20, 60)),
                    "entropy_bits": float(rng.uniform(2, 4)),
                    "entropy_nonzero_bits": 2.5,
                    "zero_fraction": 0.05,
                }
            )
    powers = [sign * 2.0**-k for k in range(1, 10) for sign in (-1, 1)]
    values = sorted([*powers, *(1.5 * p for p in powers), 0.0])
    counts = [
        int(4e4 * np.exp(-abs(np.log2(abs(v)) + 5) / 1.5)) + 1 if v else 900
        for v in values
    ]
    return [*rows, {"layer": "", "kind": "model", "values": values, "counts": counts}]


def classes(accuracy: float) -> list[dict[str, Any]]:
    """Three classes, the last of which has no validation image."""
    return [
        {
            "index": index,
            "class": name,
            "images": images,
            "accuracy": accuracy if images else None,
            "test_images": 40,
            "test_accuracy": accuracy,
        }
        for index, (name, images) in enumerate(
            {"cat": 20, "dög": 30, "bird": 0}.items()
        )
    ]


def trial(
    number: int,
    status: str,
    rng: np.random.Generator,
    config: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The record of schema 1 and the epochs of one trial."""
    config = config or _config(rng)
    metrics = _metrics(config, rng)
    stages = _stages(config, number)
    started = datetime(2026, 3, 4, 9, tzinfo=UTC) + timedelta(seconds=40 * number)
    spent = sum(stage["seconds"] for stage in stages)
    record = {
        "schema": 1,
        "trial_id": f"{number:05d}",
        "number": number,
        "replicate": 0,
        "status": status,
        "seed": 1000 + number,
        "config": config,
        "attempts": 1 + (status == "failed"),
        "metrics": {"complete": metrics, "pruned": {"accuracy": 0.4}}.get(status, {}),
        "error": None,
        "started": started.isoformat(),
        "ended": (started + timedelta(seconds=spent)).isoformat(),
        "seconds": spent,
        "seconds_full": sum(stage["seconds_full"] for stage in stages),
        "stages": stages if status == "complete" else stages[:2],
        "versions": {"torch": "2.13", "ray": "2.54"},
        "device": {"type": "cpu", "name": "EPYC", "threads": 1},
        "host": "node-1",
    }
    if status == "running":
        record |= {"ended": None, "seconds": None, "seconds_full": None}
    if status == "failed":
        record["error"] = {
            "type": "ValueError",
            "message": f"stage nvit: target {config['nvit.target']} leaves no head",
            "traceback": TRACEBACK + "ValueError: no head",
        }
        return record, []
    seen = 8 if status == "complete" else 3
    return record, _epochs(config, metrics["accuracy"], seen, rng)


def in_schema_2(
    record: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The plan and the record that state the same as a record of schema 1."""
    configuration: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {"source": {}, "data": {}}
    for key, value in record["config"].items():
        section, dot, rest = key.partition(".")
        if dot:
            sections.setdefault(section, {})[rest] = value
        else:
            configuration[f"stages.{key}"] = value
    for key in ("finetune.lr", "wfn.delta"):  # these say nothing that `stages` does not
        configuration[f"stages.{key}"] = record["config"].get(key)
    source, data = sections.pop("source"), sections.pop("data")
    plan = {
        "schema": 2,
        "trial_id": record["trial_id"],
        "number": record["number"],
        "replicate": record["replicate"],
        "seed": record["seed"],
        "refines": record.get("refines"),
        "configuration": configuration,
        "draw": {},
        "source": source,
        "data": data,
        "stages": [
            {"name": name, "kind": name, "config": config}
            for name, config in sections.items()
        ],
        "measure": {},
        "stopping": None,
    }
    names = ("trial_id", "status", "attempts", "started", "ended", "seconds")
    names += ("seconds_full", "metrics", "stages", "error", "feasible", "pruned")
    machine = ("device", "versions", "host", "world_size", "code")
    ended = {
        "schema": 2,
        "token": "0" * 32,
        "inputs": {},
        **{name: record.get(name) for name in names},
        "machine": {"pid": 1, **{name: record.get(name) for name in machine}},
    }
    return plan, ended


def write_json(path: Path, data: object) -> None:
    """A JSON file."""
    path.write_text(json.dumps(data))


def write_trial(
    run: Path,
    record: dict[str, Any],
    epochs: list[dict[str, Any]],
    model_layers: list[dict[str, Any]],
    schema: int,
) -> None:
    """A trial's folder; `record` is one of schema 1."""
    folder = run / "trials" / record["trial_id"]
    folder.mkdir(parents=True)
    if schema == 1:
        write_json(folder / "record.json", record)
    else:
        plan, ended = in_schema_2(record)
        write_json(folder / "plan.json", plan)
        write_json(folder / "record.json", ended)
    if epochs:
        lines = [json.dumps(row) + "\n" for row in epochs]
        (folder / "epochs.jsonl").write_text("".join(lines))
    if model_layers:
        write_json(folder / "layers.json", {"schema": schema, "layers": model_layers})
    if record["status"] == "complete" and schema > 1:
        rows = classes(record["metrics"].get("accuracy"))
        write_json(folder / "classes.json", {"schema": schema, "classes": rows})


def write_run(
    folder: Path,
    trials: int = 40,
    header: dict[str, Any] | None = None,
    change: Callable[[dict[str, Any]], None] | None = None,
    replicates: int = 1,
    seed: int = 0,
    schema: int = 2,
) -> Path:
    """Write a run folder of `trials` trials.

    `header` updates run.json, `change` edits each record, as one of schema 1, before it is
    written; with `replicates`, as many trials in a row share a configuration.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    run = RUN | {"name": folder.name, "schema": schema}
    if schema == 1:
        del run["metrics"]
    write_json(folder / "run.json", run | (header or {}))
    config: dict[str, Any] | None = None
    for number in range(trials):
        replicate = number % replicates
        config = config if replicate else _config(rng)
        record, epochs = trial(number, _status(number, trials), rng, config)
        if replicates > 1:
            record |= {"number": number // replicates, "replicate": replicate}
            record["trial_id"] = f"{number // replicates:05d}-r{replicate}"
        if change:
            change(record)
        complete = record["status"] == "complete"
        model_layers = layers(record["config"], rng) if complete else []
        write_trial(folder, record, epochs, model_layers, schema)
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a synthetic run folder under a fresh name; see `write_run`."""

    def make(name: str = "demo", **options: Any) -> Path:
        return write_run(tmp_path / name, **options)

    return make


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of 40 trials that all tests share: read it, and write nothing there."""
    return write_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="session")
def demo_run(demo: Path) -> analysis.Run:
    """What `demo` holds; its tables are not to be changed."""
    return analysis.load(demo)


@pytest.fixture(scope="session")
def demo_page(
    browser: Browser,
    demo_run: analysis.Run,
    tmp_path_factory: pytest.TempPathFactory,
) -> Page:
    """The report of `demo` in the browser, for tests that do not mind its state."""
    folder = tmp_path_factory.mktemp("report")
    return browser.open(analysis.write_report(demo_run, folder / "report.html"))


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A Chromium that all tests share; where there is none, its tests are skipped."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed")
    with Browser(program, tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a file in the browser; the page is closed after the test."""
    pages: list[Page] = []

    def open_one(path: Path, width: int = 1280, height: int = 900) -> Page:
        pages.append(browser.open(path, width, height))
        return pages[-1]

    yield open_one
    for page in pages:
        page.close()
