"""Weight fixing by what each weight's position allows: every weight has an uncertainty of its own.

Subia-Waud & Dasmahapatra, "Probabilistic Weight Fixing", NeurIPS 2023 (arXiv:2309.13575). What
is here follows the public code; docs/weight_fixing.md says where it departs from it.

Legend
    μ, σ        mean and standard deviation of a weight; both are trained
    ε           standard normal, drawn for each weight at each step: the network computes with
                μ + max(σ, 2^-30) ε in training and with μ otherwise
    S           0.05, up to which uncertainties are pushed
    α           weight of that push: dL/dσ −= α · max(0, S − σ) |ε|
    δ           allowed distance to a centroid, in standard deviations: |c − μ| ≤ δ σ
    b           2^-b is the least power of two; means below it may become 0 from anywhere
    k           how many powers of two are summed in a centroid, 1 at the start and 4 at most
"""

import math
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compress.wfn.clustering import Clustering
from compress.wfn.fixing import HoldFixed, Iterations, fixable_parameters, flat, put
from trainers.training.fit import Hook

WIDEST = 0.05
"""S: no uncertainty starts above it, and none is pushed beyond."""
_NARROWEST = 2.0**-30
_LEAST_IN_DISTANCES = 2.0**-20
_USUAL = 0.0025
"""Initial σ of the weight at the upper quartile of a tensor."""
_MOST_POWERS = 4
Float64s = npt.NDArray[np.float64]


def initial_uncertainty(weight: Tensor) -> Tensor:
    """σ of every weight before training, in its shape: small next to a power of two.

    The relative distances to the powers of two above and below are multiplied, divided by their
    upper quartile in the tensor, and scaled so that this quartile gets 0.0025; from 2^-30 to S.
    """
    size = weight.abs().clamp_min(torch.finfo(torch.float32).tiny)
    exponent = size.log2()
    distance = (exponent.ceil().exp2() / size - 1) * (
        1 - exponent.floor().exp2() / size
    )
    # torch.quantile takes at most 2^24 values
    quartile = np.quantile(distance.detach().cpu().numpy(), 0.75)
    scaled = _USUAL * distance / max(float(quartile), 1e-30)
    return scaled.clamp(_NARROWEST, WIDEST)


class Uncertain(nn.Module):
    """A parametrisation: in training mode weights are drawn around their means.

    The noise is kept until `draw` is called, so that all reads of a step see the same weights, and
    is part of the state dict, so that a fit that goes on sees them too.
    """

    noise: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.sigma = nn.Parameter(initial_uncertainty(weight))
        self.register_buffer("noise", torch.zeros_like(weight))

    def forward(self, mean: Tensor) -> Tensor:
        if not self.training:
            return mean
        return mean + self.sigma.clamp_min(_NARROWEST) * self.noise

    @torch.no_grad()
    def draw(self, generator: torch.Generator | None = None) -> None:
        """Draw the noise anew."""
        drawn = torch.randn(self.noise.shape, generator=generator)
        self.noise.copy_(drawn)


def check_unshared(module: nn.Module, include_norm: bool) -> None:
    """Refuse models whose layers share parameters.

    Raises:
        ValueError: two layers have one parameter.
    """
    parameters = fixable_parameters(module, include_norm)
    if len({id(p) for p in parameters.values()}) < len(parameters):
        raise ValueError(
            f"{type(module).__name__} shares parameters between layers, which uncertainties of"
            " single positions cannot follow; expand the model first"
        )


def make_uncertain(module: nn.Module, names: list[str]) -> dict[str, Uncertain]:
    """Give parameters of a module uncertainties, in place; parameter → its parametrisation."""
    found: dict[str, Uncertain] = {}
    for name in names:
        path, _, leaf = name.rpartition(".")
        layer = module.get_submodule(path)
        uncertain = Uncertain(module.get_parameter(name).detach())
        parametrize.register_parametrization(layer, leaf, uncertain)
        found[name] = uncertain
    return found


def means(module: nn.Module) -> dict[str, Tensor]:
    """The state dict that the module would have without uncertainties."""
    plain: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        path, marker, rest = name.partition("parametrizations.")
        if not marker:
            plain[name] = value
        elif rest.endswith(".original"):
            plain[path + rest.removesuffix(".original")] = value
    return plain


class Widen(Hook):
    """Draws the noise of each step, and pushes uncertainties of weights up to S.

    Args:
        uncertain: parameter → its parametrisation.
        ratio: α.
        seed: of the first step's noise; later noise comes from torch's generator.
    """

    def __init__(
        self, uncertain: dict[str, Uncertain], ratio: float, seed: int
    ) -> None:
        self.uncertain = uncertain
        self.ratio = ratio
        self.seed = seed

    def on_begin(self, module: nn.Module) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        for each in self.uncertain.values():
            each.draw(generator)

    def on_grads(self, step: int = 0) -> None:
        for name, each in self.uncertain.items():
            sigma = each.sigma
            # the public code pushes those of weights, not of biases
            if sigma.grad is not None and name.endswith("weight"):
                push = (WIDEST - sigma.detach()).clamp_min(0) * each.noise.abs()
                sigma.grad.sub_(self.ratio * push)

    def on_step(self, step: int = 0) -> bool | None:
        for each in self.uncertain.values():
            each.draw()
        return None


