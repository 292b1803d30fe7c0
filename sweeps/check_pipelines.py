"""Every kind of pipeline that a space can give, opened once: source, data, models, stages.

What is refused here is refused for the whole sweep. The corners of the space are tried, draws from
within it, and the points that the spec names.
"""

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from compress.pipeline import NamedStage, check_pipeline, trains
from compress.runtimes.registry import runtime
from sweeps.check_objectives import check_objectives, guided_by
from sweeps.search.refine import refined_pipeline
from sweeps.space.dimension import Draw
from sweeps.space.resolve import Resolved, resolved_trial
from sweeps.space.space import Space
from sweeps.spec.model import Spec
from sweeps.spec.yaml_text import SpecError
from trainers.config import DataConfig, FitOptions, SourceConfig
from trainers.data.info import DataInfo
from trainers.data.rehearsal import rehearse_augmentation
from trainers.data.splits import data_info
from trainers.models.arch import Arch
from trainers.models.source import SourceFacts, source_facts
from trainers.timm_library import timm

INTERIOR = 32
"""Draws from within a space, over all choices of its slots."""

INTERIOR_OF_A_CHOICE = 8
"""At least as many for every choice of the slots."""

_SOURCE_ERRORS = (ValueError, RuntimeError, AssertionError, TypeError)


@dataclass(frozen=True)
class Opened:
    """What a sweep's pipelines are, and what they start from.

    Attributes:
        example: the stages of one configuration.
        archs: the architecture after each of them.
        pipelines: all that were opened.
        data: the data set in one line.
        remarks: what a user must know about sources and data sets, each once.
    """

    example: tuple[NamedStage, ...]
    archs: tuple[Arch, ...]
    pipelines: tuple[tuple[NamedStage, ...], ...]
    data: str
    remarks: tuple[str, ...]


def check_pipelines(spec: Spec, space: Space, points: Sequence[Draw]) -> Opened:
    """Open the pipelines of a space.

    Raises:
        SpecError: place, rule, value, remedy, and the parameters that led there.
    """
    example: tuple[tuple[NamedStage, ...], list[Arch]] | None = None
    pipelines: list[tuple[NamedStage, ...]] = []
    remarks: dict[str, None] = {}
    guided = guided_by(spec, space)
    data: str | None = None
    # all that is written wrong is found before weights and data are looked for
    trials = list(_trials(space, points))
    for _, trial in trials:
        check_objectives(spec, trial.stages, trial.data, guided)
    for draw, trial in trials:
        try:
            info = _info(trial.data)
            facts = _source(trial, info)
            wanted = spec.resources
            archs = check_pipeline(
                facts.arch, trial.stages, info, wanted.workers, wanted.strategy
            )
            for options in spec.measure.runtimes.values():
                runtime(options.runtime).check_model(archs[-1] if archs else facts.arch)
            _check_augmentation(trial, info)
            _check_refined(spec, facts.arch, trial, info)
        except (ValueError, TypeError) as error:
            raise SpecError(_with_choice(str(error), space, draw)) from error
        training = _unsaid_training(trial.stages, info)
        pixels = other_normalisation(facts.arch, trial.source, trial.data)
        remarks |= dict.fromkeys((*facts.remarks, *pixels, *info.remarks, *training))
        data = data or info.describe()
        example = example or (trial.stages, archs)
        pipelines.append(trial.stages)
    assert example is not None
    assert data is not None
    return Opened(example[0], tuple(example[1]), tuple(pipelines), data, tuple(remarks))


def _trials(space: Space, points: Sequence[Draw]) -> Iterator[tuple[Draw, Resolved]]:
    """Draws that stand for all of a space, and what they mean, each meaning once."""
    seen: set[str] = set()
    draws = itertools.chain(
        space.corners(),
        space.interior(INTERIOR, INTERIOR_OF_A_CHOICE),
        (space.completed(point) for point in points),
    )
    for draw in draws:
        try:
            trial = resolved_trial(space, draw)
        except ValueError as error:
            raise SpecError(_with_choice(str(error), space, draw)) from error
        identity = json.dumps(trial.config, sort_keys=True, default=str)
        if identity not in seen:
            seen.add(identity)
            yield draw, trial


