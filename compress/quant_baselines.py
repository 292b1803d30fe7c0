"""Baselines of weight sharing: uniform quantisation and the shared codebooks of Deep Compression.

Legend
    w        the weights that share one grid or codebook: one tensor's, or the whole network's
    b        bits
    s        step of the uniform grid: max |w| / (2^(b−1) − 1)
    c_k      centroids of one-dimensional k-means (Han et al., Deep Compression, ICLR 2016,
             section 3)
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from compress.rounding import RoundingOptions, nearest, round_module
from compress.stage import Context, Phase, Stage
from trainers.data.splits import DataInfo
from trainers.models.arch import Arch, ModelState, shared_on_meta
from trainers.models.parameters import NORMS_QUANTIZED, quantizable_parameters

_MOST_ROUNDS = 200


class _SharedValues(Stage, RoundingOptions):
    """What both baselines share: which tensors are quantised, and by what rounding."""

    include_norm: bool = Field(False, description="quantise norm parameters too")

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        if not self._names(arch):
            raise ValueError(
                f"{arch.name} has no Linear or Conv parameters to quantise"
            )
        return arch

    @abstractmethod
    def _values(
        self, weights: Mapping[str, Tensor], names: list[str]
    ) -> dict[str, Callable[[Tensor], Tensor]]:
        """Name of a tensor → a function from values to the nearest ones that it may have."""

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        values = self._values(model.weights, self._names(model.arch))
        meta = self._meta(model)
        if self.rounding == "layerwise":
            module = model.build().to(ctx.device)
            round_module(module, values, ctx.images(self.calibration_images))
            return ModelState.from_module(model.arch, module, meta)
        weights = {
            name: values[name](value) if name in values else value.clone()
            for name, value in model.weights.items()
        }
        return ModelState(model.arch, weights, meta)

    def _names(self, arch: Arch) -> list[str]:
        """Names of the tensors that are quantised."""
        return list(
            quantizable_parameters(shared_on_meta(arch), include_norm=self.include_norm)
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

    def _values(
        self, weights: Mapping[str, Tensor], names: list[str]
    ) -> dict[str, Callable[[Tensor], Tensor]]:
        return {name: uniform_grid(weights[name], self.bits) for name in names}


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

    def _values(
        self, weights: Mapping[str, Tensor], names: list[str]
    ) -> dict[str, Callable[[Tensor], Tensor]]:
        groups = [names] if self.scope == "network" else [[name] for name in names]
        found: dict[str, Callable[[Tensor], Tensor]] = {}
        for group in groups:
            together = torch.cat([weights[name].reshape(-1) for name in group])
            codebook = kmeans(together, self.clusters)
            found |= dict.fromkeys(group, partial(nearest, centroids=codebook))
        return found


def uniform_grid(weights: Tensor, bits: int) -> Callable[[Tensor], Tensor]:
    """The rounding to the grid {−L·s, …, 0, …, L·s} of weights of any shape, L = 2^(bits−1) − 1;
    zeros stay zeros.
    """
    levels = 2 ** (bits - 1) - 1
    largest = weights.abs().max() if weights.numel() else weights.new_zeros(())
    if largest == 0:
        return torch.zeros_like
    step = largest.double() / levels

    def rounded(values: Tensor) -> Tensor:
        steps = (values.double() / step.to(values.device)).round()
        return (steps.clamp(-levels, levels) * step).to(values.dtype)

    return rounded


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
