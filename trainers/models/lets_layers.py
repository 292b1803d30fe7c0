"""The maths of LeTs: growing a learngene's weights in width by matrices F, mixing its
layers in depth by coefficients G.

Xia et al., "Initializing Variable-sized Vision Transformers from Learngene with Learnable
Transformation", NeurIPS 2024.

Legend
    n, d         the learngene's layers and width; its hidden layers have 4d units
    w            the grown width, d <= w <= D; D is the auxiliary network's
    C, K         classes, values of a patch
    F            new rows only: `embed` F_e (w − d, d), `qkv` F_q, F_k, F_v as (3, n, w − d, d),
                 `ffn` F_ffn (n, 4(w − d), 4d), `cls` F_cls (w − d, d)
    W, b         a weight (out, in) and a bias (out): W' = [W, W·F_inᵀ], then [W';
                 F_out·W'], and [b; F_out·b]
    pair p       learngene layers 2p and 2p + 1; auxiliary layers 4p … 4p + 3 are mixtures of them
    group g      auxiliary layers 2g and 2g + 1, which share their coefficients G_g (2,); it
                 belongs to pair g // 2

Gene tensors are stacked over learngene layers, so that a growth is one batched product for
all of them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
WidthInit = Literal["rand", "rand-softmax", "selection", "selection-noisy"]
DepthInit = Literal["rand", "rand-softmax", "stackbert", "stackbert-noisy"]
MIXED = ("norm1", "q", "k", "v", "proj", "norm2", "fc1", "fc2")
"""What has coefficients of its own, for its weight and for its bias."""


def gene_layers(depth: int) -> int:
    """Learngene layers n of an auxiliary network with `depth` layers: two for every four begun."""
    return 2 * math.ceil(depth / 4)


def num_groups(depth: int) -> int:
    """Coefficient groups of an auxiliary network with `depth` layers: one for every two begun."""
    return math.ceil(depth / 2)


def grow_columns(weight: Tensor, rows: Tensor) -> Tensor:
    """[W, W·Fᵀ]: (…, out, in), (…, new, in) → (…, out, in + new)."""
    return torch.cat([weight, weight @ rows.mT], dim=-1)


def grow_rows(weight: Tensor, rows: Tensor) -> Tensor:
    """[W; F·W]: (…, out, in), (…, new, out) → (…, out + new, in)."""
    return torch.cat([weight, rows @ weight], dim=-2)


def grow_vector(vector: Tensor, rows: Tensor) -> Tensor:
    """[b; F·b]: (…, out), (…, new, out) → (…, out + new)."""
    return torch.cat([vector, (rows @ vector.unsqueeze(-1)).squeeze(-1)], dim=-1)


def first_rows(width: Tensors, new: int) -> dict[str, Tensor]:
    """F for a width of d + `new`: its first rows."""
    return {
        name: rows[..., : 4 * new if name == "ffn" else new, :]
        for name, rows in width.items()
    }


def grow(gene: Tensors, width: Tensors) -> dict[str, Tensor]:
    """Every gene tensor at the width of F, under its own name; first in, then out.

    Args:
        gene: patch_weight (d, K), patch_bias (d), norm1_weight, norm1_bias, norm2_weight,
            norm2_bias (n, d), qkv_weight (3, n, d, d), qkv_bias (3, n, d), proj_weight (n,
            d, d), proj_bias (n, d), fc1_weight (n, 4d, d), fc1_bias (n, 4d), fc2_weight (n,
            d, 4d), fc2_bias (n, d), fc_norm_weight, fc_norm_bias (d), head_weight (C, d),
            head_bias (C).
        width: F, see the legend.
    """
    embed, qkv, ffn = width["embed"], width["qkv"], width["ffn"]
    vectors = (
        "patch_bias",
        "norm1_weight",
        "norm1_bias",
        "norm2_weight",
        "norm2_bias",
        "proj_bias",
        "fc2_bias",
        "fc_norm_weight",
        "fc_norm_bias",
    )
    return {name: grow_vector(gene[name], embed) for name in vectors} | {
        "patch_weight": grow_rows(gene["patch_weight"], embed),
        "qkv_weight": grow_rows(grow_columns(gene["qkv_weight"], embed), qkv),
        "qkv_bias": grow_vector(gene["qkv_bias"], qkv),
        "proj_weight": grow_rows(grow_columns(gene["proj_weight"], qkv[2]), embed),
        "fc1_weight": grow_rows(grow_columns(gene["fc1_weight"], embed), ffn),
        "fc1_bias": grow_vector(gene["fc1_bias"], ffn),
        "fc2_weight": grow_rows(grow_columns(gene["fc2_weight"], ffn), embed),
        "head_weight": grow_columns(gene["head_weight"], width["cls"]),
        "head_bias": gene["head_bias"],
    }


def mix(grown: Tensor, coefficients: Tensor) -> Tensor:
    """Each group's mixture of its own pair: (n, …), (groups, 2) → (groups, …), groups n or
    n − 1.
    """
    n, groups = len(grown), len(coefficients)
    of_pairs = torch.nn.functional.pad(coefficients, (0, 0, 0, n - groups)).view(
        n // 2, 2, 2
    )
    # (pairs, the pair's two groups, values)
    mixed = of_pairs @ grown.reshape(n // 2, 2, -1)
    return mixed.view(grown.shape)[:groups]


def mix_as(
    grown: Tensor, coefficients: Tensor, pairs: Sequence[int], groups: Sequence[int]
) -> Tensor:
    """A mixture for each layer of a descendant, of any pair by any group: (n, …), (all
    groups, 2) → (layers, …).
    """
    of_layers = coefficients[list(groups)]
    shape = (-1, *[1] * (grown.ndim - 1))
    first, second = grown[[2 * p for p in pairs]], grown[[2 * p + 1 for p in pairs]]
    return of_layers[:, 0].view(shape) * first + of_layers[:, 1].view(shape) * second


def initial_width(scheme: WidthInit, noise: float, *shape: int) -> Tensor:
    """F at the start, (…, new, d). `rand`: uniform in [0, 1], each row divided by its sum,
    or its softmax; `selection`: each new unit copies a random old one, `selection-noisy`
    with the others uniform in [0, noise].
    """
    if scheme in ("rand", "rand-softmax"):
        return _normalised(torch.rand(shape), scheme == "rand-softmax")
    chosen = torch.randint(shape[-1], (*shape[:-1], 1))
    others = (
        torch.rand(shape) * noise if scheme == "selection-noisy" else torch.zeros(shape)
    )
    return others.scatter(-1, chosen, 1.0)


def initial_depth(scheme: DepthInit, noise: float, *shape: int) -> Tensor:
    """G at the start, (…, 2). `rand`, `rand-softmax` as F; `stackbert`: the pair's first
    layer alone (the paper's position is the group's first layer modulo 2, and groups begin
    at even layers), `stackbert-noisy`: 1 for it, uniform in [0, noise] for the other,
    divided by their sum."""
    if scheme in ("rand", "rand-softmax"):
        return _normalised(torch.rand(shape), scheme == "rand-softmax")
    start = (
        torch.rand(shape) * noise if scheme == "stackbert-noisy" else torch.zeros(shape)
    )
    start[..., 0] = 1.0
    return start / start.sum(-1, keepdim=True)


def _normalised(uniform: Tensor, softmax: bool) -> Tensor:
    return uniform.softmax(-1) if softmax else uniform / uniform.sum(-1, keepdim=True)
