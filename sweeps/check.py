"""Everything that can be found wrong before a resource is taken."""

import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

from analysis.contract import TEST_PREFIX
from compress.metrics import TEXT, Conditions, missing_because, trial_metrics
from compress.pipeline import NamedStage, check_pipeline
from sweeps.check_search import check_search
from sweeps.search.samplers import rehearse, sampler_of
from sweeps.space.dimension import Draw
from sweeps.space.overrides import apply_overrides, set_override
from sweeps.space.resolve import resolved_trial
from sweeps.space.space import Space
from sweeps.space.sweep import Sweep
from sweeps.spec.load import read_spec, spec_from
from sweeps.spec.model import OtherSampler, Spec
from sweeps.spec.plugins import absolute_entries, load_plugins, plugins_of
from sweeps.spec.yaml_text import SpecError, Tree, did_you_mean
from trainers.config import DataConfig, FitOptions, SourceConfig
from trainers.data.splits import DataInfo, data_info
from trainers.machine import usable_cores
from trainers.models.arch import Arch
from trainers.models.source import source_arch
from trainers.plugins import PluginFile
from trainers.remote import Remote, is_uri
from trainers.training.epoch_metrics import epoch_metrics

MOST_GRID = 100_000
"""Configurations that a grid may have."""


def raw_spec(source: str, overrides: Sequence[str] = (), *, tiny: bool = False) -> Tree:
    """A spec file or preset with its overrides, as plain values.

    Raises:
        SpecError: no such file or preset, not YAML, or an override that leads nowhere.
    """
    raw, tiny_overrides = read_spec(source)
    if tiny and not tiny_overrides:
        raise SpecError(
            f"{source}: has no tiny variant (a second YAML document with overrides)"
        )
    folder = Path(source).parent if Path(source).is_file() else Path()
    raw = absolute_entries(raw, folder)
    for path, value in (tiny_overrides if tiny else {}).items():
        set_override(raw, path, value)
    return absolute_entries(apply_overrides(raw, overrides), Path())


def load_spec(
    source: str, overrides: Sequence[str] = (), *, tiny: bool = False
) -> Sweep:
    """Read, override and check a spec file or preset; its plugins are loaded.

    Raises:
        SpecError: the first group of mistakes found, a line each.
    """
    raw = raw_spec(source, overrides, tiny=tiny)
    plugins = plugins_of(raw)
    load_plugins(plugins)
    return check_spec(spec_from(raw), plugins=plugins)


def check_spec(
    spec: Spec, *, local: bool = True, plugins: Sequence[PluginFile] = ()
) -> Sweep:
    """Check all that a valid form can still get wrong.

    Args:
        local: whether it is to run on this machine's cores.
        plugins: those of the spec, loaded.

    Raises:
        SpecError: place, rule, value, remedy.
    """
    if local:
        _check_cores(spec)
    _check_storage(spec)
    space = Space(spec)
    _check_sampler(spec, space)
    size = space.size()
    if spec.search.sampler == "grid" and size is None:
        raise SpecError(
            "search.sampler: grid needs a finite space; give each float range a step,"
            " or choose tpe"
        )
    if spec.search.sampler == "grid" and size is not None and size > MOST_GRID:
        raise SpecError(
            f"search.sampler: a grid of {size:,} configurations is too large to list;"
            " choose random or tpe"
        )
    example, archs = _check_pipelines(spec, space)
    points = tuple(space.encode(given) for given in spec.search.points)
    return Sweep(spec, space, points, example, tuple(archs), tuple(plugins))


def _check_sampler(spec: Spec, space: Space) -> None:
    search = spec.search
    sampler_of(search, spec.seed)
    if isinstance(search.sampler, OtherSampler):
        rehearse(search, spec.seed, spec.objectives, space.suggest)


def _check_cores(spec: Spec) -> None:
    """Refuse a trial for which this machine has too few cores or GPUs."""
    wanted = spec.resources
    cpus = wanted.cpus or usable_cores()
    each = f"{wanted.workers} workers x " if wanted.workers > 1 else ""
    if wanted.workers * wanted.cpus_per_worker > cpus:
        raise SpecError(
            f"resources.cpus_per_worker: a trial wants {each}{wanted.cpus_per_worker}"
            f" cores, and there are {cpus}; lower it"
        )
    gpus = torch.cuda.device_count()
    if wanted.workers * wanted.gpus_per_worker > gpus:
        raise SpecError(
            f"resources.gpus_per_worker: a trial wants {each}{wanted.gpus_per_worker:g}"
            f" GPUs, and there are {gpus}; lower it"
        )
    if wanted.device == "cuda" and (gpus == 0 or wanted.gpus_per_worker == 0):
        raise SpecError(
            "resources.device: cuda needs resources.gpus_per_worker > 0 and a GPU;"
            f" there are {gpus}"
        )


