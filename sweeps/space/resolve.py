"""What a draw means: a configuration, and the validated pipeline of its trials."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import JsonValue

from compress.pipeline import NamedStage
from sweeps.run.plan import StageSpec
from sweeps.space.dimension import Configuration, leaves
from sweeps.space.space import Space
from sweeps.spec.load import portable, validated
from sweeps.spec.stages import build_stage
from sweeps.spec.yaml_text import SpecError
from trainers.config import Config, DataConfig, SourceConfig

AnyConfig = TypeVar("AnyConfig", bound=Config)


@dataclass(frozen=True)
class Resolved:
    """A configuration's part of the spec, validated.

    Attributes:
        configuration: dotted parameter → plain value.
        source, data: paths in them are absolute.
        stages: the pipeline's stages.
    """

    configuration: Configuration
    source: SourceConfig
    data: DataConfig
    stages: tuple[NamedStage, ...]

    @property
    def specs(self) -> tuple[StageSpec, ...]:
        """The stages as a plan holds them."""
        return tuple(
            StageSpec(name=s.name, kind=s.kind, config=portable(s.config))
            for s in self.stages
        )

    @property
    def config(self) -> dict[str, JsonValue]:
        """Every leaf of source, data and stages, and the alternative of each slot, flat."""
        flat: dict[str, JsonValue] = {
            path.removeprefix("stages."): value
            for path, value in self.configuration.items()
            if path.startswith("stages.") and path.count(".") == 1
        }
        sections: list[tuple[str, Config]] = [
            ("source", self.source),
            ("data", self.data),
            *((s.name, s.config) for s in self.stages),
        ]
        for name, section in sections:
            flat |= dict(leaves(name, section.model_dump(mode="json")))
        return flat


def resolved_trial(space: Space, draw: Mapping[str, JsonValue]) -> Resolved:
    """What a draw from a space means.

    Raises:
        SpecError: a value that its section refuses, with its place in the spec.
    """
    raw = space.resolve(draw)
    return Resolved(
        configuration=space.decode(draw),
        source=_absolute(validated(SourceConfig, raw["source"], "source")),
        data=_absolute(validated(DataConfig, raw["data"], "data")),
        stages=tuple(_stage(name, entry) for name, entry in raw["stages"].items()),
    )


def _stage(name: str, entry: Any) -> NamedStage:
    place = f"stages.{name}"
    if not isinstance(entry, dict):
        raise SpecError(
            f"{place}: a stage is a mapping of its parameters; got {entry!r}"
        )
    kind = entry.get("stage", name)
    if not isinstance(kind, str):
        raise SpecError(f"{place}.stage: the name of a stage; got {kind!r}")
    config = {key: value for key, value in entry.items() if key != "stage"}
    return NamedStage(name, kind, build_stage(kind, config, place))


def _absolute(config: AnyConfig) -> AnyConfig:
    return type(config).model_validate(portable(config))
