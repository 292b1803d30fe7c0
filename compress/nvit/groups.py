"""What NViT may take out of a ViT, and in which order (Yang et al., Global Vision
Transformer Pruning, CVPR 2023).

Legend
    L, E         blocks, width of the residual stream
    structure    a set of units of one kind: the embedding (one for the whole model) and, in
                 each block, heads, QK dimensions a head, V dimensions a head, MLP hidden
                 units; S = 1 + 4L of them, embedding first, then block by block in the
                 order of `DIMENSIONS`
    unit         a channel, head, dimension or hidden unit; U = E + Σ (H + QK + V + M) of
                 them in one flat order
    I(s)         importance of unit s, from `compress.nvit.importance`
    I'(s)        I(s) − η · credit of its structure
    group        the g lowest units of a structure by I', then the next g, …; its score is
                 the sum of I'
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from trainers.config import Config
from trainers.models.parameters import BLOCK_DIMS


class GroupSizes(Config):
    """How many units of a kind are pruned together. Every structure keeps at least one group.
    Small models need small groups.
    """

    embed: int = Field(16, ge=1, description="channels of the residual stream")
    heads: int = Field(2, ge=1, description="attention heads of a block")
    qk: int = Field(
        8, ge=1, description="query/key dimensions of every head of a block"
    )
    v: int = Field(8, ge=1, description="value dimensions of every head of a block")
    mlp: int = Field(16, ge=1, description="hidden units of a block")


@dataclass(frozen=True)
class UnitLayout:
    """Where each unit of a model lies in a flat vector (U,).

    Attributes:
        sizes: units of each structure, int64 (S,).
        groups: group size of each structure, int64 (S,).
        structure: structure of each unit, int64 (U,).
    """

    sizes: Tensor
    groups: Tensor
    structure: Tensor

    @classmethod
    def of(cls, dims: dict[str, Any], groups: GroupSizes) -> "UnitLayout":
        """The layout of a `pruned_vit` with these `Arch.dims`."""
        per_block = zip(*(dims[name] for name in BLOCK_DIMS), strict=True)
        sizes = torch.tensor(
            [dims["embed"], *(size for block in per_block for size in block)]
        )
        depth = len(dims["heads"])
        group = torch.tensor(
            [groups.embed, *[getattr(groups, name) for name in BLOCK_DIMS] * depth]
        )
        return cls(sizes, group, torch.arange(len(sizes)).repeat_interleave(sizes))

    @property
    def num_units(self) -> int:
        return len(self.structure)

    def split(self, flat: Tensor) -> dict[str, Any]:
        """Views of a flat vector (U,): `embed` (E,) and, a list over blocks each, heads
        (H,), qk, v, mlp.
        """
        parts = flat.split(self.sizes.tolist())
        return {"embed": parts[0]} | {
            name: list(parts[1 + i :: 4]) for i, name in enumerate(BLOCK_DIMS)
        }

    def counts(self, keep: Tensor) -> Tensor:
        """Units that `keep` (U,) bool leaves in each structure, int64 (S,)."""
        return torch.bincount(self.structure[keep], minlength=len(self.sizes))

    def dims(self, keep: Tensor) -> dict[str, Any]:
        """`Arch.dims` of what `keep` leaves."""
        counts = self.counts(keep).tolist()
        return {"embed": counts[0]} | {
            name: counts[1 + i :: 4] for i, name in enumerate(BLOCK_DIMS)
        }


def block_table(counts: Tensor) -> Tensor:
    """Dimensions (L, 5) of each block, columns as `DIMENSIONS`, from the sizes of the structures
    (S,).
    """
    blocks = counts[1:].view(-1, 4)
    return torch.cat([counts[0].expand(len(blocks), 1), blocks], 1)


def latency_credit(gradient: Tensor, counts: Tensor, groups: Tensor) -> Tensor:
    """What one unit fewer of each structure saves, float64 (S,); 0 where the structure is
    at its floor.

    Args:
        gradient: savings of each dimension in each block (L, 5); the embedding's are summed
            over blocks.
        counts: units left in each structure (S,).
        groups: group sizes (S,): a structure with less than two groups is at its floor.
    """
    credit = torch.cat(
        [gradient[:, :1].sum().view(1), gradient[:, 1:].reshape(-1)]
    ).double()
    return torch.where(counts >= 2 * groups, credit, 0.0)


@dataclass(frozen=True)
class Ranking:
    """Groups, lowest score first.

    Attributes:
        units: indices of the ranked units, sorted by structure and score, int64 (K,).
        first, last: range of each group in `units`, int64 (G,).
        scores: float64 (G,), ascending.
        structures: int64 (G,).
        at_floor: bool (G,), the last whole group of its structure, which stays.
    """

    units: Tensor
    first: Tensor
    last: Tensor
    scores: Tensor
    structures: Tensor
    at_floor: Tensor

    def members(self, group: int) -> Tensor:
        """Unit indices of one group (g,)."""
        return self.units[int(self.first[group]) : int(self.last[group])]


def rank_groups(
    score: Tensor, keep: Tensor, layout: UnitLayout, *, every: bool = False
) -> Ranking:
    """Cut every structure's kept units into groups by ascending score, and sort all groups
    of the model.

    A group is prunable only if a whole group stays after it and all lower ones of its
    structure are gone; so what a structure cannot fill a group with (its best units) is
    never pruned. Ties go to the unit, then to the structure, that comes first.

    Args:
        score: I' of each unit, float64 (U,).
        keep: units not pruned yet, bool (U,).
        every: rank pruned units too, before kept ones of the same score, and the groups at
            their floor: what NViT's code counts.
    """
    kept = keep.nonzero()[:, 0]
    counts = layout.counts(keep)
    if every:
        kept = torch.cat([(~keep).nonzero()[:, 0], kept])
        counts = layout.sizes
    structure = layout.structure[kept]
    order = np.argsort(score[kept].numpy(), kind="stable")
    # small integers: NumPy sorts them by radix
    order = order[np.argsort(structure.numpy().astype(np.int16)[order], kind="stable")]
    units = kept[order]
    structure = structure[order]
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(units)) - starts[structure]
    size = layout.groups[structure]
    rest = counts[structure] - (rank // size + 1) * size  # units above the group
    ranked_at_all = rest >= (0 if every else size)
    first = (ranked_at_all & (rank % size == 0)).nonzero()[:, 0]
    begins = torch.zeros(len(units), dtype=torch.long)
    begins[first] = 1
    group = (begins.cumsum(0) - 1)[ranked_at_all]
    scores = torch.zeros(len(first), dtype=torch.float64).index_add_(
        0, group, score[units[ranked_at_all]]
    )
    ranked = scores.argsort(stable=True)
    first = first[ranked]
    structures = structure[first]
    sizes = layout.groups[structures]
    return Ranking(
        units, first, first + sizes, scores[ranked], structures, rest[first] < sizes
    )


def axis_keeps(
    keep: Tensor, layout: UnitLayout, names: Sequence[str]
) -> dict[str, dict[int, Tensor]]:
    """Which indices stay, along which axes of which tensors of a `PrunedVit`.

    Args:
        keep: units that stay, bool (U,).
        names: of the module's tensors.

    Returns:
        name → axis → bool (size of the axis,), one tensor for all axes that are pruned
        alike; tensors without a prunable axis are left out.
    """
    parts = layout.split(keep)
    embed = parts["embed"]
    blocks = [
        _block_axes(embed, *block)
        for block in zip(*(parts[kind] for kind in BLOCK_DIMS), strict=True)
    ]
    result: dict[str, dict[int, Tensor]] = {}
    for name in names:
        path, _, leaf = name.rpartition(".")
        layer = path.rpartition(".")[2]
        if path.startswith("blocks.") and not layer.startswith("norm"):
            rows, columns = blocks[int(path.split(".")[1])][layer]
            result[name] = {0: rows, 1: columns} if leaf == "weight" else {0: rows}
        elif path.startswith("head"):
            if leaf == "weight":
                result[name] = {1: embed}
        elif leaf in ("cls_token", "dist_token", "pos_embed"):
            result[name] = {2: embed}
        else:  # the patch embedding and norms
            result[name] = {0: embed}
    return result


def _block_axes(
    embed: Tensor, heads: Tensor, qk: Tensor, v: Tensor, mlp: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer of a block → its (rows, columns) that stay."""
    queries = (heads[:, None] & qk).flatten()
    values = (heads[:, None] & v).flatten()
    return {
        "q": (queries, embed),
        "k": (queries, embed),
        "v": (values, embed),
        "proj": (embed, values),
        "fc1": (mlp, embed),
        "fc2": (embed, mlp),
    }
