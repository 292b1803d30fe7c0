"""Everything that can be found wrong before a resource is taken."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from optuna.samplers import GPSampler

from sweeps.check_pipelines import check_pipelines
from sweeps.check_runtimes import check_runtimes
from sweeps.check_search import check_search, search_remarks
from sweeps.search.baseline import check_relative_bounds
from sweeps.search.samplers import rehearse, sampler_of
from sweeps.space.overrides import apply_overrides, set_override
from sweeps.space.space import Space
from sweeps.space.sweep import Sweep
from sweeps.spec.load import read_spec, spec_from
from sweeps.spec.model import Spec
from sweeps.spec.plugins import absolute_entries, load_plugins, plugins_of
from sweeps.spec.search_options import OtherSampler
from sweeps.spec.yaml_text import SpecError, Tree
from trainers.machine import usable_cores
from trainers.plugins import PluginFile
from trainers.remote import Remote, is_uri

MOST_GRID = 100_000
"""Configurations that a grid may have."""

MOST_LISTED = 1_000_000
"""Values of a dimension that the gp sampler lists in a second."""


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
    check_runtimes(spec)
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
    points = tuple(space.encode(given) for given in spec.search.points)
    found = check_pipelines(spec, space, points)
    check_search(spec, found.pipelines, spec.data.val_fraction)
    sweep = Sweep(
        spec,
        space,
        points,
        found.example,
        found.archs,
        tuple(plugins),
        found.data,
        (*found.remarks, *search_remarks(spec, found.pipelines)),
    )
    check_relative_bounds(sweep)
    return sweep


def _check_sampler(spec: Spec, space: Space) -> None:
    search = spec.search
    sampler = sampler_of(search, spec.seed)
    if isinstance(sampler, GPSampler):
        _check_listed(space)
    if isinstance(search.sampler, OtherSampler):
        rehearse(search, spec.seed, spec.objectives, space.suggest)


def _check_listed(space: Space) -> None:
    """Refuse a grid that the gp sampler would list value by value."""
    for dimension in space.dimensions:
        count = dimension.num_draws() or 0
        if dimension.kind in ("int", "float") and count > MOST_LISTED:
            raise SpecError(
                f"search.space.{dimension.path}: {count:,} values are too many for the"
                " sampler gp, which lists them; leave step out, or choose tpe"
            )


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
    if wanted.memory_gb is not None and spec.distributed:
        raise SpecError(
            "resources.memory_gb: it counts trials of one worker in the trial's own process;"
            " remove it, or set workers to 1 and trainer to auto"
        )
    gpus = torch.cuda.device_count()
    if wanted.workers * wanted.gpus_per_worker > gpus:
        raise SpecError(
            f"resources.gpus_per_worker: a trial wants {each}{wanted.gpus_per_worker:g}"
            f" GPUs, and there are {gpus}; lower it"
        )
    parts_of_gpus = 0 < wanted.gpus_per_worker < 1 and wanted.device != "cpu"
    if wanted.strategy == "fsdp" and wanted.workers > 1 and parts_of_gpus:
        raise SpecError(
            "resources.strategy: fsdp needs whole GPUs, or none, and a worker has"
            f" {wanted.gpus_per_worker:g} (gpus_per_worker); give each at least 1"
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
    if re.match(r"[a-z][a-z0-9+]+:/", spec.storage) and not is_uri(spec.storage):
        raise SpecError(
            f"storage: {spec.storage} is neither a folder nor a URI, which has two slashes"
            " after its colon"
        )
    parent = spec.run_folder.parent.absolute()
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise SpecError(
            f"storage: {parent} is not a folder that can be written to; choose another"
        )
