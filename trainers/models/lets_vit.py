"""The auxiliary network of LeTs: a compact learngene, grown in width and depth by what is
learned with it.

Legend: see `trainers.models.lets_layers`. A forward pass grows each learngene layer once
and mixes once for every two layers, which share their coefficients: at n = 8, d = 384, N =
16, D = 768 that is 2 % of the multiplications of a batch of 64, and 8 grown and 8 mixed
layers in memory, as many values as the 16 layers of a plain ViT.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainers.models.lets_layers import (
    MIXED,
    DepthInit,
    Tensors,
    WidthInit,
    first_rows,
    gene_layers,
    grow,
    initial_depth,
    initial_width,
    mix,
    mix_as,
    num_groups,
)
from trainers.models.mean_vit import MeanVit, Weights, state_of, template
from trainers.models.parameters import NORM_EPS
from trainers.timm_library import timm

_OUTER = {
    "patch_embed.proj.bias": "patch_bias",
    "fc_norm.weight": "fc_norm_weight",
    "fc_norm.bias": "fc_norm_bias",
    "head.weight": "head_weight",
    "head.bias": "head_bias",
}
"""timm's name outside blocks → ours."""
_BLOCK = {
    "norm1": "norm1",
    "attn.qkv": "qkv",
    "attn.proj": "proj",
    "norm2": "norm2",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}
"""timm's name within a block → ours."""


