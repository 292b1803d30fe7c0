"""The spec: what one YAML file says about a sweep, validated."""

import difflib
import os
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from compress.measure.options import MeasureConfig as Measure
from compress.pipeline import STAGES
from compress.stage import Stage
from sweeps.run.storage import local_folder
from sweeps.spec.yaml_text import SpecError, parse_yaml, plain, read_text
from trainers.config import Config, DataConfig, SourceConfig

RunName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=120)
]


class Objective(Config):
    """One measure to optimise."""

    metric: str = Field(
        description="a measured metric or one that a stage reports (`sweeps methods`)"
    )
    mode: Literal["min", "max"]
    bound: float | None = Field(
        None,
        description=(
            "worst value that is acceptable: trials beyond it never enter the front"
        ),
    )


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
    metric: Literal["accuracy", "top5_accuracy", "loss", "train_loss"] = Field(
        "accuracy", description="of an epoch; all but train_loss on the validation part"
    )
    mode: Literal["max", "min"] | None = Field(
        None, description="default: max for accuracies, min for losses"
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
        """What is better."""
        return self.mode or ("max" if self.metric.endswith("accuracy") else "min")


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
    params: dict[str, Any] = Field(
        default_factory=dict,
        description="STAGE.PARAMETER → value, further changes: {finetune.warmup: 5}",
    )


class Search(Config):
    """How the space is searched."""

    sampler: Literal["tpe", "random", "nsga2", "gp", "grid"] = "tpe"
    sampler_options: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of Optuna's sampler"
    )
    trials: int = Field(
        24, ge=1, description="configurations to try; each runs `replicates` times"
    )
    replicates: int = Field(
        1, ge=1, description="root seeds per configuration; the search sees their mean"
    )
    space: dict[str, Any] = Field(
        default_factory=dict,
        description=(
            "dotted parameter → list, {low, high, log, step} or {choices: {label:"
            " value}}; slots are searched by themselves"
        ),
    )
    points: list[dict[str, Any]] = Field(
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
    early_stopping: EarlyStopping | None = None
    earlier_runs: list[Path] = Field(
        default_factory=list,
        alias="from",
        description=(
            "run folders whose complete trials the sampler knows from its start"
        ),
    )
    refine: Refine | None = None


class Resources(Config):
    """What trials may use."""

    workers: int = Field(
        1,
        ge=1,
        description=(
            "processes of a trial; more than 1 train by DDP, on one node or several"
        ),
    )
    cpus_per_worker: int = Field(1, ge=1, description="cores, and threads of torch")
    gpus_per_worker: float = Field(0, ge=0, description="fractions share a GPU")
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
        None, ge=1, description="trials at a time; default: as many as fit"
    )
    cpus: int | None = Field(
        None, ge=1, description="cores of the local Ray; default: all"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: cuda where a trial has a GPU"
    )


class MLflow(Config):
    """Trials as runs of an MLflow experiment (needs the extra `mlflow`)."""

    tracking_uri: str | None = Field(None, description="default: MLflow's own setting")
    experiment: str | None = Field(None, description="default: the sweep's name")


class WandB(Config):
    """Trials as runs of a Weights & Biases project (needs the extra `wandb`)."""

    project: str | None = Field(None, description="default: the sweep's name")
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"


class Watch(Config):
    """Where trials are shown besides the records and TensorBoard."""

    mlflow: MLflow | None = None
    wandb: WandB | None = None


class Spec(Config):
    """A sweep."""

    name: RunName
    seed: int = Field(0, ge=0, lt=2**31)
    storage: str = Field(
        "runs",
        min_length=1,
        description=(
            "folder or URI (s3://, gs://, …); the run folder is storage/name, the stage"
            " cache storage/_cache"
        ),
    )
    source: SourceConfig
    data: DataConfig = DataConfig()
    stages: dict[str, Any] = Field(
        description=(
            "name → stage config, or a slot {one_of: {alternative: config or null}}"
        )
    )
    objectives: list[Objective] = Field(min_length=1)
    search: Search = Search()
    resources: Resources = Resources()
    measure: Measure = Measure()
    watch: Watch = Watch()

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
    def raw(self) -> dict[str, Any]:
        """The spec as plain JSON values."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def run_folder(self) -> Path:
        """On this machine: a mirror where `storage` is a URI."""
        return local_folder(self.storage) / self.name

    @property
    def cache_folder(self) -> Path:
        return local_folder(self.storage) / "_cache"


def spec_from(raw: dict[str, Any]) -> Spec:
    """A valid spec from plain values.

    Raises:
        SpecError: one line per mistake.
    """
    spec: Spec = validated(Spec, plain(raw, ""), "")
    return spec


def validated(model: type[BaseModel], value: Any, place: str) -> Any:
    """`model` from `value`, with mistakes told in the spec's terms.

    Raises:
        SpecError: one line per mistake, each with its place, the rule and the valid choices.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        lines = [
            _explain(model, detail, place) for detail in error.errors(include_url=False)
        ]
        raise SpecError("\n".join(dict.fromkeys(lines))) from error


