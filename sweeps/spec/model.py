"""The spec: what one YAML file says about a sweep, validated."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Field,
    StringConstraints,
    model_validator,
)

from analysis.contract import Objective
from compress.measure.options import MeasureConfig as Measure
from sweeps.run.storage import local_folder
from sweeps.spec.search_options import Search
from sweeps.spec.tracker_options import Trackers
from sweeps.spec.yaml_text import Tree
from trainers.config import Config, DataConfig, SourceConfig
from trainers.option_types import Strategy, UserText

RunName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=120)
]


class Resources(Config):
    """What trials may use."""

    workers: int = Field(
        1,
        ge=1,
        description=(
            "processes of a trial that train together, on one node or several"
        ),
    )
    strategy: Strategy = Field(
        "ddp",
        description=(
            "what each of several workers holds of a model in training. ddp: all of it; fsdp:"
            " its part of parameters, gradients and optimiser state (FSDP2), for models that"
            " do not fit"
        ),
    )
    cpus_per_worker: int = Field(1, ge=1, description="cores, and threads of torch")
    gpus_per_worker: float = Field(0, ge=0, description="fractions share a GPU")
    memory_gb: float | None = Field(
        None,
        gt=0,
        json_schema_extra={"unit": "GB"},
        description=(
            "memory of its node that a trial of one worker takes, about: no more run at a"
            " time than fit into what Ray counts as free; default: memory is not counted"
        ),
    )
    trainer: Literal["auto", "ray_train"] = Field(
        "auto",
        description=(
            "auto: one worker runs in the trial's process, more under Ray Train's"
            " TorchTrainer"
        ),
    )
    worker_group: Literal["keep", "per_trial"] = Field(
        "keep",
        description=(
            "keep: workers under TorchTrainer serve one trial after another; per_trial:"
            " new ones each"
        ),
    )
    concurrent: int | None = Field(
        None,
        ge=1,
        json_schema_extra={"unit": "trials"},
        description="trials at a time; default: as many as fit",
    )
    cpus: int | None = Field(
        None, ge=1, description="cores of the local Ray; default: all"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: cuda where a trial has a GPU"
    )


class Spec(Config):
    """A sweep."""

    name: RunName = Field(description="of the sweep, and of its run folder")
    title: UserText | None = Field(
        None,
        min_length=1,
        max_length=250,
        description=(
            "what the report, the card and the tables call the sweep, in words; default: its name"
        ),
    )
    seed: int = Field(
        0, ge=0, lt=2**31, description="every random number follows from it"
    )
    storage: UserText = Field(
        "runs",
        min_length=1,
        description=(
            "folder or URI (s3://, gs://, …); the run folder is storage/name, the stage"
            " cache storage/_cache"
        ),
    )
    source: SourceConfig = Field(description="the model that every trial starts from")
    data: DataConfig = Field(
        DataConfig(), description="labelled images, and how they are read"
    )
    stages: Tree = Field(
        description=(
            "name → stage config, or a slot {one_of: {alternative: config or null}}"
        )
    )
    objectives: list[Objective] = Field(
        min_length=1, description="what is good: metrics, directions, bounds"
    )
    search: Search = Field(Search(), description="how the space is searched")
    resources: Resources = Field(Resources(), description="what trials may use")
    measure: Measure = Field(Measure(), description="how the final model is measured")
    trackers: Trackers = Field(
        Trackers(), description="where trials are shown besides the records"
    )
    plugins: tuple[str, ...] = Field(
        (),
        description=(
            "files (relative to the spec) or importable modules that offer further stages,"
            " metrics, data sets, export formats and trackers"
        ),
    )

    @property
    def distributed(self) -> bool:
        """Whether trials run under TorchTrainer."""
        return self.resources.workers > 1 or self.resources.trainer == "ray_train"

    @model_validator(mode="after")
    def _unique_objectives(self) -> "Spec":
        names = [o.metric for o in self.objectives]
        if len(set(names)) < len(names):
            raise ValueError("objectives: each metric may be given once")
        for name in self.stages:
            if not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(
                    f"stages: the name {name!r} may have letters, digits, _ and - only"
                )
        return self

    @cached_property
    def raw(self) -> Tree:
        """The spec as plain JSON values."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def run_folder(self) -> Path:
        """On this machine: a mirror where `storage` is a URI."""
        return local_folder(self.storage) / self.name

    @property
    def cache_folder(self) -> Path:
        return local_folder(self.storage) / "_cache"
