"""The spec: what one YAML file says about a sweep, validated."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    StringConstraints,
    Tag,
    model_validator,
)

from analysis.contract import Objective
from compress.measure.options import MeasureConfig as Measure
from sweeps.run.storage import local_folder
from sweeps.spec.tracker_options import Trackers
from sweeps.spec.yaml_text import Tree, did_you_mean
from trainers.config import Config, DataConfig, SourceConfig
from trainers.option_types import Strategy, UserPath, UserText
from trainers.training.epoch_metrics import EpochMetric, epoch_metrics

RunName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=120)
]


def epoch_metric(name: str) -> EpochMetric:
    """The metric of an epoch with this name, ours or a plugin's.

    Raises:
        ValueError: there is none.
    """
    known = epoch_metrics()
    if name not in known:
        hint = did_you_mean(name, known)
        raise ValueError(
            f"no epoch has a metric {name!r}; {hint}valid: {', '.join(known)}"
        )
    return known[name]


class EarlyStopping(Config):
    """When a trial is given up: its epochs are compared with those of other trials."""

    scheduler: Literal["asha", "moasha", "median", "hyperband"] = Field(
        description=(
            "asha: at grace_epochs × reduction_factor^k epochs only the best"
            " 1/reduction_factor go on; moasha: the best by fronts of metric and cost,"
            " the first front always; hyperband: asha in several brackets, each with a"
            " later first comparison; median: worse at its best than the median of the"
            " other trials' means so far"
        )
    )
    metric: str = Field(
        "accuracy",
        description="a metric that each epoch of training has (`sweeps methods`)",
    )
    mode: Literal["max", "min"] | None = Field(
        None,
        description="whether large or small values are better; default: as the metric says",
    )
    cost: Literal["gmacs", "num_params"] = Field(
        "gmacs",
        description=(
            "moasha: less is better; of the model that the watched stage begins with"
        ),
    )
    stage: str | None = Field(
        None,
        description="name of the stage that is watched; default: the last that trains",
    )
    grace_epochs: int = Field(
        1, ge=1, description="epochs of that stage before the first comparison"
    )
    reduction_factor: float = Field(3.0, gt=1, description="asha, moasha and hyperband")
    brackets: int = Field(3, ge=1, description="hyperband")
    min_trials: int = Field(
        3, ge=1, description="median: trials that must have come as far"
    )

    @property
    def direction(self) -> Literal["max", "min"]:
        """Whether large or small values of the metric are better.

        Raises:
            ValueError: no metric of an epoch has this name.
        """
        return self.mode or epoch_metric(self.metric).mode


class Refine(Config):
    """A last rung: the front's members once more, for longer."""

    top: int = Field(
        ge=1,
        description=(
            "members of the front to take, by exclusive hypervolume (of one objective:"
            " the best)"
        ),
    )
    epochs: int = Field(ge=1, description="epochs of the stage instead")
    stage: str | None = Field(None, description="default: the last that has epochs")
    params: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="STAGE.PARAMETER → value, further changes: {finetune.warmup: 5}",
    )


class Race(Config):
    """Seeds by need, after the search: more for configurations whose place is not decided."""

    most: int = Field(5, ge=2, description="seeds of a configuration at most")
    certainty: float = Field(
        0.9,
        gt=0.5,
        lt=1,
        description=(
            "a configuration is decided when it is on the front with this probability or more, or"
            " off it"
        ),
    )
    trials: int | None = Field(
        None,
        ge=1,
        description="further trials at most; default: as many as there are configurations",
    )
    share: float = Field(
        0.25, gt=0, lt=1, description="of the budget, which the race may take"
    )


SamplerName = Literal["tpe", "random", "nsga2", "gp", "grid"]

SHORT_SAMPLERS: tuple[SamplerName, ...] = get_args(SamplerName)
"""Samplers that a spec names by one word."""


UNION_TAGS = ("<name>", "<other>")
"""Names of the two forms of `search.sampler` in pydantic's errors; not for the user."""


class OtherSampler(Config):
    """Any sampler of Optuna or OptunaHub; further keys are its own options."""

    model_config = ConfigDict(extra="allow")

    optuna: str | None = Field(
        None, description="name of a class of optuna.samplers, for example QMCSampler"
    )
    hub: str | None = Field(
        None,
        description="an OptunaHub package, for example samplers/auto_sampler",
    )

    @model_validator(mode="after")
    def _has_one_origin(self) -> "OtherSampler":
        if (self.optuna is None) == (self.hub is None):
            raise ValueError(
                "give either `optuna: CLASS` or `hub: PACKAGE`, and the sampler's own"
                " options beside it"
            )
        return self

    @property
    def options(self) -> dict[str, JsonValue]:
        """Keyword arguments of the sampler."""
        return dict(self.model_extra or {})

    def __str__(self) -> str:
        return str(self.optuna or self.hub)


def _sampler_of(value: Any) -> Any:
    """Refuse what is no sampler; a union of types would not say what is valid."""
    if not isinstance(value, str | dict | OtherSampler):
        raise ValueError(
            "give a short name, {optuna: CLASS, OPTION: VALUE} or {hub: PACKAGE}"
        )
    if isinstance(value, str) and value not in SHORT_SAMPLERS:
        hint = did_you_mean(value, SHORT_SAMPLERS)
        raise ValueError(
            f"there is no sampler {value!r}; {hint}valid: {', '.join(SHORT_SAMPLERS)},"
            " or {optuna: CLASS} for any other sampler of Optuna"
        )
    return value


