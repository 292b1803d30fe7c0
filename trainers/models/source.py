"""The model that a pipeline starts from: random, timm's pretrained, a checkpoint file, or a
folder of ours.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainers.config import SourceConfig
from trainers.models.arch import Arch, ModelState, read_arch, shared_on_meta
from trainers.models.checkpoint_file import read_checkpoint
from trainers.models.fit_weights import Fit, fit_weights, fresh_classifier
from trainers.models.hub import WEIGHTS, check_hub
from trainers.models.make import is_hub_name, make_arch, saved_arch
from trainers.models.parameters import classifier_layers
from trainers.option_types import LOCAL_FOLDER
from trainers.timm_library import timm


@dataclass(frozen=True)
class SourceFacts:
    """What opening a source tells, before anything is computed.

    Attributes:
        arch: its architecture.
        remarks: whole sentences that a user must know: a fresh classifier, names that were
            mapped, a resampled position embedding, what of the file is not used.
        fresh: names of the parameters that the checkpoint does not give and that start from
            random values; empty where there is no checkpoint.
        unused: names of the checkpoint's tensors that the model does not take.
    """

    arch: Arch
    remarks: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def source_facts(
    config: SourceConfig, num_classes: int, image_size: int, *, trained: bool
) -> SourceFacts:
    """Open the source: read its checkpoint and compare it with the architecture.

    Args:
        num_classes, image_size: of the data.
        trained: whether a stage of the pipeline trains the model. Without one, a checkpoint
            that leaves parameters fresh is refused: its accuracy would be chance.

    Raises:
        ValueError: unknown model or arguments, or a checkpoint that cannot be read, does not
            fit, or holds values that are not finite.
    """
    facts = _facts(
        config.model_dump_json(), _stamps(config.checkpoint), num_classes, image_size
    )
    if facts.fresh and not trained:
        raise ValueError(_untrained(config, facts, num_classes))
    return facts


def load_source(
    config: SourceConfig, *, num_classes: int, image_size: int, seed: int
) -> ModelState:
    """The source model. The last few stay in memory, so that trials of one process load it once.

    Raises:
        ValueError: the file is missing, unreadable, or does not fit the architecture.
    """
    stamps = _stamps(config.checkpoint)
    return _load(config.model_dump_json(), stamps, num_classes, image_size, seed)


def source_arch(config: SourceConfig, num_classes: int, image_size: int) -> Arch:
    """The source's architecture for this data; of its weights nothing is read.

    Raises:
        ValueError: unknown model, arguments it does not take, or a folder that does not say
            which model it holds.
    """
    if config.model is not None:
        return make_arch(
            config.model,
            num_classes=num_classes,
            image_size=image_size,
            args=config.args,
        )
    folder = config.checkpoint
    assert folder is not None
    if _is_ours(folder):
        return _for_data(read_arch(folder), num_classes, image_size)
    found = read_checkpoint(folder)
    if found.model is None:
        raise ValueError(
            f"{folder}: neither model.json nor config.json says which model this is; give"
            " source.model"
        )
    return saved_arch(
        found.model, found.model_args, config.args, num_classes, image_size
    )


def _is_ours(path: Path) -> bool:
    return (path / "model.json").is_file()


def _for_data(arch: Arch, num_classes: int, image_size: int) -> Arch:
    """A saved architecture with the classes and the image size of this data."""
    args = dict(arch.args)
    for name, value in (("num_classes", num_classes), ("img_size", image_size)):
        if name in args:
            args[name] = value
    return arch if args == arch.args else replace(arch, args=args)


# ------------------------------------------------------------------ opening

Stamps = tuple[tuple[str, int, int], ...]
"""Name, size and time of the files of a checkpoint: what is kept of it is not out of date."""


def _stamps(path: Path | None) -> Stamps:
    if path is None:
        return ()
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


@lru_cache(maxsize=64)
def _facts(
    config_json: str, stamps: Stamps, num_classes: int, image_size: int
) -> SourceFacts:
    config = _from_local_folder(SourceConfig.model_validate_json(config_json))
    arch = source_arch(config, num_classes, image_size)
    if config.pretrained:
        return _facts_of_pretrained(_pretrained(config, arch, 0), arch)
    if config.checkpoint is None:
        return SourceFacts(arch)
    fit = _fit(config, arch)
    return SourceFacts(arch, fit.remarks, fit.fresh, fit.unused)


@lru_cache(maxsize=4)
def _load(
    config_json: str, stamps: Stamps, num_classes: int, image_size: int, seed: int
) -> ModelState:
    config = _from_local_folder(SourceConfig.model_validate_json(config_json))
    path, notes = config.checkpoint, {}
    if config.model is None and path is not None and _is_ours(path):
        saved = ModelState.load(path)
        arch, notes = _for_data(saved.arch, num_classes, image_size), saved.meta
        if arch == saved.arch:
            return saved
    else:
        arch = source_arch(config, num_classes, image_size)
    if config.pretrained:
        module = _pretrained(config, arch, seed)
        weights = {k: v.detach().contiguous() for k, v in module.state_dict().items()}
    elif path is None:
        return ModelState.initialised(arch, seed)
    else:
        weights = _weights(_fit(config, arch), arch, seed, config.head_init_scale)
    return ModelState(arch, weights, notes)


def _from_local_folder(config: SourceConfig) -> SourceConfig:
    """timm's `local-dir:FOLDER` with its weights is that folder as a checkpoint."""
    if not config.pretrained or not (config.model or "").startswith(LOCAL_FOLDER):
        return config
    folder = Path((config.model or "").removeprefix(LOCAL_FOLDER))
    return config.model_copy(update={"pretrained": False, "checkpoint": folder})


