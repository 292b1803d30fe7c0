"""Factors of a layer that lose least of what the layer computes on real inputs.

Legend
    W, b        weight (o, d) and bias (o,) of a layer y = W x + b; a 1×1 convolution is one, at
                every place
    μ, Σ        mean and covariance of x; without a bias the second moment
    C           Σ = C Cᵀ
    P, D        left singular vectors (o, k) and singular values of W C, k = min(o, d)
    r           rank

P_r P_rᵀ W is the W' of rank r with the least E‖(W − W') (x − μ)‖², which is Σ_{i > r} D_i²: the
first principal components of the layer's output. b' = b + (W − W') μ. Factors are P_r S and
S⁻¹ P_rᵀ W with a diagonal S that gives both the same norms.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from compress.compensation import Moments

_LEAST_NORM = 1e-12


class Directions(NamedTuple):
    """A layer's output by directions, the largest first; float64.

    Attributes:
        weight, bias, mean: W, b (None without), μ.
        vectors: P (o, k).
        energies: D² (k,).
    """

    weight: Tensor
    bias: Tensor | None
    mean: Tensor
    vectors: Tensor
    energies: Tensor

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self if tensor is not None)


@torch.no_grad()
def directions(layer: nn.Module, moments: Moments | None) -> Directions:
    """Analyse a Linear or a 1×1 convolution.

    Args:
        moments: of its inputs; None: as if they were independent and of variance 1.
    """
    weight = layer.get_parameter("weight").detach().cpu().double().flatten(1)
    bias = None if layer.bias is None else layer.get_parameter("bias").detach().cpu()
    mean = torch.zeros(weight.shape[1], dtype=torch.float64)
    root = weight
    if moments is not None:
        mean = moments.mean if bias is not None else mean
        second = moments.second(centred=bias is not None)
        values, basis = torch.linalg.eigh(second)
        root = weight @ (basis * values.clamp_min(0).sqrt())
    vectors, singular, _ = torch.linalg.svd(root, full_matrices=False)
    return Directions(
        weight, None if bias is None else bias.double(), mean, vectors, singular**2
    )


def factors(found: Directions, rank: int) -> dict[str, Tensor]:
    """Tensors of the two layers, by their names in `trainers.models.factored`; matrices."""
    kept = found.vectors[:, :rank]
    first = kept.T @ found.weight
    scale = first.norm(dim=1, keepdim=True).clamp_min(_LEAST_NORM).sqrt()
    tensors = {"0.weight": first / scale, "1.weight": kept * scale.T}
    if found.bias is not None:
        lost = found.weight - kept @ first
        tensors["1.bias"] = found.bias + lost @ found.mean
    return tensors
