"""Baselines of weight sharing: uniform quantisation and the shared codebooks of Deep Compression.

Legend
    w        the weights that share one grid or codebook: one tensor's, or the whole network's
    b        bits
    s        step of the uniform grid: max |w| / (2^(b−1) − 1)
    c_k      centroids of one-dimensional k-means (Han et al., Deep Compression, ICLR 2016,
             section 3)
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from compress.stage import Context, Phase, Stage
from trainers.data.splits import DataInfo
from trainers.models.arch import Arch, ModelState, on_meta
from trainers.models.parameters import NORMS_QUANTIZED, quantizable_parameters

_MOST_ROUNDS = 200


class _SharedValues(Stage):
    """What both baselines share: which tensors are quantised."""

    include_norm: bool = Field(False, description="quantise norm parameters too")

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        if not self._names(arch):
            raise ValueError(
                f"{arch.name} has no Linear or Conv parameters to quantise"
            )
        return arch

    def _names(self, arch: Arch) -> list[str]:
        """Names of the tensors that are quantised."""
        return list(
            quantizable_parameters(on_meta(arch), include_norm=self.include_norm)
        )

    def _meta(self, model: ModelState) -> dict[str, Any]:
        return model.meta | ({NORMS_QUANTIZED: True} if self.include_norm else {})


class UniformQuant(_SharedValues):
    """Round every tensor to a symmetric uniform grid of its own."""

    phase: ClassVar[Phase] = "quantize"
    version: ClassVar[int] = 1

    bits: int = Field(
        8,
        ge=2,
        le=16,
        description=(
            "bits of a weight; the grid is symmetric, so that one of the 2^bits values"
            " is not used"
        ),
    )

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        weights = dict(model.weights)
        for name in self._names(model.arch):
            weights[name] = uniform_grid(weights[name], self.bits)
        return ModelState(model.arch, _unshared(weights), self._meta(model))


class KmeansQuant(_SharedValues):
    """Replace every weight by the nearest centroid of a k-means codebook."""

    phase: ClassVar[Phase] = "quantize"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "the codebooks of Han et al., Deep Compression, ICLR 2016 (without retraining)"
    )

    clusters: int = Field(16, ge=2, le=65536, description="values in a codebook")
    scope: Literal["layer", "network"] = Field(
        "layer",
        description="layer: a codebook for each tensor; network: one for all of them",
    )

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        weights = dict(model.weights)
        names = self._names(model.arch)
        groups = [names] if self.scope == "network" else [[name] for name in names]
        for group in groups:
            values = torch.cat([weights[name].reshape(-1) for name in group])
            shared = nearest(values, kmeans(values, self.clusters))
            for name, part in zip(
                group, shared.split([weights[n].numel() for n in group]), strict=True
            ):
                weights[name] = part.view_as(weights[name]).clone()
        return ModelState(model.arch, _unshared(weights), self._meta(model))


def _unshared(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in weights.items()}


def uniform_grid(weights: Tensor, bits: int) -> Tensor:
    """Weights of any shape on the grid {−L·s, …, 0, …, L·s}, L = 2^(bits−1) − 1; zeros stay
    zeros.
    """
    levels = 2 ** (bits - 1) - 1
    largest = weights.abs().max() if weights.numel() else weights.new_zeros(())
    if largest == 0:
        return weights.clone()
    step = largest.double() / levels
    return ((weights.double() / step).round() * step).to(weights.dtype)


def kmeans(values: Tensor, clusters: int) -> Tensor:
    """Lloyd's algorithm on a line, from linearly spaced centroids (Deep Compression's
    best); float64, ascending.

    The weights are sorted once; each round is a binary search and a difference of prefix
    sums. A centroid that loses all its weights is dropped, so there are at most `clusters`.
    """
    ordered = values.reshape(-1).double().sort().values
    if ordered.numel() == 0:
        return ordered
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    centroids = torch.linspace(
        float(ordered[0]), float(ordered[-1]), clusters, dtype=torch.float64
    ).unique()
    for _ in range(_MOST_ROUNDS):
        edges = torch.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2)
        ends = torch.cat(
            [edges.new_zeros(1), edges, edges.new_full((1,), len(ordered))]
        )
        counts = ends.diff()
        moved = (
            (sums[ends[1:]] - sums[ends[:-1]])[counts > 0] / counts[counts > 0]
        ).unique()
        if len(moved) == len(centroids) and torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids


def nearest(values: Tensor, centroids: Tensor) -> Tensor:
    """Each value (n,) replaced by its nearest centroid (ascending); the lower one on a tie."""
    edges = (centroids[1:] + centroids[:-1]) / 2
    return centroids[torch.searchsorted(edges, values.double())].to(values.dtype)
