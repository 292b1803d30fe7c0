"""Weight Fixing Networks (Subia-Waud & Dasmahapatra, ECCV 2022): the whole network on few
shared values.

Legend
    p_t      targets of the fixed fraction, t = 0 … T − 1 (`percentages`)
    delta    `distance_allowed`; iteration t clusters with a_t = delta · max(1, T − t)
    rho      `regularisation_ratio`; the loss is CE + alpha · R with alpha = rho · CE / R,
             held constant
    R        mean pull of the unfixed weights towards the last centroids
             (`compress.wfn.regulariser`)

Each iteration trains with the fixed weights held, then clusters. Held means held: their
gradients are zeroed and their values put back after every update, so that neither momentum
nor decay moves a bit of them.
"""

from collections import Counter
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.metrics import Metric
from compress.stage import Context, Phase, Stage
from compress.wfn.clustering import Clustering, cluster
from compress.wfn.regulariser import PullTable, pull_each
from trainers.config import FitOptions, TrainConfig
from trainers.data.splits import DataInfo
from trainers.models.arch import Arch, ModelState, on_meta
from trainers.models.parameters import linear_and_conv_parameters
from trainers.training.fit import Hook
from trainers.training.losses import TaskObjective
from trainers.training.optim import check_train_config

PERCENTAGES = (0.3, 0.6, 0.8, 0.9, 0.95, 0.975, 0.99, 0.9975, 0.999, 1.0)
_MOST_ORDERS = 40
_ORDERS = tuple(
    Metric(
        f"order_{order}",
        f"weights that the last clustering fixed with centroids of order {order}"
        + (" or higher" if order == _MOST_ORDERS else ""),
        "1",
    )
    for order in range(_MOST_ORDERS + 1)
)
_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)


def fixable_parameters(
    module: nn.Module, include_norm: bool
) -> dict[str, nn.Parameter]:
    """Parameters of Linear and Conv layers, biases included, in module order; of norms too
    if asked for.
    """
    return linear_and_conv_parameters(module, also=_NORMS if include_norm else ())


def flat(parameters: dict[str, nn.Parameter]) -> Tensor:
    """All values as one vector (n,), a copy."""
    return torch.cat([p.detach().reshape(-1) for p in parameters.values()])


class HoldFixed(Hook):
    """Pulls unfixed weights towards the centroids; holds fixed ones to the bit."""

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        fixed: Tensor,
        values: Tensor,
        table: PullTable | None,
        ratio: float,
    ) -> None:
        sizes = [p.numel() for p in parameters.values()]
        self.parameters = list(parameters.values())
        self.fixed = [
            f.view_as(p)
            for f, p in zip(fixed.split(sizes), self.parameters, strict=True)
        ]
        self.values = [
            v.view_as(p)
            for v, p in zip(values.split(sizes), self.parameters, strict=True)
        ]
        self.free: list[tuple[nn.Parameter, Tensor | None]] = []
        """Parameters with weights that are pulled, and the places of these, (n_i,), None
        for all. They stay the same during a fit: found once, so that no step asks for them.
        """
        self.num_free = 0
        if table is not None and ratio > 0:
            for parameter, held in zip(self.parameters, self.fixed, strict=True):
                places = (~held).reshape(-1).nonzero()[:, 0]
                self.num_free += len(places)
                if len(places):
                    every = len(places) == parameter.numel()
                    self.free.append((parameter, None if every else places))
        self.table, self.ratio = table, ratio

    def on_loss(self, loss: Tensor, step: int) -> Tensor:
        if self.table is None or not self.free:
            return loss
        with torch.autocast(loss.device.type, enabled=False):
            parts = [
                p.reshape(-1)
                if places is None
                else p.reshape(-1).index_select(0, places)
                for p, places in self.free
            ]
            regulariser = pull_each(parts, self.table).sum() / self.num_free
        alpha = (self.ratio * loss / regulariser.clamp_min(1e-12)).detach()
        return loss + alpha * regulariser

    def on_grads(self, step: int) -> None:
        for parameter, fixed in zip(self.parameters, self.fixed, strict=True):
            if parameter.grad is not None:
                parameter.grad.masked_fill_(fixed, 0.0)

    def on_step(self, step: int) -> bool | None:
        with torch.no_grad():
            for parameter, fixed, value in zip(
                self.parameters, self.fixed, self.values, strict=True
            ):
                torch.where(fixed, value, parameter, out=parameter.data)
        return None


