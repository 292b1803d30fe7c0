"""Position embeddings of another grid of patches, and of other tokens before them."""

from typing import Any

import torch
from torch import Tensor, nn


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