def other_normalisation(
    arch: Arch, source: SourceConfig, data: DataConfig
) -> Iterator[str]:
    """A sentence where timm's weights were trained on pixels of another mean or deviation."""
    known = timm.get_pretrained_cfg(arch.name) if source.pretrained else None
    if known is None:
        return
    wanted, given = (*known.mean, *known.std), (*data.mean, *data.std)
    if all(
        math.isclose(a, b, abs_tol=1e-3) for a, b in zip(wanted, given, strict=True)
    ):
        return
    yield (
        f"source: the weights of {arch.name} were trained on images of mean"
        f" {list(known.mean)} and std {list(known.std)}, and data.mean and data.std are"
        f" {list(data.mean)} and {list(data.std)}; give data those of the weights."
    )


def _unsaid_training(stages: Sequence[NamedStage], info: DataInfo) -> Iterator[str]:
    """How long stages train whose spec says nothing of epochs, in a sentence for each."""
    for stage in stages:
        config = stage.config
        epochs = config.num_epochs()
        if not epochs or any("epochs" in name for name in config.model_fields_set):
            continue
        images = getattr(config, "images_per_epoch", None) or info.num_train
        yield (
            f"stages.{stage.name}: trains {epochs} epochs of {images:,} images at most,"
            f" by the defaults of {stage.kind}."
        )


def _with_choice(message: str, space: Space, draw: Draw) -> str:
    """`message` with the choices that can have led to it: those of the section that it names."""
    section = message.split(":")[0].split(".")
    named = section[1] if section[0] == "stages" and len(section) > 1 else section[0]
    sections = {named, "source", "data"} | {
        d.section for d in space.dimensions if d.stage == named
    }
    concerned = [
        d
        for d in space.dimensions
        if d.section in sections and d.stage in (None, named) and d.is_drawn(draw)
    ]
    choices = ", ".join(f"{d.path}={d.decode(draw)}" for d in concerned)
    return f"{message} (with {choices})" if choices else message


@lru_cache(maxsize=32)
def known_info(config_json: str) -> DataInfo:
    """Facts about the data of a config's JSON; looked up once in a process.

    Raises:
        ValueError: as `data_info`.
    """
    return data_info(DataConfig.model_validate_json(config_json))


def _info(config: DataConfig) -> DataInfo:
    try:
        return known_info(config.model_dump_json())
    except ValueError as error:
        message = str(error)
        raise ValueError(
            message if message.startswith("data") else f"data: {message}"
        ) from error


@lru_cache(maxsize=32)
def _facts_cached(
    config_json: str, num_classes: int, image_size: int, trained: bool
) -> SourceFacts:
    config = SourceConfig.model_validate_json(config_json)
    return source_facts(config, num_classes, image_size, trained=trained)


def _source(trial: Resolved, info: DataInfo) -> SourceFacts:
    """The opened source of a pipeline."""
    config = trial.source.model_dump_json()
    try:
        return _facts_cached(
            config, info.num_classes, info.image_size, trains(trial.stages)
        )
    except _SOURCE_ERRORS as error:
        raise ValueError(f"source: {error}") from error


def _check_refined(spec: Spec, source: Arch, trial: Resolved, info: DataInfo) -> None:
    """Refuse a last rung that its trials could not run."""
    if spec.search.refine is None:
        return
    refined = refined_pipeline(trial.stages, spec.search.refine)
    try:
        wanted = spec.resources
        check_pipeline(source, refined, info, wanted.workers, wanted.strategy)
    except ValueError as error:
        raise ValueError(f"search.refine: {error}") from error


def _check_augmentation(trial: Resolved, info: DataInfo) -> None:
    for stage in trial.stages:
        if isinstance(stage.config, FitOptions):
            try:
                rehearse_augmentation(stage.config.augment, trial.data, info)
            except ValueError as error:
                raise ValueError(f"stages.{stage.name}: {error}") from error