def _explain(model: type[BaseModel], detail: Any, place: str) -> str:
    location = [
        str(part)
        for part in detail["loc"]
        if not str(part).startswith(("function-", "tuple["))
    ]
    where = ".".join([place, *location] if place else location) or "spec"
    shown = repr(detail["input"])
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    if detail["type"] == "extra_forbidden":
        fields = _fields_at(model, location[:-1])
        close = difflib.get_close_matches(location[-1], fields, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"{where}: unknown key; {hint}valid keys: {', '.join(fields)}"
    if detail["type"] == "missing":
        return f"{where}: required, but not given"
    message = (
        detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    )
    message = message[:1].lower() + message[1:]
    return (
        f"{where}: {message}"
        if shown in message or len(location) == 0
        else f"{where}: {message}; got {shown}"
    )


def _fields_at(model: type[BaseModel], location: list[str]) -> list[str]:
    current: Any = model
    for part in location:
        candidates = (
            _models_in(current.model_fields[part].annotation)
            if part in getattr(current, "model_fields", {})
            else []
        )
        if not candidates:
            if part.isdigit():  # an item of a list of models
                continue
            return []
        current = candidates[0]
    return [field.alias or name for name, field in current.model_fields.items()]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [
        found
        for argument in getattr(annotation, "__args__", ())
        for found in _models_in(argument)
    ]


def build_stage(kind: str, config: dict[str, Any], place: str) -> Stage:
    """A stage from plain values.

    Raises:
        SpecError: no such stage, or a config that it refuses.
    """
    if kind not in STAGES:
        close = difflib.get_close_matches(kind, STAGES, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise SpecError(
            f"{place}: no stage {kind!r}; {hint}valid stages: {', '.join(STAGES)} (or"
            " give `stage: KIND`)"
        )
    return validated(STAGES[kind], config, place)


def portable(config: BaseModel) -> dict[str, Any]:
    """A config as JSON values, its paths absolute: nodes and later runs work in other folders."""
    return _absolute(config.model_dump(), config.model_dump(mode="json"))


def _absolute(value: Any, as_json: Any) -> Any:
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, dict):
        return {
            key: _absolute(inner, as_json[str(key)]) for key, inner in value.items()
        }
    return as_json


def preset_names() -> list[str]:
    """Names of the shipped specs."""
    folder = resources.files("sweeps.presets")
    return sorted(
        Path(entry.name).stem
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    )


def preset_text(name: str) -> str:
    """The YAML text of a shipped spec."""
    return (resources.files("sweeps.presets") / f"{name}.yaml").read_text(
        encoding="utf-8"
    )


def read_spec(source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(spec, tiny overrides) as plain values from a YAML file or a preset's name.

    Raises:
        SpecError: no such file or preset, not YAML, not a mapping.
    """
    presets = preset_names()
    if os.sep not in source and source in presets:
        documents = parse_yaml(preset_text(source), f"preset {source}")
    elif Path(source).is_file():
        documents = parse_yaml(read_text(Path(source)), source)
    else:
        close = difflib.get_close_matches(source, presets, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise SpecError(
            f"{source}: no such file or preset; {hint}presets: {', '.join(presets)}"
        )
    if (
        not documents
        or len(documents) > 2
        or not all(isinstance(d, dict) for d in documents)
    ):
        raise SpecError(
            f"{source}: a spec is one mapping (and, after ---, one mapping of overrides"
            " for --tiny)"
        )
    return documents[0], documents[1] if len(documents) == 2 else {}
