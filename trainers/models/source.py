"""The model that a pipeline starts from: random, timm's pretrained, a checkpoint file, or a
folder of ours.
"""

import pickle
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from trainers.config import SourceConfig
from trainers.models.arch import Arch, ModelState
from trainers.models.make import make_arch
from trainers.models.parameters import classifier_layers
from trainers.timm_internals import converted_checkpoint
from trainers.timm_library import timm

_KEYS = ("model_ema", "state_dict_ema", "model", "module", "state_dict")


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
    return SourceFacts(source_arch(config, num_classes, image_size))


def source_arch(config: SourceConfig, num_classes: int, image_size: int) -> Arch:
    """The source's architecture, without its weights.

    Raises:
        ValueError: unknown model, arguments it does not take, or a folder that is not ours.
    """
    if config.model is None:
        assert config.checkpoint is not None
        return ModelState.load(config.checkpoint).arch
    return make_arch(
        config.model, num_classes=num_classes, image_size=image_size, args=config.args
    )


@lru_cache(maxsize=4)
def _load(config_json: str, num_classes: int, image_size: int, seed: int) -> ModelState:
    config = SourceConfig.model_validate_json(config_json)
    if config.model is None:
        assert config.checkpoint is not None
        return ModelState.load(config.checkpoint)
    arch = source_arch(config, num_classes, image_size)
    fresh = ModelState.initialised(arch, seed)
    if config.pretrained:
        return ModelState(arch, _pretrained(arch), {})
    if config.checkpoint is None:
        return fresh
    weights = read_state_dict(
        config.checkpoint, config.checkpoint_key, config.checkpoint_prefix
    )
    return _fitted(fresh, weights, str(config.checkpoint), config.head_init_scale)


def load_source(
    config: SourceConfig, *, num_classes: int, image_size: int, seed: int
) -> ModelState:
    """The source model. The last few stay in memory, so that trials of one process load it once.

    Raises:
        ValueError: the file is missing, unreadable, or does not fit the architecture.
    """
    return _load(config.model_dump_json(), num_classes, image_size, seed)


def _pretrained(arch: Arch) -> dict[str, Tensor]:
    try:
        module = timm.create_model(arch.name, pretrained=True, **arch.args)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"pretrained weights of {arch.name!r} cannot be had: {reason}; check the"
            " model has weights and the machine has internet, or give"
            " source.checkpoint"
        ) from error
    return {k: v.detach().contiguous() for k, v in module.state_dict().items()}


def read_state_dict(
    path: Path, key: str | None = None, prefix: str = ""
) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file, a torch file (read without unpickling code),
    or a folder saved by us.

    Raises:
        ValueError: not such a file, or no state dict under `key`.
    """
    path = path / "model.safetensors" if path.is_dir() else path
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        RuntimeError,
        SafetensorError,
        pickle.UnpicklingError,
        EOFError,
    ) as error:
        raise ValueError(
            f"{path}: not a readable safetensors file or plain state dict"
            f" ({str(error)[:200]})"
        ) from error
    if key is not None:
        if not isinstance(content, dict) or key not in content:
            have = (
                ", ".join(map(str, content))
                if isinstance(content, dict)
                else type(content).__name__
            )
            raise ValueError(f"{path}: no key {key!r}; it has {have[:200]}")
        content = content[key]
    elif isinstance(content, dict):
        content = next(
            (content[k] for k in _KEYS if isinstance(content.get(k), dict)), content
        )
    tensors = (
        {k: v for k, v in content.items() if isinstance(v, Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not tensors:
        raise ValueError(f"{path}: holds no tensors by name; give checkpoint_key")
    return {
        k.removeprefix("module.").removeprefix(prefix): v for k, v in tensors.items()
    }


def _fitted(
    fresh: ModelState, weights: dict[str, Tensor], origin: str, head_scale: float | None
) -> ModelState:
    """`weights` in `fresh`'s architecture: position embeddings resampled, another
    classifier left fresh.
    """
    module = fresh.build()
    if fresh.arch.builder == "timm":
        weights = converted_checkpoint(weights, module)
    result = dict(fresh.weights)
    heads = classifier_layers(module)
    missing, misfits = [], []
    for name, own in fresh.weights.items():
        theirs = weights.get(name)
        in_head = name.rsplit(".", 1)[0] in heads
        if theirs is not None and theirs.shape != own.shape and name == "pos_embed":
            theirs = _resampled(theirs, module)
        if theirs is not None and theirs.shape == own.shape:
            result[name] = theirs.to(own.dtype).contiguous()
        elif theirs is None and name.endswith(".num_batches_tracked"):
            continue  # a counter that older checkpoints lack
        elif in_head:
            result[name] = own * head_scale if head_scale is not None else own
        elif theirs is None:
            missing.append(name)
        else:
            misfits.append(
                f"{name}: file {tuple(theirs.shape)}, model {tuple(own.shape)}"
            )
    unknown = [
        name
        for name in weights
        if name not in fresh.weights and name.rsplit(".", 1)[0] not in heads
    ]
    problems = [
        f"{what}: {', '.join(names[:4])}{' …' if len(names) > 4 else ''}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unknown),
            ("shapes differ", misfits),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"{origin} does not fit {fresh.arch.name}: {'; '.join(problems)}"
        )
    return ModelState(fresh.arch, result, fresh.meta)


def _resampled(pos_embed: Tensor, module: nn.Module) -> Tensor:
    grid: Any = module.get_submodule("patch_embed").grid_size
    return timm.layers.resample_abs_pos_embed(
        pos_embed,
        new_size=list(grid),
        num_prefix_tokens=getattr(module, "num_prefix_tokens", 0),
    )
