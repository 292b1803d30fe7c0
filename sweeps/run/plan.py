"""What a trial needs to run, typed, and written before anything starts.

A plan is `trials/<id>/plan.json` from the moment the searcher draws it, and never changes. What
all trials of a run share about place and resources is their site, which each driver makes anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue

from analysis.contract import (
    Objective,
)
from trainers.config import Config, DataConfig, SourceConfig


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
        measure: how the final model is measured, as `sweeps.spec.model.Measure` dumps it.
        stopping: what a stopping rule looks at; None where there is none.
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
    measure: dict[str, JsonValue]
    stopping: Stopping | None = None


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
        gpus_per_worker: GPUs of a worker; fractions share one.
        keep_workers: whether workers serve one trial after another.
        max_failures: times that a failed trial is run again.
        objectives: of the sweep.
        code: what `sweeps.run.code_version.code_version` says.
    """

    run: Path
    cache: Path
    data_cache: Path
    remote: str | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1
    workers: int = 1
    gpus_per_worker: float = 0
    keep_workers: bool = True
    max_failures: int = 0
    objectives: tuple[Objective, ...] = ()
    code: dict[str, JsonValue] = Field(default_factory=dict)