def _check_storage(spec: Spec) -> None:
    if is_uri(spec.storage):
        try:
            Remote(spec.storage).check_writable()
        except ValueError as error:
            raise SpecError(str(error)) from error
    parent = spec.run_folder.parent.absolute()
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise SpecError(
            f"storage: {parent} is not a folder that can be written to; choose another"
        )


def _check_pipelines(
    spec: Spec, space: Space
) -> tuple[tuple[NamedStage, ...], list[Arch]]:
    example: tuple[tuple[NamedStage, ...], list[Arch]] | None = None
    seen: set[str] = set()
    pipelines: list[tuple[NamedStage, ...]] = []
    guided = _guided_by(spec, space)
    for draw in space.probes():
        trial = resolved_trial(space, draw)
        identity = json.dumps(trial.config, sort_keys=True, default=str)
        if identity in seen:
            continue
        seen.add(identity)
        try:
            info = _info(trial.data)
            archs = check_pipeline(_source(trial.source, info), trial.stages, info)
            _check_workers(trial.stages, spec.resources.workers)
        except (ValueError, TypeError) as error:
            raise SpecError(_with_choice(str(error), space, draw)) from error
        _check_objectives(spec, trial.stages, trial.data, guided)
        example = example or (trial.stages, archs)
        pipelines.append(trial.stages)
    assert example is not None
    check_search(spec, pipelines, spec.data.val_fraction)
    return example


def _check_workers(stages: Sequence[NamedStage], workers: int) -> None:
    for stage in stages:
        if isinstance(stage.config, FitOptions):
            try:
                stage.config.accumulation(workers)
            except ValueError as error:
                raise ValueError(f"stages.{stage.name}: {error}") from error


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
def _info_cached(config_json: str) -> DataInfo:
    return data_info(DataConfig.model_validate_json(config_json))


def _info(config: DataConfig) -> DataInfo:
    try:
        return _info_cached(config.model_dump_json())
    except ValueError as error:
        message = str(error)
        raise ValueError(
            message if message.startswith("data") else f"data: {message}"
        ) from error


def _source(config: SourceConfig, info: DataInfo) -> Arch:
    try:
        return source_arch(config, info.num_classes, info.image_size)
    except (ValueError, RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"source: {error}") from error


def _check_objectives(
    spec: Spec, stages: Sequence[NamedStage], data: DataConfig, guided: str
) -> None:
    """Refuse an objective that the trials of this pipeline will not have.

    Args:
        guided: as `_guided_by` says it.
    """
    conditions = Conditions(
        validation=data.val_fraction > 0,
        latency=spec.measure.latency,
        quantized=any(stage.config.phase == "quantize" for stage in stages),
    )
    known = trial_metrics((stage.config for stage in stages), conditions)
    available = sorted(
        name
        for name, metric in known.items()
        if metric.unit != TEXT and not _is_of_test_set(name)
    )
    for i, objective in enumerate(spec.objectives):
        name, place = objective.metric, f"objectives.{i}.metric"
        if _is_of_test_set(name):
            _check_unguided(place, name, data, guided)
        elif name not in available:
            reason = missing_because(name, conditions)
            why = f" ({reason})" if reason else ""
            raise SpecError(
                f"{place}: this pipeline has no metric {name!r}{why};"
                f" {did_you_mean(name, available)}valid: {', '.join(available)}"
            )


UNGUIDED = ("grid", "random")
"""Samplers that draw the same configurations whatever the objectives are."""


def _guided_by(spec: Spec, space: Space) -> str:
    """What goes on with the better configurations; empty where the objectives decide nothing
    and only order the configurations afterwards.
    """
    search = spec.search
    if search.early_stopping is not None:
        return "search.early_stopping ends trials"
    if search.refine is not None:
        return "search.refine goes on with the best trials"
    if search.sampler not in UNGUIDED and space.dimensions:
        return f"search.sampler: {search.sampler} draws by the objectives"
    return ""


def _check_unguided(place: str, name: str, data: DataConfig, guided: str) -> None:
    """Refuse a metric of the test set as an objective, unless there is no validation part and
    nothing is chosen by it.
    """
    if data.val_fraction == 0 and not guided:
        return
    why = f" ({guided})" if guided and data.val_fraction == 0 else ""
    raise SpecError(
        f"{place}: the test set never guides the search{why}; use"
        f" {name.removeprefix(TEST_PREFIX)!r} with data.val_fraction above 0, or"
        " data.val_fraction: 0 with search.sampler: grid or random, early_stopping and"
        " refine left out"
    )


def _is_of_test_set(metric: str) -> bool:
    return (
        metric.startswith(TEST_PREFIX)
        and metric.removeprefix(TEST_PREFIX) in epoch_metrics()
    )
