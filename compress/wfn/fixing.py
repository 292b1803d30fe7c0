"""Fixing the weights of a module on few shared values, a larger part of them in each iteration.

Legend
    p_t      fraction that is fixed after iteration t = 0 … T − 1 (`fractions`)
    delta    `distance_allowed`; iteration t clusters with a_t = delta · max(1, T − t)
    rho      `regularisation_ratio`; the loss is CE + alpha · R with alpha = rho · CE / R,
             held constant
    R        mean pull of the unfixed weights towards the last centroids
             (`compress.wfn.regulariser`)

Between two iterations the unfixed weights are trained while the fixed ones are held. Held
means held: their gradients are zeroed and their values put back after every update, so that
neither momentum nor weight decay moves a bit of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from compress.rounding import nearest, round_module
from compress.wfn.clustering import Clustering, Distance, cluster
from compress.wfn.regulariser import PullTable, pull_each
from trainers.models.parameters import quantizable_parameters
from trainers.training.fit import Hook

FRACTIONS = (0.3, 0.6, 0.8, 0.9, 0.95, 0.975, 0.99, 0.9975, 0.999, 1.0)
"""The paper's fixed fractions."""
Hold = Literal["values", "gradients"]


@dataclass(frozen=True)
class FixRules:
    """How weights are fixed; `compress.wfn.stage.Wfn` has the same fields.

    Attributes:
        fractions: fixed fraction after each iteration.
        distance_allowed: delta, allowed mean distance of weights to their centroid.
        zero_distance: gamma_0; smaller weights may become zero.
        regularisation_ratio: rho; 0 switches the pull off.
        distance: relative to the weight, or in the weights' own unit.
        powers_of_two: whether centroids are sums of few powers of two.
        published: cluster as the published code, where it departs from the paper.
        hold: what holds fixed weights while others are trained: their values, to the bit,
            or only their gradients, as in the published code, where an optimiser with
            weight decay moves them all the same.
    """

    fractions: tuple[float, ...] = FRACTIONS
    distance_allowed: float = 0.01
    zero_distance: float = 2**-7
    regularisation_ratio: float = 0.4
    distance: Distance = "relative"
    powers_of_two: bool = True
    published: bool = False
    hold: Hold = "values"


def fixable_parameters(
    module: nn.Module, include_norm: bool
) -> dict[str, nn.Parameter]:
    """Parameters of Linear and Conv layers, biases included, in module order; of norms too
    if asked for.
    """
    return quantizable_parameters(module, include_norm=include_norm)


def flat(parameters: dict[str, nn.Parameter]) -> Tensor:
    """All values as one vector (n,), a copy."""
    return torch.cat([p.detach().reshape(-1) for p in parameters.values()])


