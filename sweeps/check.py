"""Everything that can be found wrong before a resource is taken."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from compress.pipeline import STAGES, NamedStage, check_pipeline
from sweeps.overrides import apply_overrides, set_override
from sweeps.samplers import make_sampler
from sweeps.space import Space, resolved_trial
from sweeps.spec import Spec, read_spec, spec_from
from sweeps.yaml_file import SpecError
from trainers.config import DataConfig
from trainers.data import DataInfo, data_info
from trainers.models import Arch
from trainers.source_model import SourceConfig, source_arch

VALIDATED = {
    "accuracy": "top-1 on the validation part, a fraction",
    "top5_accuracy": "top-5 on the validation part, a fraction",
    "loss": "cross-entropy on the validation part",
}
STATIC = {
    "num_params": "parameters",
    "gmacs": "multiply-accumulates of one image, in units of 10^9",
    "entropy_bits": "entropy of the values of all Linear and Conv parameters, bits per weight",
    "entropy_nonzero_bits": "the same without zeros",
    "unique_values": "distinct values among them",
    "zero_fraction": "fraction of zeros among them",
    "model_bytes": "parameters and buffers as stored",
}
LATENCY = {"latency_ms": "median forward pass on the trial's device, milliseconds per batch"}
CODED = {
    "coded_bytes": "the coded model file, whole (after a quantize stage)",
    "coded_ratio": "model_bytes / coded_bytes",
    "coded_bits_per_weight": "entropy-coded bits of a quantised weight, without the codebook",
    "coded_to_entropy": "coded_bits_per_weight / entropy_bits: below 1 where the coder finds more than a histogram tells",
}
METRICS = VALIDATED | STATIC | LATENCY | CODED
"""What every trial measures, beside what its stages report."""


@dataclass(frozen=True)
class Checked:
    """A spec that holds, with what was found on the way."""

    spec: Spec
    space: Space
    points: list[dict[str, Any]]
    example: tuple[NamedStage, ...]
    example_archs: list[Arch]

    @property
    def num_configurations(self) -> int:
        """Configurations that the search will try."""
        size = self.space.size()
        trials = self.spec.search.trials
        exhausts = size is not None and (self.spec.search.sampler == "grid" or not self.space.dimensions)
        return min(trials, size) if exhausts and size is not None else trials

    def distinct_stages(self) -> list[tuple[str, int]]:
        """For each stage the number of times that it is computed at most, thanks to the cache."""
        names, rows = list(self.spec.stages), []
        for i, name in enumerate(names):
            size = self.space.size(names[: i + 1])
            limit = self.num_configurations
            rows.append((name, min(limit, size if size is not None else limit) * self.spec.search.replicates))
        return rows


def load_spec(source: str, overrides: Sequence[str] = (), *, tiny: bool = False) -> Checked:
    """Read, override and check a spec file or preset.

    Raises:
        SpecError: the first group of mistakes found, a line each.
    """
    raw, tiny_overrides = read_spec(source)
    if tiny and not tiny_overrides:
        raise SpecError(f"{source}: has no tiny variant (a second YAML document with overrides)")
    for path, value in (tiny_overrides if tiny else {}).items():
        set_override(raw, path, value)
    return check_spec(spec_from(apply_overrides(raw, overrides)))


def check_spec(spec: Spec) -> Checked:
    """Check all that a valid form can still get wrong.

    Raises:
        SpecError: place, rule, value, remedy.
    """
    _check_resources(spec)
    space = Space(spec)
    make_sampler(spec.search.sampler, spec.seed, spec.search.sampler_options)
    size = space.size()
    if spec.search.sampler == "grid" and size is None:
        raise SpecError("search.sampler: grid needs a finite space; give each float range a step, or choose tpe")
    example, archs = _check_pipelines(spec, space)
    points = [space.point(point) for point in spec.search.points]
    return Checked(spec, space, points, example, archs)


def _check_resources(spec: Spec) -> None:
    wanted, have = (
        spec.resources,
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    )
    cpus = wanted.cpus or have
    if wanted.cpus_per_trial > cpus:
        raise SpecError(f"resources.cpus_per_trial: {wanted.cpus_per_trial} cores asked for, {cpus} there; lower it")
    gpus = torch.cuda.device_count()
    if wanted.gpus_per_trial > gpus:
        raise SpecError(f"resources.gpus_per_trial: {wanted.gpus_per_trial:g} GPUs asked for, {gpus} there; lower it")
    if wanted.device == "cuda" and (gpus == 0 or wanted.gpus_per_trial == 0):
        raise SpecError(f"resources.device: cuda needs resources.gpus_per_trial > 0 and a GPU; {gpus} there")
    parent = spec.storage.absolute()
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise SpecError(f"storage: {parent} is not a folder that can be written to; choose another")


def _check_pipelines(spec: Spec, space: Space) -> tuple[tuple[NamedStage, ...], list[Arch]]:
    example: tuple[tuple[NamedStage, ...], list[Arch]] | None = None
    seen: set[str] = set()
    for assignment in space.probes():
        trial = resolved_trial(space, assignment)
        identity = json.dumps(trial.config, sort_keys=True, default=str)
        if identity in seen:
            continue
        seen.add(identity)
        try:
            info = _info(trial.data)
            archs = check_pipeline(_source(trial.source, info), trial.stages, info)
        except (ValueError, TypeError) as error:
            raise SpecError(_with_choice(str(error), space, assignment)) from error
        _check_objectives(spec, trial.stages, trial.data)
        example = example or (trial.stages, archs)
    assert example is not None
    return example


def _with_choice(message: str, space: Space, assignment: dict[str, Any]) -> str:
    """`message` with the choices that can have led to it: those of the section that it names."""
    section = message.split(":")[0].split(".")
    named = section[1] if section[0] == "stages" and len(section) > 1 else section[0]
    paths = [d.path for d in space.dimensions if d.section in (named, "source", "data") and d.path in assignment]
    return f"{message} (with {', '.join(f'{p}={assignment[p]}' for p in paths)})" if paths else message


@lru_cache(maxsize=32)
def _info_cached(config_json: str) -> DataInfo:
    return data_info(DataConfig.model_validate_json(config_json))


def _info(config: DataConfig) -> DataInfo:
    try:
        return _info_cached(config.model_dump_json())
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith("data") else f"data: {message}") from error


def _source(config: SourceConfig, info: DataInfo) -> Arch:
    try:
        return source_arch(config, info.num_classes, info.image_size)
    except (ValueError, RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"source: {error}") from error


def _check_objectives(spec: Spec, stages: Sequence[NamedStage], data: DataConfig) -> None:
    available = set(METRICS) | {m for s in stages for m in STAGES[s.kind].metrics}
    if not spec.measure.latency:
        available -= set(LATENCY)
    if data.val_fraction == 0:
        available -= set(VALIDATED)
    if not any(stage.config.phase == "quantize" for stage in stages):
        available -= set(CODED)
    for i, objective in enumerate(spec.objectives):
        place = f"objectives.{i}.metric"
        if objective.metric.startswith("test_"):
            raise SpecError(
                f"{place}: the test set never guides the search; use {objective.metric.removeprefix('test_')!r}"
            )
        if objective.metric not in available:
            why = ""
            if objective.metric in VALIDATED and data.val_fraction == 0:
                why = " (data.val_fraction is 0, so nothing is held out)"
            if objective.metric in LATENCY and not spec.measure.latency:
                why = " (measure.latency is false)"
            raise SpecError(
                f"{place}: this pipeline has no metric {objective.metric!r}{why}; valid: {', '.join(sorted(available))}"
            )
        if objective.bound is not None and not math.isfinite(objective.bound):
            raise SpecError(f"objectives.{i}.bound: must be a finite number")


def default_data_cache() -> Path:
    """Where decoded images are kept: $SWEEPS_DATA_CACHE, or a folder of the user's cache."""
    base = os.environ.get("SWEEPS_DATA_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "compression-sweeps"
