"""The spec's section `search`: how the space is searched, and until when."""

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    model_validator,
)

from sweeps.spec.yaml_text import Tree, did_you_mean
from trainers.config import Config
from trainers.option_types import UserPath
from trainers.training.epoch_metrics import EpochMetric, epoch_metrics


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