MOST_TRIALS = 10_000
"""Configurations of a search that has a budget and does not say how many it may try."""
BUDGETS = ("hours", "gpu_hours", "images")
"""Options that limit what a search takes."""


class StopWhen(Config):
    """When a search has found enough."""

    hypervolume_gain: float = Field(
        gt=0,
        lt=1,
        description=(
            "end when the hypervolume (of one objective: the best value) has grown by less than"
            " this share of itself over the last `configurations`"
        ),
    )
    configurations: int = Field(20, ge=2, description="that ended with all objectives")


def _stop_when_of(value: Any) -> Any:
    """Refuse another word; a union of types would not say what is valid."""
    if isinstance(value, str) and value != "goal":
        raise ValueError(
            f"{value!r} is no rule; give goal or {{hypervolume_gain: 0.01}}"
        )
    return value


class Search(Config):
    """How the space is searched."""

    sampler: Annotated[
        Annotated[SamplerName, Tag("<name>")] | Annotated[OtherSampler, Tag("<other>")],
        Discriminator(lambda value: "<name>" if isinstance(value, str) else "<other>"),
        BeforeValidator(_sampler_of),
    ] = Field(
        "tpe",
        description=(
            "a short name, {optuna: CLASS, OPTION: VALUE, ...} or {hub: PACKAGE, ...}"
        ),
    )
    sampler_options: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="options of a sampler with a short name, as Optuna calls them",
    )
    trials: int = Field(
        24, ge=1, description="configurations to try; each runs `replicates` times"
    )
    hours: float | None = Field(
        None,
        gt=0,
        description=(
            "time for the search, from its first trial on, over all drivers; the last"
            " configurations are chosen so that they end in it. Where `trials` is not given,"
            f" {MOST_TRIALS:,} are the limit"
        ),
    )
    gpu_hours: float | None = Field(
        None,
        gt=0,
        description=(
            "instead of hours: time of GPUs, over all trials, each times `gpus_per_worker` and"
            " `workers`"
        ),
    )
    images: int | None = Field(
        None,
        ge=1,
        json_schema_extra={"unit": "images"},
        description=(
            "instead of hours: images to train on, over all stages and epochs, none for what the"
            " stage cache holds; they also are what the choice of a configuration counts"
        ),
    )
    epoch_seconds: float | None = Field(
        None,
        gt=0,
        description=(
            "what an epoch is taken to take for the search's time, until one has been timed;"
            " `sweeps shrink` writes what it measured"
        ),
    )
    stop_when: Annotated[
        Literal["goal"] | StopWhen | None, BeforeValidator(_stop_when_of)
    ] = Field(
        None,
        description=(
            "goal: end when a configuration keeps all bounds with certainty (probability of"
            " 95 %); or {hypervolume_gain: …}:"
            " end where the front stands still"
        ),
    )
    replicates: int = Field(
        1, ge=1, description="root seeds per configuration; the search sees their mean"
    )
    cost: Literal["cached", "full", "none"] = Field(
        "cached",
        description=(
            "what the choice of a configuration counts as its cost, learned from the records."
            " cached: seconds, none for a stage that the stage cache holds, so that cheap"
            " suffixes of a trained model are tried on it; full: seconds, whatever is cached;"
            " none: the sampler alone decides"
        ),
    )
    space: Tree = Field(
        default_factory=dict,
        description=(
            "dotted parameter → list, {low, high, log, step} or {choices: {label:"
            " value}}; slots are searched by themselves"
        ),
    )
    points: list[Tree] = Field(
        default_factory=list,
        description="points to try first: dotted parameter → value or label",
    )
    max_failures: int = Field(
        1,
        ge=0,
        description=(
            "times that a failed trial is run again before it is recorded as failed"
            " (not what would fail the same way: a refused value, a non-finite loss)"
        ),
    )
    early_stopping: EarlyStopping | None = Field(
        None, description="give up trials whose epochs fall behind"
    )

    @model_validator(mode="before")
    @classmethod
    def _by_its_budget(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        budgets = [name for name in BUDGETS if given.get(name) is not None]
        if len(budgets) > 1:
            raise ValueError(f"give one of {', '.join(BUDGETS)}, not {len(budgets)}")
        if budgets and "trials" not in given:
            return given | {"trials": MOST_TRIALS}
        return given

    earlier_runs: list[UserPath] = Field(
        default_factory=list,
        alias="from",
        description=(
            "run folders whose complete trials the sampler knows from its start. Of a run with"
            " other objectives, data or source, and of a table (.parquet), some configurations of"
            " the front are tried first"
        ),
    )
    race: Race | None = Field(
        None,
        description=(
            "train configurations whose place on the front is not decided with further seeds,"
            " when the search has ended: {most: 5}"
        ),
    )
    refine: Refine | None = Field(
        None, description="train the front's members once more, for longer"
    )
    baseline: bool = Field(
        True,
        description=(
            "measure what the trials are compared with, too: the trained source, or what the"
            " first stages, which only train and which nothing changes, make of it"
        ),
    )


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