@dataclass(frozen=True)
class UncertainClustering(Clustering):
    """A clustering by standard deviations; `orders` counts by k.

    Attributes:
        sigmas: (n,) float32; of fixed weights the spread of the means that went to their
            centroid, of others as they were.
        allowed: δ at the end.
    """

    sigmas: Tensor
    allowed: float


def sums_of_powers(count: int, least: float, largest: float) -> Float64s:
    """Candidates (K,), ascending: 0 and ± sums of up to `count` powers of two from 2^-b, each below
    `largest`, that are not above it.

    Args:
        count: k.
        least: b.
        largest: the largest |μ| that is to be fixed.
    """
    if largest <= 0:
        return np.zeros(1)
    powers = 2.0 ** np.arange(-least, math.ceil(math.log2(largest)))
    sums = {
        sum(chosen) for chosen in combinations_with_replacement([0.0, *powers], count)
    }
    kept = np.array(sorted(value for value in sums if value <= largest))
    return np.unique(np.concatenate([-kept, kept, [0.0]])) + 0.0


def cluster_uncertain(
    means: Tensor,
    sigmas: Tensor,
    fraction: float,
    allowed: float,
    *,
    bits: int = 7,
    growth: float = 2.0,
) -> UncertainClustering:
    """Fix a fraction of the weights, the centroid that most weights allow first.

    A centroid takes all weights with |c − μ| ≤ δ σ, nearest in standard deviations first, and 0
    also those with |μ| < 2^-b; it is then out of the candidates. When none takes any, k grows by
    one and δ is multiplied by `growth`, in turn; from k = 4 only δ.

    Args:
        means, sigmas: μ and σ, (n,), float.
        fraction: of all weights.
        allowed: δ at the start.
        bits: b.
        growth: factor of δ.

    Raises:
        ValueError: means or sigmas that are not finite.
    """
    mu = means.detach().cpu().double().numpy()
    sigma = np.maximum(sigmas.detach().cpu().double().numpy(), _LEAST_IN_DISTANCES)
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError("means and sigmas must be finite; lower lr")
    steps = _Steps(mu, sigma, bits)
    steps.fix(math.ceil(len(mu) * fraction), allowed, growth)
    return steps.clustering(means, sigmas)


@dataclass
class _Steps:
    """One clustering under way."""

    mu: Float64s
    sigma: Float64s
    bits: int
    allowed: float = 0.0
    orders: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.values = np.full(len(self.mu), np.inf)
        self.spread = np.full(len(self.mu), np.inf)

    def fix(self, needed: int, allowed: float, growth: float) -> None:
        powers, turn = 1, 1
        self.allowed = allowed
        while needed > 0:
            taken = self._with_candidates(powers, needed)
            self.orders[powers] = self.orders.get(powers, 0) + taken
            needed -= taken
            if needed > 0 and powers < _MOST_POWERS and turn % 2:
                powers += 1
            elif needed > 0:
                self.allowed *= growth
            turn += 1

    def _with_candidates(self, powers: int, needed: int) -> int:
        """Take weights in as long as one candidate allows any; how many were taken."""
        left = np.flatnonzero(np.isinf(self.values))
        mu, sigma = self.mu[left], self.sigma[left]
        candidates = sums_of_powers(powers, self.bits, float(np.abs(mu).max()))
        zero = int(np.searchsorted(candidates, 0.0))
        # the candidates that a weight allows lie side by side, first <= i < last
        first = np.searchsorted(candidates, mu - self.allowed * sigma, "left")
        last = np.searchsorted(candidates, mu + self.allowed * sigma, "right")
        small = np.abs(mu) < 2.0**-self.bits
        also = small & ~((first <= zero) & (zero < last))
        counts = self._counts(first, last, len(candidates))
        counts[zero] += int(also.sum())
        free = np.ones(len(left), np.bool_)
        taken = 0
        while taken < needed:
            best = int(counts.argmax())
            if counts[best] <= 0:
                break
            inside = free & (first <= best) & (best < last)
            if best == zero:
                inside |= free & small
            members = np.flatnonzero(inside)
            distance = np.abs(candidates[best] - mu[members]) / sigma[members]
            if best == zero:
                distance[small[members]] = 0.0
            order = np.argsort(distance, kind="stable")[: needed - taken]
            members = members[order]
            self.values[left[members]] = candidates[best]
            self.spread[left[members]] = float(np.std(mu[members]))
            free[members] = False
            counts -= self._counts(first[members], last[members], len(candidates))
            counts[zero] -= int(also[members].sum())
            counts[best] = -len(left) - 1  # out of the candidates
            taken += len(members)
        return taken

    @staticmethod
    def _counts(
        first: npt.NDArray[np.int64], last: npt.NDArray[np.int64], size: int
    ) -> npt.NDArray[np.int64]:
        """How many of the spans hold each candidate."""
        starts = np.bincount(first, minlength=size + 1)
        ends = np.bincount(last, minlength=size + 1)
        return np.cumsum(starts - ends)[:size]

    def clustering(self, means: Tensor, sigmas: Tensor) -> UncertainClustering:
        fixed = np.isfinite(self.values)
        codebook, places = np.unique(
            self.values[fixed].astype(np.float32), return_inverse=True
        )
        assignments = np.full(len(fixed), -1, np.int32)
        assignments[fixed] = places
        distances = np.full(len(fixed), np.nan, np.float32)
        distances[fixed] = (np.abs(self.values - self.mu) / self.sigma)[fixed]
        held = torch.from_numpy(fixed).to(means.device)

        def where_fixed(of_fixed: Float64s, others: Tensor) -> Tensor:
            chosen = torch.from_numpy(np.where(fixed, of_fixed, 0.0)).to(others)
            return torch.where(held, chosen, others.detach())

        found: dict[str, Any] = {
            "codebook": torch.from_numpy(codebook).to(means.device),
            "assignments": torch.from_numpy(assignments).to(means.device),
            "distances": torch.from_numpy(distances).to(means.device),
        }
        return UncertainClustering(
            values=where_fixed(self.values, means),
            fixed=held,
            orders=dict(self.orders),
            sigmas=where_fixed(self.spread, sigmas),
            allowed=self.allowed,
            **found,
        )


