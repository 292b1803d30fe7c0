"""The spec: what one YAML file says about a sweep, validated."""

import difflib
import os
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, ValidationError, model_validator

from compress.pipeline import STAGES
from compress.stage import Stage
from sweeps.yaml_file import SpecError, parse_yaml, plain, read_text
from trainers.config import Config, DataConfig
from trainers.source_model import SourceConfig

RunName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=120)]


class Objective(Config):
    """One measure to optimise."""

    metric: str = Field(description="a measured metric or one that a stage reports (`sweeps methods`)")
    mode: Literal["min", "max"]
    bound: float | None = Field(
        None, description="worst value that is acceptable: trials beyond it never enter the front"
    )


class Search(Config):
    """How the space is searched."""

    sampler: Literal["tpe", "random", "nsga2", "gp", "grid"] = "tpe"
    sampler_options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of Optuna's sampler")
    trials: int = Field(24, ge=1, description="configurations to try; each runs `replicates` times")
    replicates: int = Field(1, ge=1, description="root seeds per configuration; the search sees their mean")
    space: dict[str, Any] = Field(
        default_factory=dict,
        description="dotted parameter → list, {low, high, log, step} or {choices: {label: value}}; slots are searched by themselves",
    )
    points: list[dict[str, Any]] = Field(
        default_factory=list, description="points to try first: dotted parameter → value or label"
    )
    max_failures: int = Field(
        1,
        ge=0,
        description="times that a failed trial is run again before it is recorded as failed (not what would fail the same way: a refused value, a non-finite loss)",
    )


class Resources(Config):
    """What trials may use."""

    cpus_per_trial: int = Field(1, ge=1, description="cores, and threads of torch")
    gpus_per_trial: float = Field(0, ge=0, description="fractions share a GPU")
    concurrent: int | None = Field(None, ge=1, description="trials at a time; default: as many as fit")
    cpus: int | None = Field(None, ge=1, description="cores of the local Ray; default: all")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where a trial has a GPU")


class Measure(Config):
    """How the final model's latency is measured, on the trial's device."""

    latency: bool = True
    batch_size: int = Field(64, ge=1)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    warmup: int = Field(3, ge=0, description="forward passes before the clock")
    repeats: int = Field(30, ge=3, description="timed forward passes; their median counts")
    max_seconds: float = Field(10.0, gt=0, description="stop repeating after this long, with at least 3")


class Spec(Config):
    """A sweep."""

    name: RunName
    seed: int = Field(0, ge=0, lt=2**31)
    storage: Path = Field(Path("runs"), description="the run folder is storage/name; the stage cache is storage/_cache")
    source: SourceConfig
    data: DataConfig = DataConfig()
    stages: dict[str, Any] = Field(description="name → stage config, or a slot {one_of: {alternative: config or null}}")
    objectives: list[Objective] = Field(min_length=1)
    search: Search = Search()
    resources: Resources = Resources()
    measure: Measure = Measure()

    @model_validator(mode="after")
    def _unique_objectives(self) -> "Spec":
        names = [o.metric for o in self.objectives]
        if len(set(names)) < len(names):
            raise ValueError("objectives: each metric may be given once")
        for name in self.stages:
            if not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"stages: the name {name!r} may have letters, digits, _ and - only")
        return self

    @cached_property
    def raw(self) -> dict[str, Any]:
        """The spec as plain JSON values."""
        return self.model_dump(mode="json")

    @property
    def run_folder(self) -> Path:
        return self.storage / self.name

    @property
    def cache_folder(self) -> Path:
        return self.storage / "_cache"


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
        lines = [_explain(model, detail, place) for detail in error.errors(include_url=False)]
        raise SpecError("\n".join(dict.fromkeys(lines))) from error


def _explain(model: type[BaseModel], detail: Any, place: str) -> str:
    location = [str(part) for part in detail["loc"] if not str(part).startswith(("function-", "tuple["))]
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
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message[:1].lower() + message[1:]
    return f"{where}: {message}" if shown in message or len(location) == 0 else f"{where}: {message}; got {shown}"


def _fields_at(model: type[BaseModel], location: list[str]) -> list[str]:
    current: Any = model
    for part in location:
        candidates = (
            _models_in(current.model_fields[part].annotation) if part in getattr(current, "model_fields", {}) else []
        )
        if not candidates:
            if part.isdigit():  # an item of a list of models
                continue
            return []
        current = candidates[0]
    return list(current.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in getattr(annotation, "__args__", ()) for found in _models_in(argument)]


def build_stage(kind: str, config: dict[str, Any], place: str) -> Stage:
    """A stage from plain values.

    Raises:
        SpecError: no such stage, or a config that it refuses.
    """
    if kind not in STAGES:
        close = difflib.get_close_matches(kind, STAGES, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise SpecError(f"{place}: no stage {kind!r}; {hint}valid stages: {', '.join(STAGES)} (or give `stage: KIND`)")
    return validated(STAGES[kind], config, place)


def preset_names() -> list[str]:
    """Names of the shipped specs."""
    folder = resources.files("sweeps.presets")
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def preset_text(name: str) -> str:
    """The YAML text of a shipped spec."""
    return (resources.files("sweeps.presets") / f"{name}.yaml").read_text(encoding="utf-8")


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
        raise SpecError(f"{source}: no such file or preset; {hint}presets: {', '.join(presets)}")
    if not documents or len(documents) > 2 or not all(isinstance(d, dict) for d in documents):
        raise SpecError(f"{source}: a spec is one mapping (and, after ---, one mapping of overrides for --tiny)")
    return documents[0], documents[1] if len(documents) == 2 else {}
