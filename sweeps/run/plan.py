"""What a trial needs to run, typed, and written before anything starts.

A plan is `trials/<id>/plan.json` from the moment the searcher draws it, and what it computes never
changes. What all trials of a run share about place and resources is their site, which each driver
makes anew. Only this module writes and reads plans.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidationError

from analysis.contract import PLAN_FILE, RECORD_FILE, RECORD_SCHEMA, Objective
from compress.measure.options import MeasureConfig
from trainers.config import Config, DataConfig, SourceConfig
from trainers.files import read_json, write_atomic
from trainers.option_types import MAY_BE_GONE, Strategy
from trainers.plugins import PluginFile


class StageSpec(Config):
    """A stage as a plan holds it.

    Attributes:
        name: its name in the pipeline.
        kind: a key of `compress.pipeline.STAGES`, or a plugin's stage.
        config: its fields as JSON values; paths are absolute.
    """

    name: str
    kind: str
    config: dict[str, JsonValue]


class Stopping(Config):
    """What a stopping rule looks at in a trial.

    Attributes:
        stage: the stage whose epochs count.
        last_epoch: the epoch, from 1, after which stopping saves nothing; None if unknown.
        metric: the epoch's metric that trials are compared by.
        cost: the second number they are compared by, if any.
    """

    stage: str
    last_epoch: int | None
    metric: str
    cost: str | None = None


class TrialPlan(Config):
    """All that decides what a trial computes.

    Attributes:
        trial_id: name of the trial's folder.
        number: of its configuration in the search, from 0.
        replicate: index of its root seed, from 0.
        seed: the root seed.
        refines: number of the configuration that this trial runs again for longer.
        configuration: dotted parameter → plain value; a slot's value is its alternative.
        draw: Optuna's own parameters and numbers, for the study alone.
        source, data, stages: the pipeline.
        measure: how the final model is measured.
        stopping: what a stopping rule looks at; None where there is none.
        bounds: metric → the bound of its objective, where that was relative to the baseline.
        plugins: name of each plugin that the trial uses → SHA-256 of its source.
        refused: why nothing can be computed: a value that only its draw showed to be impossible.
            `stages` then holds what was drawn, `source` and `data` what the spec says.
    """

    trial_id: str
    number: int
    replicate: int
    seed: int
    refines: int | None = None
    configuration: dict[str, JsonValue]
    draw: dict[str, JsonValue]
    source: SourceConfig
    data: DataConfig
    stages: tuple[StageSpec, ...]
    measure: MeasureConfig
    stopping: Stopping | None = None
    bounds: dict[str, float] = Field(default_factory=dict)
    plugins: dict[str, str] = Field(default_factory=dict)
    refused: str | None = None


class Site(Config):
    """What all trials of a run share about place and resources; it decides no result.

    Attributes:
        run: the run folder on this machine.
        cache: folder of the stage cache.
        data_cache: folder of decoded images.
        remote: URI of the storage, None where all nodes see the run folder.
        device: kind of device that trials use.
        threads: cores of a worker, and threads of torch.
        workers: processes that train one trial together.
        strategy: what each of them holds of a model in training.
        gpus_per_worker: GPUs of a worker; fractions share one.
        keep_workers: whether workers serve one trial after another.
        max_failures: times that a failed trial is run again.
        objectives: of the sweep.
        code: what `sweeps.run.code_version.code_version` says.
        plugins: that every process of the run loads before it reads a plan.
    """

    run: Path
    cache: Path
    data_cache: Path
    remote: str | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1
    workers: int = 1
    strategy: Strategy = "ddp"
    gpus_per_worker: float = 0
    keep_workers: bool = True
    max_failures: int = 0
    objectives: tuple[Objective, ...] = ()
    code: dict[str, JsonValue] = Field(default_factory=dict)
    plugins: tuple[PluginFile, ...] = ()


def write_plan(folder: Path, plan: TrialPlan) -> None:
    """Write a trial's plan into its folder, which is made if need be."""
    content = {"schema": RECORD_SCHEMA, **plan.model_dump(mode="json")}
    write_atomic(folder / PLAN_FILE, json.dumps(content, indent=1).encode())


def read_plan(folder: Path) -> TrialPlan | None:
    """The plan in a trial's folder; None where there is none that is whole.

    A trial of version 0.1 has no plan file: its record holds the plan.

    Raises:
        ValueError: the file is whole, but is no plan; it names the file and each field.
    """
    path = folder / PLAN_FILE
    content = read_json(path)
    if content is None:
        path = folder / RECORD_FILE
        record = read_json(path)
        if record is None or record.get("schema") != 1:
            return None
        content = plan_of_schema_1(record)
    fields = {key: value for key, value in content.items() if key != "schema"}
    try:
        return TrialPlan.model_validate(fields, context={MAY_BE_GONE: True})
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
            for detail in error.errors(include_url=False)
        )
        raise ValueError(f"{path}: is no plan of a trial: {wrong}") from error


def plan_of_schema_1(record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a plan from a record of version 0.1.

    Its `params` are Optuna's own parameters. Those of a layer map are several numbers under
    names like `stages.init.mapping[12 onto 5 #0]`; the map itself stands in the stage's config.
    """
    watch = record.get("watch")
    draw = record.get("params") or {}
    configuration = {key: value for key, value in draw.items() if "[" not in key}
    for path in dict.fromkeys(key.partition("[")[0] for key in draw if "[" in key):
        configuration[path] = _value_in_stages(path, record.get("pipeline") or [])
    return {
        "trial_id": record["trial_id"],
        "number": record["number"],
        "replicate": record.get("replicate", 0),
        "seed": record.get("seed", 0),
        "refines": record.get("refines"),
        "configuration": configuration,
        "draw": draw,
        "source": record.get("source") or {},
        "data": record.get("data") or {},
        "stages": [
            {"name": stage["name"], "kind": stage["stage"], "config": stage["config"]}
            for stage in record.get("pipeline") or []
        ],
        "measure": record.get("measure") or {},
        "stopping": {"last_epoch": None} | watch if watch else None,
    }


def _value_in_stages(path: str, stages: Sequence[Mapping[str, Any]]) -> Any:
    """What a dotted parameter became in a pipeline's stages; None where it is not to be found.

    The path names a stage, a slot with its alternative, or a stage of an alternative:
    `stages.STAGE.FIELD`, `stages.SLOT.ALTERNATIVE.FIELD`, `stages.SLOT.ALTERNATIVE.STAGE.FIELD`.
    """
    parts = path.split(".")
    configs = {stage["name"]: stage["config"] for stage in stages}
    for name_at, field_at in ((1, 2), (1, 3), (3, 4)):
        if len(parts) <= field_at or parts[name_at] not in configs:
            continue
        value: Any = configs[parts[name_at]]
        for part in parts[field_at:]:
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    return None
