"""What is laid out over places in an image, and is resampled: places are no elements to choose
from.

Three kinds of tensors, by what the student's module says of itself
    position embedding        `pos_embed` (1, N, D) beside a `patch_embed` of a known grid:
                              resampled from grid to grid (bicubic, antialiased: timm's
                              `resample_abs_pos_embed`); tokens before the patches go by name
    relative position table   `relative_position_bias_table` of an attention with a window
                              (Swin, BEiT, MaxViT): one map a head over the offsets in a window,
                              resampled as a map (timm's `resize_rel_pos_bias_table`)
    patch kernel              of the patch embedding: resampled so that resized patches have the
                              same embedding (timm's `resample_patch_embed`, FlexiViT)
Other tensors over places (tables of LeViT, kernels of other convolutions) must have the teacher's
size there.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

_TABLE = "relative_position_bias_table"
_OTHER_PLACES = re.compile(r"(?:^|[._])(?:pos_embed|rel_pos|attention_bias)")


def on_students_places(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    student: nn.Module,
    teacher: nn.Module,
    path: str,
) -> Tensor:
    """A teacher's tensor, resampled to the student's places where the two differ.

    Args:
        name: the student's, in its state dict.
        tensor: the teacher's.
        shape: the student's.
        path: of the teacher's module that holds it.

    Raises:
        ValueError: the places differ, and this tensor cannot be resampled.
    """
    own_path, _, leaf = name.rpartition(".")
    if name == "pos_embed" and has_grid(student) and tensor.ndim == 3:
        return resample_positions(tensor, student, teacher)
    module = student.get_submodule(own_path)
    if leaf == _TABLE and hasattr(module, "window_size"):
        return _resample_table(tensor, shape, module, teacher.get_submodule(path))
    places = _place_axes(name, module, len(shape))
    if tensor.ndim != len(shape) or all(tensor.shape[a] == shape[a] for a in places):
        return tensor
    if own_path.startswith("patch_embed.") and isinstance(module, nn.Conv2d):
        return _resample_patches(tensor, shape)
    sizes = [tuple(t[a] for a in places) for t in (tuple(tensor.shape), shape)]
    raise ValueError(
        f"the teacher has places {_times(sizes[0])} there, the student {_times(sizes[1])},"
        " and they cannot be resampled; choose sizes that agree"
    )


def has_grid(module: nn.Module) -> bool:
    """Whether a model has patches on a grid that is known."""
    return hasattr(getattr(module, "patch_embed", None), "grid_size")


def _place_axes(name: str, module: nn.Module, rank: int) -> tuple[int, ...]:
    """Axes of a tensor that are places and not channels."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and rank > 2:
        return tuple(range(2, rank))
    if _OTHER_PLACES.search(name) and rank > 1:
        # heads come first in LeViT's tables, channels last in all others
        heads_first = name.rpartition(".")[2].startswith("attention_bias")
        return tuple(range(1, rank)) if heads_first else tuple(range(rank - 1))
    return ()


def _resample_table(
    table: Tensor, shape: tuple[int, ...], student: Any, teacher: Any
) -> Tensor:
    """A relative position table of the student's window with the teacher's heads."""
    from trainers.timm_library import timm

    ours = _pair(student.window_size)
    theirs = _pair(teacher.window_size)
    if table.ndim != len(shape):
        raise ValueError("another form of table; choose models of one design")
    if ours == theirs:
        return table
    if min(theirs) < 2:
        raise ValueError(
            f"the teacher's window {theirs} is too small to resample it to the student's"
            f" {ours}; choose a teacher of the student's window"
        )
    flat = table.ndim == 2
    wanted = (shape[0], table.shape[1]) if flat else (table.shape[0], *shape[1:])
    resized: Tensor = timm.layers.resize_rel_pos_bias_table(
        table, new_window_size=ours, new_bias_shape=wanted, old_window_size=theirs
    )
    return resized.contiguous()


def _resample_patches(kernel: Tensor, shape: tuple[int, ...]) -> Tensor:
    from trainers.timm_library import timm

    resized: Tensor = timm.layers.resample_patch_embed(kernel, list(shape[2:]))
    return resized.contiguous()


def resample_positions(
    pos_embed: Tensor, student: nn.Module, teacher: nn.Module
) -> Tensor:
    """Teacher's position embedding (1, N_T, D_T) on the student's tokens, (1, N_S, D_T).

    Patches are resampled from grid to grid; tokens before them are taken by name.

    Raises:
        ValueError: the student has a prefix token that the teacher has no position for.
    """
    from trainers.timm_library import timm

    (names, grid) = _prefix_tokens(student)
    (t_names, t_grid) = _prefix_tokens(teacher)
    lacking = [name for name in names if name not in t_names]
    if lacking:
        raise ValueError(f"the teacher has no position for {', '.join(lacking)}")
    prefix = pos_embed[:, [t_names.index(name) for name in names]]
    patches = pos_embed[:, len(t_names) :]
    if grid != t_grid:
        patches = timm.layers.resample_abs_pos_embed(
            patches, grid, t_grid, num_prefix_tokens=0
        )
    return torch.cat([prefix, patches], 1)


def _prefix_tokens(module: nn.Module) -> tuple[list[str], tuple[int, int]]:
    """Names of the tokens before the patches in `pos_embed`, and the grid of patches."""
    grid: Any = module.get_submodule("patch_embed").grid_size
    names: list[str] = []
    for leaf in ("cls_token", "dist_token", "reg_token"):
        token = getattr(module, leaf, None)
        names += [f"{leaf} {i}" for i in range(0 if token is None else token.shape[1])]
    embedded = module.get_parameter("pos_embed").shape[1] - grid[0] * grid[1]
    return names[:embedded], (grid[0], grid[1])


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _times(sizes: tuple[int, ...]) -> str:
    return " × ".join(map(str, sizes))