class HoldFixed(Hook):
    """Pulls unfixed weights towards the centroids; holds fixed ones to the bit.

    Args:
        parameters: all that are to be fixed in the end, n values together.
        fixed: which values are fixed, bool (n,).
        values: of the fixed ones, (n,).
        table: the pull towards the centroids; None is without.
        ratio: rho.
        hold: see `FixRules`.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        fixed: Tensor,
        values: Tensor,
        table: PullTable | None,
        ratio: float,
        hold: Hold = "values",
    ) -> None:
        self.hold = hold
        self.parameters = list(parameters.values())
        self.fixed = _shaped_as(self.parameters, fixed)
        self.values = _shaped_as(self.parameters, values)
        self.free: list[tuple[nn.Parameter, Tensor | None]] = []
        """Parameters with weights that are pulled, and the indices of these, (n_i,), None
        for all. They stay the same during a fit: found once, so that no step asks for them.
        """
        self.num_free = 0
        if table is not None and ratio > 0:
            self._find_free()
        self.table = table
        self.ratio = ratio

    def _find_free(self) -> None:
        for parameter, held in zip(self.parameters, self.fixed, strict=True):
            indices = (~held).reshape(-1).nonzero()[:, 0]
            self.num_free += len(indices)
            if len(indices):
                every = len(indices) == parameter.numel()
                self.free.append((parameter, None if every else indices))

    def on_loss(self, loss: Tensor, step: int = 0) -> Tensor:
        if self.table is None or not self.free:
            return loss
        with torch.autocast(loss.device.type, enabled=False):
            parts = [
                p.reshape(-1)
                if indices is None
                else p.reshape(-1).index_select(0, indices)
                for p, indices in self.free
            ]
            regulariser = pull_each(parts, self.table).sum() / self.num_free
        alpha = (self.ratio * loss / regulariser.clamp_min(1e-12)).detach()
        return loss + alpha * regulariser

    def on_grads(self, step: int = 0) -> None:
        for parameter, fixed in zip(self.parameters, self.fixed, strict=True):
            if parameter.grad is not None:
                parameter.grad.masked_fill_(fixed, 0.0)

    def on_step(self, step: int = 0) -> bool | None:
        if self.hold == "gradients":
            return None
        with torch.no_grad():
            for parameter, fixed, value in zip(
                self.parameters, self.fixed, self.values, strict=True
            ):
                torch.where(fixed, value, parameter, out=parameter.data)
        return None


class Iterations(ABC):
    """The iterations of weight fixing on one module, in place.

    Args:
        module: whose weights are fixed; it may be trained between the iterations.
        include_norm: fix norm parameters too.

    Attributes:
        iteration: of the next clustering, from 0.
        clustering: the last one, if there was one.

    Raises:
        ValueError: the module has nothing to fix.
    """

    clustering: Clustering | None

    def __init__(self, module: nn.Module, *, include_norm: bool = False) -> None:
        self.module = module
        self.parameters = fixable_parameters(module, include_norm)
        if not self.parameters:
            raise ValueError(
                f"{type(module).__name__} has no Linear or Conv parameters to fix"
            )
        self.iteration = 0
        self.clustering = None

    @abstractmethod
    def hooks(self) -> list[Hook]:
        """What holds the fixed weights while the others are trained."""

    @abstractmethod
    def _cluster(self, iteration: int) -> Clustering:
        """Which weights are fixed after that iteration, and where."""

    def fix_more(self, images: Iterable[Tensor] | None = None) -> Clustering:
        """Cluster, and give the weights that are fixed now their shared values.

        Args:
            images: batches for layer-wise rounding (`compress.rounding`): which of the shared
                values each fixed weight gets is decided by the outputs of its layer, and the
                unfixed weights make up for the rest. Default: as the clustering assigns them.
        """
        self.clustering = self._cluster(self.iteration)
        if images is None:
            self._assign(self.clustering)
        else:
            self.clustering = self._round(self.clustering, images)
        self.iteration += 1
        return self.clustering

    def _assign(self, clustering: Clustering) -> None:
        put(self.parameters, clustering.values)

    def _round(self, clustering: Clustering, images: Iterable[Tensor]) -> Clustering:
        """The clustering with its weights as layer-wise rounding leaves them in the module."""
        free = _shaped_as(list(self.parameters.values()), ~clustering.fixed)
        codebook = clustering.codebook.double().cpu()
        round_module(
            self.module,
            dict.fromkeys(self.parameters, partial(nearest, centroids=codebook)),
            images,
            free=dict(zip(self.parameters, free, strict=True)),
        )
        values = flat(self.parameters)
        places = torch.searchsorted(clustering.codebook, values).to(torch.int32)
        return replace(
            clustering,
            values=values,
            assignments=torch.where(clustering.fixed, places, -1),
        )


class Fixing(Iterations):
    """`Iterations` by the weights' values alone (WFN).

    Args:
        module: whose weights are fixed; it may be trained between the iterations.
        rules: how.
        include_norm: fix norm parameters too.
        first_iteration: how many iterations the module already has behind it.

    Raises:
        ValueError: the module has nothing to fix.
    """

    def __init__(
        self,
        module: nn.Module,
        rules: FixRules,
        *,
        include_norm: bool = False,
        first_iteration: int = 0,
    ) -> None:
        super().__init__(module, include_norm=include_norm)
        self.rules = rules
        self.iteration = first_iteration
        if first_iteration:
            # what is fixed lies on centroids, so that the same call finds it again
            self.clustering = self._cluster(first_iteration - 1)

    def hooks(self) -> list[Hook]:
        return [self.hook()]

    def hook(self) -> HoldFixed:
        """What holds the fixed weights while the others are trained."""
        clustering = self.clustering
        if clustering is None:
            values = flat(self.parameters)
            nothing = torch.zeros_like(values, dtype=torch.bool)
            return HoldFixed(self.parameters, nothing, values, None, 0.0)
        ratio = self.rules.regularisation_ratio
        table = None
        if ratio > 0:
            table = PullTable.build(
                clustering.codebook,
                1.5 * float(clustering.values.abs().max()),
                self.rules.distance,
                self.rules.zero_distance,
            )
        return HoldFixed(
            self.parameters,
            clustering.fixed,
            clustering.values,
            table,
            ratio,
            self.rules.hold,
        )

    def _cluster(self, iteration: int) -> Clustering:
        rules = self.rules
        factor = max(1, len(rules.fractions) - iteration)
        return cluster(
            flat(self.parameters),
            rules.fractions[iteration],
            rules.distance_allowed * factor,
            zero_distance=rules.zero_distance,
            distance=rules.distance,
            powers_of_two=rules.powers_of_two,
            published=rules.published,
        )


@torch.no_grad()
def put(parameters: dict[str, nn.Parameter], values: Tensor) -> None:
    """Give parameters the values of a flat vector (n,)."""
    all_of_them = list(parameters.values())
    parts = _shaped_as(all_of_them, values)
    for parameter, part in zip(all_of_them, parts, strict=True):
        parameter.copy_(part)


def fix(
    module: nn.Module,
    train: Callable[[HoldFixed, int], None],
    rules: FixRules | None = None,
    *,
    include_norm: bool = False,
) -> Clustering:
    """Fix all weights of a module in place, training it with your own loop in between.

    Args:
        module: with Linear or Conv layers.
        train: called before each clustering with a hook and the iteration (from 0). It
            trains the module for a while, calling the hook's `on_loss` on each loss,
            `on_grads` before and `on_step` after each update of the optimiser. It may also
            do nothing.
        rules: how weights are fixed; default: the paper's.
        include_norm: fix norm parameters too.

    Returns:
        The last clustering: shared values, and which weight has which.

    Raises:
        ValueError: the module has nothing to fix, or weights that are not finite.
    """
    rules = rules or FixRules()
    fixing = Fixing(module, rules, include_norm=include_norm)
    for iteration in range(len(rules.fractions)):
        train(fixing.hook(), iteration)
        clustering = fixing.fix_more()
    return clustering


def _shaped_as(parameters: Sequence[nn.Parameter], values: Tensor) -> list[Tensor]:
    """Parts of a flat vector, in the shapes of the parameters."""
    parts = values.split([p.numel() for p in parameters])
    return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]
