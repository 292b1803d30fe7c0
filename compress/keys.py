"""Keys of the stage cache: hashes of all that decides a stage's result, and of nothing else.

key_0 = hash of source model, data, seed, what computes, and library versions;
key_n = hash of key_(n-1), stage kind, version, canonical config and teachers. Contents
count, never paths or names: the same work under another name has the same key.
"""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import torch

from compress.stage import Stage
from trainers import plugins
from trainers.config import TrainConfig
from trainers.files import sha256_file
from trainers.hashing import values_to_hash
from trainers.option_types import Strategy
from trainers.training import distributed


def content_key(*parts: Any) -> str:
    """SHA-256 of JSON-able parts, in order."""
    text = json.dumps(parts, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def library_versions() -> dict[str, str]:
    """Versions that can change a result."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": version("timm"),
        "numpy": numpy.__version__,
    }


def computing(device: torch.device, strategy: Strategy) -> dict[str, str | int]:
    """What computes, as far as it decides bits: device type, threads, processes, and how these
    share the model.
    """
    found: dict[str, str | int] = {
        "device": device.type,
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
    }
    if distributed.world_size() > 1:
        found["workers"] = distributed.world_size()
        if strategy != "ddp":  # norms are summed in another order
            found["strategy"] = strategy
    return found


def source_key(
    source: str,
    data: str,
    seed: int,
    compute: Mapping[str, str | int],
    versions: Mapping[str, str],
) -> str:
    """The key of a pipeline before its first stage.

    Args:
        source: hash of the source model.
        data: fingerprint of the data set.
        seed: the pipeline's root seed.
        compute: as `computing` gives it.
        versions: as `library_versions` gives them.
    """
    return content_key(source, data, seed, dict(compute), dict(versions))


def stage_key(before: str, kind: str, config: Stage, teachers: Sequence[str]) -> str:
    """The key of a stage's result.

    Args:
        before: the key of its input.
        kind: the stage's name in `compress.pipeline.stages()`.
        config: the stage.
        teachers: key or hash of each teacher that it uses, in the order of `teachers()`.
    """
    canonical = _hashed_paths(values_to_hash(config))
    return _key_of(before, kind, config, canonical, teachers)


def shorter_stage_keys(
    before: str, kind: str, config: TrainConfig, teachers: Sequence[str]
) -> list[str]:
    """The keys of a stage that trains and of the same with fewer epochs, the longest first.

    Those are left out after whose last epoch a longer fit would not evaluate.
    """
    assert isinstance(config, Stage)
    canonical = _hashed_paths(values_to_hash(config))
    fewer = range(config.epochs - 1, 0, -1)
    lengths = [config.epochs, *(n for n in fewer if n % config.eval_every == 0)]
    return [
        _key_of(before, kind, config, canonical | {"epochs": length}, teachers)
        for length in lengths
    ]


def _key_of(
    before: str, kind: str, config: Stage, canonical: Any, teachers: Sequence[str]
) -> str:
    parts: list[Any] = [before, kind, config.version, canonical, list(teachers)]
    plugin = plugins.plugin_of(type(config))
    if plugin is not None:  # its source decides the result, as `version` does for ours
        parts.append(plugin.sha256)
    return content_key(*parts)


def _hashed_paths(value: Any) -> Any:
    """Config values with every path replaced by a hash of what lies there."""
    if isinstance(value, Path):
        return _hashed_folder(value) if value.is_dir() else sha256_file(value)
    if isinstance(value, dict):
        return {key: _hashed_paths(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_hashed_paths(each) for each in value]
    return value


def _hashed_folder(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
