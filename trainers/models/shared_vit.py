"""Auxiliary networks whose layers share parameters: SWS and TLEG.

Legend
    L    layers that a forward pass runs
    S    stages of SWS: parameter sets, each used by the layers of its stage
    A, B the two parameter sets of TLEG, each a whole layer;
         layer l = 1 … L is B + (l − 1)/(L − 1)·A

SWS: Xia et al., "Efficient Initialization of Variable-sized Transformer Models via Stage-wise
Weight Sharing", IJCAI 2024.
TLEG: Xia et al., "Transformer as Linear Expansion of learnGene", AAAI 2024.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainers.models.mean_vit import MeanVit, Weights, template
from trainers.models.parameters import NORM_EPS


class _SharedVit(MeanVit):
    """`sets` blocks of parameters, under timm's names, in place of one for every layer.

    Args:
        sets, depth: blocks kept, and layers L.
        drop_rate, drop_path_rate, norm_before_pool: see `MeanVit`.
        vit: size of the ViT, see `template`.
    """

    def __init__(
        self,
        sets: int,
        depth: int,
        *,
        norm_before_pool: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        num_heads: int,
        norm_eps: float = NORM_EPS,
        **vit: Any,
    ) -> None:
        super().__init__(
            depth=depth,
            num_heads=num_heads,
            norm_eps=norm_eps,
            norm_before_pool=norm_before_pool,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
        )
        parts = template(depth=sets, num_heads=num_heads, norm_eps=norm_eps, **vit)
        self.patch_embed = parts.patch_embed
        self.pos_embed = parts.pos_embed
        self.blocks = parts.blocks
        self.fc_norm = parts.fc_norm
        self.head = parts.head

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimisers must not decay, though they are matrices."""
        return {"pos_embed"}

    def get_classifier(self) -> nn.Module:
        return self.head

    def outer_weights(self) -> Weights:
        return {n: p for n, p in self.named_parameters() if not n.startswith("blocks.")}

    def _set(self, index: int) -> Weights:
        return dict(self.blocks[index].named_parameters())


class SwsVit(_SharedVit):
    """All layers of one stage use every parameter of its block; `repeats` are the layers of
    each stage.
    """

    def __init__(self, *, repeats: Sequence[int], **options: Any) -> None:
        super().__init__(len(repeats), sum(repeats), **options)
        self.stages = [
            stage for stage, count in enumerate(repeats) for _ in range(count)
        ]

    def layer_weights(self, stages: Sequence[int] | None = None) -> Sequence[Weights]:
        """Weights of layers that use these stages; default: this network's own L."""
        sets = [self._set(i) for i in range(len(self.blocks))]
        return [sets[stage] for stage in (self.stages if stages is None else stages)]


class TlegVit(_SharedVit):
    """Every layer is a point of one line: block 0 is B, block 1 is A.

    A starts as timm starts a block, but with LayerNorm scales of 0, so that every layer's
    scale is 1 at first.
    """

    def __init__(self, *, depth: int, **options: Any) -> None:
        super().__init__(2, depth, **options)
        self.depth = depth
        with torch.no_grad():
            self.blocks[1].norm1.weight.zero_()
            self.blocks[1].norm2.weight.zero_()

    def layer_weights(self, depth: int | None = None) -> Sequence[Weights]:
        """Weights of `depth` layers, evenly spaced on the line; default: this network's own
        L. One layer is B.
        """
        depth = depth or self.depth
        base, slope = self._set(0), self._set(1)
        lines = {name: _line(base[name], slope[name], depth) for name in base}
        return [
            {name: values[i] for name, values in lines.items()} for i in range(depth)
        ]


def _line(base: Tensor, slope: Tensor, depth: int) -> tuple[Tensor, ...]:
    steps = torch.linspace(0, 1, depth, dtype=base.dtype, device=base.device)
    return torch.addcmul(base, steps.view(-1, *[1] * base.ndim), slope).unbind(0)