class LetsVit(MeanVit):
    """A ViT of width D and depth N whose weights are grown from a learngene in every forward pass.

    Args:
        img_size, patch_size: pixels.
        gene_dim, embed_dim: widths d and D, multiples of the head's width D / num_heads.
        depth: layers N; the learngene has 2·⌈N / 4⌉.
        num_heads: of the auxiliary network.
        width_init, depth_init, noise: see `initial_width`, `initial_depth`.
        residual: half-width of the uniform start of a trained term that is added to every
            grown tensor; None is none.
        learn: which of gene, width (F) and depth (G) are trained; the position embedding always is.

    Parameters: `pos_embed` (1, P, D), and by name `gene` (see `grow`), `width` (F), `depth`
    (G: weight and bias, (8, groups, 2) in the order of `MIXED`), `residual` (the grown
    shapes).

    Raises:
        ValueError: widths that do not fit.
    """

    def __init__(
        self,
        *,
        img_size: int,
        patch_size: int,
        gene_dim: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        num_classes: int,
        norm_eps: float = NORM_EPS,
        width_init: WidthInit = "rand",
        depth_init: DepthInit = "stackbert-noisy",
        noise: float = 0.03,
        residual: float | None = None,
        learn: Sequence[str] = ("gene", "width", "depth"),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(
            depth=depth,
            num_heads=num_heads,
            norm_eps=norm_eps,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
        )
        self.head_dim = embed_dim // num_heads
        self.gene_dim = gene_dim
        self.embed_dim = embed_dim
        self.patch_size = patch_size
        self.depth = depth
        _check_widths(gene_dim, embed_dim, num_heads)
        vit = template(
            img_size=img_size,
            patch_size=patch_size,
            embed_dim=gene_dim,
            depth=gene_layers(depth),
            num_classes=num_classes,
            num_heads=gene_dim // self.head_dim,
            norm_eps=norm_eps,
        )
        # the order of these lines is the order of random numbers
        self.gene = nn.ParameterDict(_gene_of(vit))
        self.width = self._initial_width(width_init, noise)
        self.coefficients = self._initial_depth(depth_init, noise)
        self.pos_embed = nn.Parameter(
            torch.empty(1, vit.patch_embed.num_patches, embed_dim)
        )
        timm.layers.trunc_normal_(self.pos_embed, std=0.02)
        self.residual = self._initial_residual(residual)
        self.gene.requires_grad_("gene" in learn)
        self.width.requires_grad_("width" in learn)
        self.coefficients.requires_grad_("depth" in learn)

    def _initial_width(self, scheme: WidthInit, noise: float) -> nn.ParameterDict:
        """F: for each part of a layer, the new rows as mixtures of the old ones."""
        layers, old = gene_layers(self.depth), self.gene_dim
        new = self.embed_dim - old
        shapes = {
            "embed": (new, old),
            "qkv": (3, layers, new, old),
            "ffn": (layers, 4 * new, 4 * old),
            "cls": (new, old),
        }
        return nn.ParameterDict(
            {k: initial_width(scheme, noise, *shape) for k, shape in shapes.items()}
        )

    def _initial_depth(self, scheme: DepthInit, noise: float) -> nn.ParameterDict:
        """G: for each group of layers, the coefficients of its pair of learngene layers."""
        shape = (len(MIXED), num_groups(self.depth), 2)
        return nn.ParameterDict(
            {part: initial_depth(scheme, noise, *shape) for part in ("weight", "bias")}
        )

    def _initial_residual(self, half_width: float | None) -> nn.ParameterDict:
        """A trained term for every grown tensor, uniform at first; empty without one."""
        if half_width is None:
            return nn.ParameterDict()
        with torch.no_grad():
            grown = grow(dict(self.gene.items()), dict(self.width.items()))
        return nn.ParameterDict(
            {
                name: torch.empty_like(tensor).uniform_(-half_width, half_width)
                for name, tensor in grown.items()
            }
        )

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimisers must not decay, though they are matrices:
        stacked vectors, coefficients.
        """
        vectors = {
            f"{part}.{name}"
            for part, tensors in (("gene", self.gene), ("residual", self.residual))
            for name in tensors
            if name.endswith("_bias") or "norm" in name
        }
        return {"pos_embed", "coefficients.weight", "coefficients.bias"} | vectors

    def grown(self, width: int) -> dict[str, Tensor]:
        """Every gene tensor at a width from d to D."""
        width_rows = first_rows(dict(self.width.items()), width - self.gene_dim)
        grown = grow(dict(self.gene.items()), width_rows)
        for name, term in self.residual.items():
            grown[name] = (
                grown[name] + term[tuple(slice(size) for size in grown[name].shape)]
            )
        return grown

    def weights(self) -> tuple[Weights, Sequence[Weights]]:
        grown = self.grown(self.embed_dim)
        stacked = self._mixed(grown, None)
        groups = [
            {name: values[g] for name, values in stacked.items()}
            for g in range(num_groups(self.depth))
        ]
        return self._outer(grown, self.embed_dim), [
            groups[i // 2] for i in range(self.depth)
        ]

    def descendant(
        self,
        width: int,
        mapping_layer: Sequence[int],
        mapping_layer_coeff: Sequence[int],
    ) -> dict[str, Tensor]:
        """A timm ViT's state dict, one layer for each entry of the two maps.

        Args:
            width: from d to D, a multiple of the head's width.
            mapping_layer: for each layer, the auxiliary layer whose pair of learngene
                layers it uses.
            mapping_layer_coeff: for each layer, the first auxiliary layer of the group
                whose coefficients it uses.
        """
        with torch.no_grad():
            grown = self.grown(width)
            stacked = self._mixed(
                grown,
                (
                    [i // 4 for i in mapping_layer],
                    [i // 2 for i in mapping_layer_coeff],
                ),
            )
            layers = [
                {name: values[i] for name, values in stacked.items()}
                for i in range(len(mapping_layer))
            ]
            return state_of(self._outer(grown, width), layers)

    def _outer(self, grown: Tensors, width: int) -> Weights:
        kernel = grown["patch_weight"].view(width, 3, self.patch_size, self.patch_size)
        return {
            "patch_embed.proj.weight": kernel,
            "pos_embed": self.pos_embed[..., :width],
            **{name: grown[own] for name, own in _OUTER.items()},
        }

    def _mixed(
        self, grown: Tensors, maps: tuple[list[int], list[int]] | None
    ) -> dict[str, Tensor]:
        """By timm's names within a block, (groups or layers, …): each group's own mixture,
        or one for each map entry.
        """

        def mixed(own: str, part: str) -> Tensor:
            tensor, of_part = grown[f"{own}_{part}"], self.coefficients[part]
            if own == "qkv":
                each = [one(tensor[i], of_part[MIXED.index("q") + i]) for i in range(3)]
                return torch.cat(each, dim=1)
            return one(tensor, of_part[MIXED.index(own)])

        def one(tensor: Tensor, coefficients: Tensor) -> Tensor:
            return (
                mix(tensor, coefficients)
                if maps is None
                else mix_as(tensor, coefficients, *maps)
            )

        return {
            f"{name}.{part}": mixed(own, part)
            for name, own in _BLOCK.items()
            for part in ("weight", "bias")
        }


def _check_widths(gene_dim: int, embed_dim: int, num_heads: int) -> None:
    """Refuse widths of which one is no multiple of a head's width.

    Raises:
        ValueError: names all three numbers.
    """
    head_dim = embed_dim // num_heads
    if embed_dim % num_heads or gene_dim % head_dim or not 0 < gene_dim <= embed_dim:
        raise ValueError(
            f"gene_dim {gene_dim} and embed_dim {embed_dim} must be multiples of one"
            f" head's width, embed_dim / num_heads ({num_heads}), and gene_dim at most"
            " embed_dim"
        )


def _gene_of(vit: Any) -> dict[str, Tensor]:
    """A plain ViT's parameters, stacked as `grow` takes them."""
    blocks = [dict(block.named_parameters()) for block in vit.blocks]
    gene = {
        f"{own}_{part}": torch.stack(
            [block[f"{name}.{part}"].detach() for block in blocks]
        )
        for name, own in _BLOCK.items()
        for part in ("weight", "bias")
    }
    for part in ("weight", "bias"):  # (n, 3d, …) → (3, n, d, …)
        gene[f"qkv_{part}"] = (
            gene[f"qkv_{part}"].unflatten(1, (3, -1)).transpose(0, 1).contiguous()
        )
    outer = dict(vit.named_parameters())
    gene |= {own: outer[name].detach().clone() for name, own in _OUTER.items()}
    return gene | {
        "patch_weight": outer["patch_embed.proj.weight"].detach().flatten(1).clone()
    }
