"""Synthetic run folders, as the driver writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SLOTS = ("none", "weight_selection", "sws_expand", "lets_expand")
RULES = ("uniform", "first", "random")
RUN = {
    "schema": 1,
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
        "model.depth": 6,
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
                    **{
                        "stage": stage,
                        "fit": "fit",
                        "epoch": epoch,
                        "step": 12 * (epoch + 1),
                        "cached": False,
                    },
                    **{
                        "train_loss": 2.3 * (1 - share) + 0.1,
                        "lr": config["finetune.lr"] / (epoch + 1),
                    },
                    **{
                        "accuracy": float(reached),
                        "loss": 2.3 * float(1 - reached),
                        "seconds": 1.5,
                    },
                    **{"images_per_second": 900.0, "steps_per_second": 8.0},
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
                **{
                    "index": index,
                    "name": stage,
                    "stage": stage,
                    "phase": phase,
                    "key": f"{number:064x}",
                },
                **{
                    "cached": cached,
                    "seconds": 0.02 if cached else full[phase],
                    "seconds_full": full[phase],
                },
                "metrics": {"accuracy": 0.5},
            }
        )
    return rows


def layers(config: dict[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Layers of a pruned and weight-fixed transformer of six blocks."""
    rows: list[dict[str, Any]] = []
    for block in range(config["model.depth"]):
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
        for name, width in (
            ("attn.qkv", 576),
            ("attn.proj", 192),
            ("mlp.fc1", dims["mlp"]),
        ):
            figures = {
                "num_unique": int(rng.integers(20, 60)),
                "entropy_bits": float(rng.uniform(2, 4)),
                "zero_fraction": 0.05,
            }
            shape = {
                "shape": [width, 192],
                "num_weights": 192 * width,
                "entropy_nonzero_bits": 2.5,
            }
            rows.append(
                {
                    "layer": f"blocks.{block}.{name}",
                    "kind": "Linear",
                    **shape,
                    **figures,
                }
            )
    powers = [sign * 2.0**-k for k in range(1, 10) for sign in (-1, 1)]
    values = sorted([*powers, *(1.5 * p for p in powers), 0.0])
    counts = [
        int(4e4 * np.exp(-abs(np.log2(abs(v)) + 5) / 1.5)) + 1 if v else 900
        for v in values
    ]
    return [*rows, {"layer": "", "kind": "model", "values": values, "counts": counts}]


def trial(
    number: int,
    status: str,
    rng: np.random.Generator,
    config: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The record and the epochs of one trial."""
    config = config or _config(rng)
    metrics = _metrics(config, rng)
    seen = 8 if status == "complete" else 3
    stages = _stages(config, number)
    started = datetime(2026, 3, 4, 9, tzinfo=UTC) + timedelta(seconds=40 * number)
    spent = sum(stage["seconds"] for stage in stages)
    failure = {
        "type": "ValueError",
        "message": f"stage nvit: target {config['nvit.target']} leaves no head",
    }
    record = {
        **{
            "schema": 1,
            "trial_id": f"{number:05d}",
            "number": number,
            "replicate": 0,
            "status": status,
        },
        **{
            "seed": 1000 + number,
            "config": config,
            "attempts": 1 + (status == "failed"),
        },
        "metrics": (
            metrics
            if status == "complete"
            else {"accuracy": 0.4}
            if status == "pruned"
            else {}
        ),
        "error": (
            {**failure, "traceback": TRACEBACK + "ValueError: no head"}
            if status == "failed"
            else None
        ),
        "started": started.isoformat(),
        "ended": (
            None
            if status == "running"
            else (started + timedelta(seconds=spent)).isoformat()
        ),
        "seconds": None if status == "running" else spent,
        "seconds_full": (
            None
            if status == "running"
            else sum(stage["seconds_full"] for stage in stages)
        ),
        "stages": stages if status == "complete" else stages[:2],
        "versions": {"torch": "2.13", "ray": "2.54"},
        "device": {"type": "cpu", "name": "EPYC", "threads": 1},
        "host": "node-1",
    }
    epochs = (
        [] if status == "failed" else _epochs(config, metrics["accuracy"], seen, rng)
    )
    return record, epochs


def write_run(
    folder: Path,
    trials: int = 40,
    header: dict[str, Any] | None = None,
    change: Callable[[dict[str, Any]], None] | None = None,
    replicates: int = 1,
    seed: int = 0,
) -> Path:
    """Write a run folder of `trials` trials.

    `header` updates run.json, `change` edits each record before it is written; with
    `replicates`, as many trials in a row share a configuration.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(
        json.dumps(RUN | {"name": folder.name} | (header or {}))
    )
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
        home = folder / "trials" / record["trial_id"]
        home.mkdir(parents=True)
        (home / "record.json").write_text(json.dumps(record))
        if epochs:
            (home / "epochs.jsonl").write_text(
                "".join(json.dumps(row) + "\n" for row in epochs)
            )
        if record["status"] == "complete":
            (home / "layers.json").write_text(
                json.dumps({"schema": 1, "layers": layers(record["config"], rng)})
            )
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a synthetic run folder under a fresh name; see `write_run`."""

    def make(name: str = "demo", **options: Any) -> Path:
        return write_run(tmp_path / name, **options)

    return make
