"""Known differences between a checkpoint and a model: pruning masks, distillation tokens, image
channels, position embeddings, published names. Each that is bridged is said.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainers.models.arch import Arch
from trainers.timm_internals import converted_checkpoint
from trainers.timm_library import timm

_UNCONVERTIBLE = (
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What timm's conversions raise for weights of another model."""


@dataclass
class Table:
    """Tensors by the architecture's names, and what is known of them.

    Attributes:
        tensors: by name.
        places: name → place in the file, where that is another one.
        prefix: what the file has before every name.
        remarks: what was changed.
        unused: places of tensors that were taken out.
    """

    tensors: dict[str, Tensor]
    places: dict[str, str] = field(default_factory=dict)
    prefix: str = ""
    remarks: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def adapted(
    table: Table, module: nn.Module, arch: Arch, wanted: Mapping[str, Tensor]
) -> Table:
    """The tensors in the model's own form, where the difference is a known one."""
    _apply_masks(table)
    _add_or_drop_distillation(table, wanted)
    _adapt_channels(table, module, wanted)
    before = dict(table.tensors)
    if arch.builder == "timm":
        with contextlib.suppress(
            *_UNCONVERTIBLE
        ):  # the comparison says what does not fit
            table.tensors = converted_checkpoint(table.tensors, module)
    _resample_positions(table, module, wanted)
    for name in wanted:
        old, new = before.get(name), table.tensors.get(name)
        if old is not None and new is not None and old.shape != new.shape:
            table.remarks.append(_resized(name, old, new))
    return table


def _resized(name: str, old: Tensor, new: Tensor) -> str:
    if name.endswith("pos_embed") and old.ndim == new.ndim == 3:
        return (
            f"The position embedding {name} was resampled from {old.shape[1]} to"
            f" {new.shape[1]} positions."
        )
    return f"{name} was converted from shape {tuple(old.shape)} to {tuple(new.shape)}."


def _apply_masks(table: Table) -> None:
    """Weights under torch.nn.utils.prune: `weight_orig` times `weight_mask`."""
    masked = [
        name.removesuffix("_mask")
        for name in table.tensors
        if name.endswith("_mask")
        and f"{name.removesuffix('_mask')}_orig" in table.tensors
    ]
    for name in masked:
        values, mask = (
            table.tensors.pop(f"{name}_orig"),
            table.tensors.pop(f"{name}_mask"),
        )
        table.tensors[name] = values * mask
    if masked:
        table.remarks.append(
            f"{len(masked)} weights were multiplied by the masks of torch.nn.utils.prune"
            " beside them."
        )


def _add_or_drop_distillation(table: Table, wanted: Mapping[str, Tensor]) -> None:
    """A distilled ViT's weights for the plain one, or the other way round."""
    tensors, positions = table.tensors, table.tensors.get("pos_embed")
    if "cls_token" not in wanted or "cls_token" not in tensors:
        return
    if "dist_token" in tensors and "dist_token" not in wanted:
        if positions is not None and positions.ndim == 3:
            tensors["pos_embed"] = torch.cat([positions[:, :1], positions[:, 2:]], 1)
        for name in [
            n for n in tensors if n == "dist_token" or n.startswith("head_dist.")
        ]:
            del tensors[name]
            table.unused.append(table.places.get(name, name))
        table.remarks.append(
            "The checkpoint is a distilled model: its distillation token and second"
            " classifier are left out, which changes its outputs."
        )
    elif "dist_token" in wanted and "dist_token" not in tensors:
        if positions is not None and positions.ndim == 3:
            tensors["pos_embed"] = torch.cat([positions[:, :1], positions], 1)
        table.remarks.append(
            "The checkpoint is a plain model: the distillation token and its classifier"
            " start from random values, its position is that of the class token."
        )


def _adapt_channels(
    table: Table, module: nn.Module, wanted: Mapping[str, Tensor]
) -> None:
    """The first convolution for another number of image channels, as timm does."""
    configured = getattr(module, "pretrained_cfg", None) or {}
    first = configured.get("first_conv") or "patch_embed.proj"
    for name in (
        f"{each}.weight" for each in ((first,) if isinstance(first, str) else first)
    ):
        own, theirs = wanted.get(name), table.tensors.get(name)
        if own is None or theirs is None or theirs.ndim != 4 or own.ndim != 4:
            continue
        has, needs = theirs.shape[1], own.shape[1]
        if has == needs or theirs.shape[0] != own.shape[0]:
            continue
        if has == 3:
            table.tensors[name] = timm.models.adapt_input_conv(needs, theirs)
        elif has == 1:
            table.tensors[name] = theirs.repeat(1, needs, 1, 1) / needs
        else:
            continue
        table.remarks.append(
            f"{name} of the checkpoint is for images of {has} channels; it was adapted to"
            f" {needs}."
        )


def _resample_positions(
    table: Table, module: nn.Module, wanted: Mapping[str, Tensor]
) -> None:
    own, theirs = wanted.get("pos_embed"), table.tensors.get("pos_embed")
    patches: Any = getattr(module, "patch_embed", None)
    grid = getattr(patches, "grid_size", None)
    if own is None or theirs is None or own.shape == theirs.shape or grid is None:
        return
    prefix = own.shape[1] - grid[0] * grid[1] if own.ndim == 3 else 0
    side = round(max(theirs.shape[1] - prefix, 0) ** 0.5) if theirs.ndim == 3 else 0
    is_square = side > 0 and side * side == theirs.shape[1] - prefix
    if own.ndim != 3 or theirs.shape[2] != own.shape[2] or not is_square:
        return
    table.tensors["pos_embed"] = timm.layers.resample_abs_pos_embed(
        theirs, new_size=list(grid), num_prefix_tokens=prefix
    )
