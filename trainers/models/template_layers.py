"""The maths of WAVE and SWEET: the weights of a ViT of any size, composed of templates that all
sizes share and of scalers that belong to one size.

WAVE: Feng et al., "WAVE: Weight Templates for Adaptive Initialization of Variable-sized Models",
CVPR 2025 (arXiv 2406.17503).
SWEET: Xie et al., "Self-Supervised Weight Templates for Scalable Vision Model Initialization",
2026 (arXiv 2601.19694).
What is from the papers and what is our choice: docs/learngenes.md.

Legend
    L, D         layers and width of the network
    WAVE         W^(l) = Σ_t S^(l,t) ⊗ T^(t): T^(t), t = 1 … N, is a template of width w, a
                 parameter of a ViT that is w wide; S^(l,t) is a scaler, m = D / w in each
                 dimension that grows with the width and 1 in the others
    SWEET        W = G ×₁ X ×₂ U ×₃ V over the 12·L matrices (D, D) of all layers: core
                 G (r1, r2, r3), X (L, 12, r1) mixes, U (D, r2) gives rows, V (D, r3) columns
    matrices     the 12 of a layer: q, k, v, proj, four of fc1 (its rows), four of fc2 (its columns)
    vectors      the 13 of a layer: norm1 weight and bias, biases of q, k, v, proj, norm2 weight and
                 bias, four of fc1's bias, fc2's bias
"""

from collections.abc import Mapping

import torch
from torch import Tensor

MATRICES = 12
VECTORS = 13


def kronecker(templates: Tensor, scalers: Tensor) -> Tensor:
    """Σ_t S^(l,t) ⊗ T^(t) for each l: blocks are scaled copies of the templates.

    Args:
        templates: (N, t_1, …, t_k).
        scalers: (L, N, m_1, …, m_k).

    Returns:
        (L, m_1·t_1, …, m_k·t_k).
    """
    layers, multiples, sizes = len(scalers), scalers.shape[2:], templates.shape[1:]
    # each block on its own: (L, all m, N) times (N, all t)
    blocks = scalers.flatten(2).mT @ templates.flatten(1)
    k = len(sizes)
    interleaved = [axis for i in range(k) for axis in (1 + i, 1 + k + i)]
    return (
        blocks.view(layers, *multiples, *sizes)
        .permute(0, *interleaved)
        .reshape(layers, *(m * t for m, t in zip(multiples, sizes, strict=True)))
    )


def tucker(core: Tensor, mix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """G ×₁ X ×₂ U ×₃ V.

    Args:
        core: G (r1, r2, r3).
        mix: X (…, r1).
        rows: U (D, r2).
        columns: V (D', r3).

    Returns:
        (…, D, D').
    """
    wide = rows @ core @ columns.mT
    return (mix @ wide.flatten(1)).unflatten(-1, wide.shape[1:])


def as_layers(matrices: Tensor, vectors: Tensor) -> list[dict[str, Tensor]]:
    """Each layer's weights by timm's names within a block.

    Args:
        matrices: (L, 12, D, D) in the legend's order.
        vectors: (L, 13, D) in the legend's order; norm weights are what is added to 1.
    """
    return [
        {
            "norm1.weight": 1 + vector[0],
            "norm1.bias": vector[1],
            "attn.qkv.weight": matrix[:3].flatten(0, 1),
            "attn.qkv.bias": vector[2:5].flatten(),
            "attn.proj.weight": matrix[3],
            "attn.proj.bias": vector[5],
            "norm2.weight": 1 + vector[6],
            "norm2.bias": vector[7],
            "mlp.fc1.weight": matrix[4:8].flatten(0, 1),
            "mlp.fc1.bias": vector[8:12].flatten(),
            "mlp.fc2.weight": torch.cat(matrix[8:].unbind(), dim=1),
            "mlp.fc2.bias": vector[12],
        }
        for matrix, vector in zip(matrices.unbind(), vectors.unbind(), strict=True)
    ]


def inherited(
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    layers: list[int],
    by_layer: frozenset[str],
) -> dict[str, Tensor]:
    """Scalers of one size from those of another: what both have is taken over, what the other has
    not stays as it is.

    Args:
        own: fresh scalers of the new size; not changed.
        given: trained scalers.
        layers: for each layer of the new size the one whose scalers it gets.
        by_layer: names of scalers whose first dimension is layers.
    """
    result = {}
    for name, fresh in own.items():
        old = given[name][layers] if name in by_layer else given[name]
        both = tuple(
            slice(min(a, b)) for a, b in zip(fresh.shape, old.shape, strict=True)
        )
        result[name] = fresh.detach().clone()
        result[name][both] = old.detach()[both]
    return result