class Wfn(Stage, FitOptions):
    """Fix all weights on a few hundred shared values at low entropy, training what is not
    fixed yet.
    """

    phase: ClassVar[Phase] = "quantize"
    version: ClassVar[int] = 2
    paper: ClassVar[str] = (
        "Subia-Waud and Dasmahapatra, Weight Fixing Networks, ECCV 2022"
    )
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "mean_relative_change",
            "mean of |fixed - incoming| / |incoming| over the weights that were not 0",
            "1",
        ),
        Metric("max_relative_change", "the largest of these changes", "1"),
        Metric("codebook_size", "different values that the weights share", "1"),
        Metric("fixed_fraction", "share of the weights that are fixed", "fraction"),
        *_ORDERS,
    )

    distance_allowed: float = Field(
        0.01, gt=0, description="delta: allowed mean relative distance to a centroid"
    )
    percentages: tuple[float, ...] = Field(
        PERCENTAGES, min_length=1, description="fixed fraction after each iteration"
    )
    first_epoch: int = Field(0, ge=0, description="epochs before the first clustering")
    fixing_epochs: int = Field(
        5, ge=0, description="epochs before each later clustering (the paper: 3)"
    )
    zero_distance: float = Field(
        2**-7, gt=0, lt=1, description="gamma_0: smaller weights may become zero"
    )
    regularisation_ratio: float = Field(
        0.4, ge=0, description="rho; 0 switches the pull off"
    )
    first_iteration: int = Field(
        0,
        ge=0,
        description=(
            "resume: the incoming model has this many iterations behind it, the last of"
            " a like stage"
        ),
    )
    last_iteration: int | None = Field(
        None, ge=1, description="end after this many iterations; default: all"
    )
    include_norm: bool = Field(
        False, description="fix norm parameters too (the paper's bn_inc)"
    )
    calculation_type: Literal["relative", "euclidean"] = Field(
        "relative", description="distance to a centroid"
    )
    powers_of_two: bool = Field(
        True, description="centroids are sums of few powers of two; false: any value"
    )

    optimizer: str = Field(
        "adam", description="a fresh one each iteration; the paper also has sgd"
    )
    lr: float = Field(2e-5, gt=0)
    lr_scaling: Literal["linear", "unscaled"] = "unscaled"
    min_lr: float = Field(0.0, ge=0)
    warmup: float | str = 0.0
    schedule: Literal["cosine", "step", "plateau", "constant"] = "constant"
    weight_decay: float = Field(0.0, ge=0, description="the paper's sgd: 5e-4")
    clip_grad: float | None = Field(0.5, gt=0, description="gradient norm")
    batch_size: int = Field(128, ge=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _iterations(self) -> "Wfn":
        total, last = len(self.percentages), self.last_iteration
        if not self.first_iteration < (last or total) <= total:
            raise ValueError(
                f"first_iteration {self.first_iteration} and last_iteration {last} must"
                f" lie in this order within the {total} percentages"
            )
        return self

    @field_validator("percentages")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < p <= 1 for p in value) or list(value) != sorted(value):
            raise ValueError(
                "percentages are fractions in (0, 1] that do not fall; got"
                f" {list(value)}"
            )
        return value

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        check_train_config(
            self._fit_config(max(self.first_epoch, self.fixing_epochs)), data.num_train
        )
        if not fixable_parameters(on_meta(arch), self.include_norm):
            raise ValueError(f"{arch.name} has no Linear or Conv parameters to fix")
        return arch

    def _fit_config(self, epochs: int) -> TrainConfig:
        return TrainConfig(
            epochs=epochs,
            **{name: getattr(self, name) for name in FitOptions.model_fields},
        )

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        module = model.build().to(ctx.device)
        parameters = fixable_parameters(module, self.include_norm)
        before, clustering = flat(parameters), None
        if self.first_iteration:
            # what is fixed lies on centroids, so the same call finds it again
            clustering = self._cluster(parameters, self.first_iteration - 1)
        for t in range(
            self.first_iteration, self.last_iteration or len(self.percentages)
        ):
            epochs = self.first_epoch if t == 0 else self.fixing_epochs
            if epochs:
                hook = self._hook(parameters, clustering)
                objective = TaskObjective(self.label_smoothing)
                ctx.fit(
                    module,
                    objective,
                    self._fit_config(epochs),
                    hooks=[hook],
                    name=f"iteration-{t:02d}",
                )
            clustering = self._cluster(parameters, t)
            _assign(parameters, clustering.values)
        assert clustering is not None
        ctx.report(
            **_changes(before, clustering),
            fixed_fraction=float(clustering.fixed.double().mean()),
            **_order_counts(clustering),
        )
        return ModelState.from_module(model.arch, module, model.meta)

    def _cluster(self, parameters: dict[str, nn.Parameter], t: int) -> Clustering:
        allowed = self.distance_allowed * max(1, len(self.percentages) - t)
        return cluster(
            flat(parameters),
            self.percentages[t],
            allowed,
            zero_distance=self.zero_distance,
            distance=self.calculation_type,
            powers_of_two=self.powers_of_two,
        )

    def _hook(
        self, parameters: dict[str, nn.Parameter], clustering: Clustering | None
    ) -> HoldFixed:
        if clustering is None:
            nothing = torch.zeros_like(flat(parameters), dtype=torch.bool)
            return HoldFixed(parameters, nothing, flat(parameters), None, 0.0)
        table = None
        if self.regularisation_ratio > 0:
            largest = 1.5 * float(clustering.values.abs().max())
            table = PullTable.build(
                clustering.codebook, largest, self.calculation_type, self.zero_distance
            )
        return HoldFixed(
            parameters,
            clustering.fixed,
            clustering.values,
            table,
            self.regularisation_ratio,
        )


@torch.no_grad()
def _assign(parameters: dict[str, nn.Parameter], values: Tensor) -> None:
    sizes = [p.numel() for p in parameters.values()]
    for parameter, value in zip(parameters.values(), values.split(sizes), strict=True):
        parameter.copy_(value.view_as(parameter))


def _order_counts(clustering: Clustering) -> dict[str, int]:
    """Metric name → how many weights were fixed at that order."""
    counts: Counter[str] = Counter()
    for order, count in clustering.orders.items():
        counts[f"order_{min(order, _MOST_ORDERS)}"] += count
    return dict(counts)


def _changes(before: Tensor, clustering: Clustering) -> dict[str, float | int]:
    """How far the weights moved from the incoming model; weights that were 0 do not count."""
    known = before != 0
    change = ((clustering.values - before).abs() / before.abs())[known].double()
    return {
        "mean_relative_change": float(change.mean()) if change.numel() else 0.0,
        "max_relative_change": float(change.max()) if change.numel() else 0.0,
        "codebook_size": len(clustering.codebook),
    }