def _fit(config: SourceConfig, arch: Arch) -> Fit:
    assert config.checkpoint is not None
    return fit_weights(
        read_checkpoint(config.checkpoint),
        arch,
        key=config.checkpoint_key,
        prefix=config.checkpoint_prefix,
    )


def _weights(
    fit: Fit, arch: Arch, seed: int, head_scale: float | None
) -> dict[str, Tensor]:
    """All weights in the architecture's order: those of a checkpoint, copied into memory of
    their own, and fresh ones drawn from `seed`.
    """
    module = shared_on_meta(arch)
    wanted, heads = module.state_dict(), classifier_layers(module)
    lacking = [name for name in wanted if name not in fit.weights]
    drawn = ModelState.initialised(arch, seed).weights if lacking else {}
    weights: dict[str, Tensor] = {}
    for name, own in wanted.items():
        if name in fit.weights:
            weights[name] = fit.weights[name].to(own.dtype, copy=True).contiguous()
        elif head_scale is not None and name.startswith(tuple(f"{h}." for h in heads)):
            weights[name] = drawn[name] * head_scale
        else:
            weights[name] = drawn[name]
    return weights


def _untrained(config: SourceConfig, facts: SourceFacts, num_classes: int) -> str:
    origin = config.checkpoint or f"the pretrained {config.model}"
    return (
        f"{origin}: {' '.join(facts.remarks)} No stage trains the model for the"
        f" {num_classes} classes of the data, so its accuracy would be chance; add a stage"
        " that trains, or give weights for these classes"
    )


# ------------------------------------------------------------------ timm's pretrained weights


def _pretrained(config: SourceConfig, arch: Arch, seed: int) -> nn.Module:
    """The model as timm makes it; what its weights do not give is drawn from `seed`."""
    assert config.model is not None
    name = config.model if is_hub_name(config.model) else arch.name
    configured = timm.get_pretrained_cfg(arch.name)
    if name == arch.name and not (configured and configured.has_weights):
        have = ", ".join(timm.list_pretrained(f"{arch.name.split('.')[0]}*")[:4])
        raise ValueError(
            f"timm has no pretrained weights of {name!r}; it has"
            f" {have or 'none of that model'}; or give source.checkpoint"
        )
    hub_id = name.partition(":")[2] or configured.hf_hub_id
    try:
        if hub_id:
            check_hub(hub_id, WEIGHTS)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return timm.create_model(name, pretrained=True, **arch.args)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"pretrained weights of {name!r} cannot be had: {reason}; check that this"
            " machine reaches the internet, or give source.checkpoint"
        ) from error


def _facts_of_pretrained(module: nn.Module, arch: Arch) -> SourceFacts:
    configured: Any = getattr(module, "pretrained_cfg", None) or {}
    theirs, wanted = configured.get("num_classes"), arch.args["num_classes"]
    heads = classifier_layers(module)
    if theirs == wanted or not heads:
        return SourceFacts(arch)
    fresh = [
        n for n in module.state_dict() if n.startswith(tuple(f"{h}." for h in heads))
    ]
    return SourceFacts(arch, fresh_classifier(heads, theirs or 0, wanted), tuple(fresh))