@dataclass(frozen=True)
class UncertainRules:
    """How weights are fixed; `compress.wfn.probabilistic.Pwfn` has the same fields.

    Attributes:
        fractions: fixed fraction after each iteration.
        allowed: δ at the start of the first and of the last clustering, evenly spaced between.
        growth: factor of δ where no centroid takes any weight.
        bits: b.
        ratio: α.
    """

    fractions: tuple[float, ...]
    allowed: tuple[float, float] = (1.0, 1.0)
    growth: float = 2.0
    bits: int = 7
    ratio: float = 2.0**-11


class UncertainFixing(Iterations):
    """`Iterations` with an uncertainty for each weight: parameters that are fixed become
    parametrisations of the module.

    Args:
        module: whose weights are fixed; it has other names in its state dict from now on
            (`means` gives those that it had).
        rules: how.
        seed: of the noise of each fit's first step.
        include_norm: fix norm parameters too.

    Attributes:
        allowed: δ at the end of the last clustering.
        mean_sigma: mean σ before it.

    Raises:
        ValueError: the module has nothing to fix, or shares parameters between layers.
    """

    def __init__(
        self,
        module: nn.Module,
        uncertain_rules: UncertainRules,
        *,
        seed: int,
        include_norm: bool = False,
    ) -> None:
        super().__init__(module, include_norm=include_norm)
        check_unshared(module, include_norm)
        self.uncertain_rules = uncertain_rules
        self.allowed = 0.0
        self.mean_sigma = 0.0
        self.seed = seed
        self.uncertain = make_uncertain(module, list(self.parameters))
        self.sigmas = {name: each.sigma for name, each in self.uncertain.items()}

    def hooks(self) -> list[Hook]:
        widen = Widen(
            self.uncertain, self.uncertain_rules.ratio, self.seed + self.iteration
        )
        held: dict[str, nn.Parameter] = dict(self.parameters)
        held |= {f"{name}.sigma": sigma for name, sigma in self.sigmas.items()}
        values = flat(held)
        fixed = torch.zeros_like(values, dtype=torch.bool)
        if self.clustering is not None:
            fixed = self.clustering.fixed.repeat(2)
        return [widen, HoldFixed(held, fixed, values, None, 0.0)]

    def _cluster(self, iteration: int) -> UncertainClustering:
        rules = self.uncertain_rules
        allowed = np.linspace(*rules.allowed, len(rules.fractions))[iteration]
        sigmas = flat(self.sigmas)
        self.mean_sigma = float(sigmas.double().mean())
        found = cluster_uncertain(
            flat(self.parameters),
            sigmas,
            rules.fractions[iteration],
            float(allowed),
            bits=rules.bits,
            growth=rules.growth,
        )
        self.allowed = found.allowed
        return found

    def _assign(self, clustering: Clustering) -> None:
        super()._assign(clustering)
        assert isinstance(clustering, UncertainClustering)
        put(self.sigmas, clustering.sigmas)
