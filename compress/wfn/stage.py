"""Weight Fixing Networks (Subia-Waud & Dasmahapatra, ECCV 2022): the whole network on few
shared values.

The maths is in `fixing` (the iterations), `clustering` (one of them) and `regulariser` (the
pull towards the centroids).
"""

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from compress.finetune import check_fit
from compress.metrics import Metric
from compress.rounding import RoundingOptions
from compress.stage import Context, Phase, Stage
from compress.wfn.clustering import Clustering
from compress.wfn.fixing import (
    FRACTIONS,
    Fixing,
    FixRules,
    Hold,
    Iterations,
    fixable_parameters,
    flat,
)
from trainers.config import LATER, Augment, AugmentConfig, FitOptions, TrainConfig
from trainers.data.splits import DataInfo
from trainers.models.arch import Arch, ModelState, shared_on_meta
from trainers.models.parameters import NORMS_QUANTIZED
from trainers.training.losses import TaskObjective

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


CHANGES: tuple[Metric, ...] = (
    Metric(
        "mean_relative_change",
        "mean of |fixed - incoming| / |incoming| over the weights that were not 0",
        "1",
    ),
    Metric("max_relative_change", "the largest of these changes", "1"),
    Metric("codebook_size", "different values that the weights share", "1"),
    Metric("fixed_fraction", "share of the weights that are fixed", "fraction"),
)


class WeightFixing(Stage, FitOptions):
    """What the methods share that fix weights in iterations and train what is not fixed yet."""

    phase: ClassVar[Phase] = "quantize"

    percentages: tuple[float, ...] = Field(
        FRACTIONS, min_length=1, description="fixed fraction after each iteration"
    )
    first_epoch: int = Field(0, ge=0, description="epochs before the first clustering")
    fixing_epochs: int = Field(
        5, ge=0, description="epochs before each later clustering (the paper: 3)"
    )
    include_norm: bool = Field(
        False, description="fix parameters of norms too (the paper's bn_inc)"
    )

    lr_scaling: Literal["linear", "unscaled"] = "unscaled"
    min_lr: float = Field(0.0, ge=0)
    warmup: float | str = 0.0
    schedule: Literal["cosine", "step", "plateau", "constant"] = "constant"
    batch_size: int = Field(128, ge=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    augment: Augment = AugmentConfig(preset="flip")

    @field_validator("percentages")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < p <= 1 for p in value) or list(value) != sorted(value):
            raise ValueError(
                "percentages are fractions in (0, 1] that do not fall; got"
                f" {list(value)}"
            )
        return value

    def _numbers(self) -> range:
        """Of the iterations that this stage does."""
        return range(len(self.percentages))

    def _calibration(self, ctx: Context) -> Iterable[Tensor] | None:
        """Images for layer-wise rounding, if there is to be any."""
        return None

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        for epochs in sorted({self.first_epoch, self.fixing_epochs}):
            check_fit(arch, self._fit_config(epochs), data)
        if not fixable_parameters(shared_on_meta(arch), self.include_norm):
            raise ValueError(f"{arch.name} has no Linear or Conv parameters to fix")
        return arch

    def num_epochs(self) -> int:
        return sum(
            self.fixing_epochs if t else self.first_epoch for t in self._numbers()
        )

    def _fit_config(self, epochs: int) -> TrainConfig:
        return TrainConfig(
            epochs=epochs,
            **{name: getattr(self, name) for name in FitOptions.model_fields},
        )

    def _fixed(
        self, module: nn.Module, fixing: Iterations, before: Tensor, ctx: Context
    ) -> None:
        """Do the iterations, and report them."""
        for t in self._numbers():
            epochs = self.first_epoch if t == 0 else self.fixing_epochs
            if epochs:
                ctx.fit(
                    module,
                    TaskObjective(self.label_smoothing),
                    self._fit_config(epochs),
                    hooks=fixing.hooks(),
                    name=f"iteration-{t:02d}",
                )
            clustering = fixing.fix_more(self._calibration(ctx))
        ctx.report(
            **_changes(before, clustering),
            fixed_fraction=float(clustering.fixed.double().mean()),
            **_order_counts(clustering),
        )

    def _meta(self, model: ModelState) -> dict[str, Any]:
        return model.meta | ({NORMS_QUANTIZED: True} if self.include_norm else {})


class Wfn(WeightFixing, RoundingOptions):
    """Fix all weights on a few hundred shared values at low entropy, training what is not
    fixed yet.
    """

    version: ClassVar[int] = 2
    paper: ClassVar[str] = (
        "Subia-Waud and Dasmahapatra, Weight Fixing Networks, ECCV 2022"
    )
    metrics: ClassVar[tuple[Metric, ...]] = (*CHANGES, *_ORDERS)

    distance_allowed: float = Field(
        0.01, gt=0, description="delta: allowed mean distance to a centroid"
    )
    zero_distance: float = Field(
        2**-7, gt=0, lt=1, description="gamma_0: smaller weights may become zero"
    )
    regularisation_ratio: float = Field(
        0.4,
        ge=0,
        description="rho: weight of the pull towards the centroids; 0 is without it",
    )
    first_iteration: int = Field(
        0,
        ge=0,
        description=(
            "iterations that an earlier stage of the same settings has done on the"
            " incoming model"
        ),
    )
    last_iteration: int | None = Field(
        None, ge=1, description="end after this many iterations; default: all"
    )
    calculation_type: Literal["relative", "euclidean"] = Field(
        "relative", description="distance to a centroid"
    )
    powers_of_two: bool = Field(
        True, description="centroids are sums of few powers of two; false: any value"
    )

    clustering: Annotated[Literal["paper", "published"], LATER] = Field(
        "paper",
        description=(
            "published: as the published code, where it departs from the paper: with"
            " euclidean distances weights below zero_distance are free for the centroid"
            " 0, and a zero_distance that is no power of two gives other centroids"
        ),
    )
    hold: Annotated[Hold, LATER] = Field(
        "values",
        description=(
            "of fixed weights while others are trained. values: to the bit; gradients,"
            " as in the published code: weight decay moves them"
        ),
    )

    optimizer: str = Field(
        "adam", description="a fresh one each iteration; the paper also has sgd"
    )
    lr: float = Field(2e-5, gt=0)
    weight_decay: float = Field(0.0, ge=0, description="the paper's sgd: 5e-4")
    clip_grad: float | None = Field(0.5, gt=0, description="gradient norm")

    @model_validator(mode="after")
    def _iterations(self) -> "Wfn":
        total = len(self.percentages)
        last = self.last_iteration
        if not self.first_iteration < (last or total) <= total:
            raise ValueError(
                f"first_iteration {self.first_iteration} and last_iteration {last} must"
                f" lie in this order within the {total} percentages"
            )
        return self

    def _numbers(self) -> range:
        return range(self.first_iteration, self.last_iteration or len(self.percentages))

    def _calibration(self, ctx: Context) -> Iterable[Tensor] | None:
        layerwise = self.rounding == "layerwise"
        return ctx.images(self.calibration_images) if layerwise else None

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        module = model.build().to(ctx.device)
        before = flat(fixable_parameters(module, self.include_norm))
        fixing = Fixing(
            module,
            self._rules(),
            include_norm=self.include_norm,
            first_iteration=self.first_iteration,
        )
        self._fixed(module, fixing, before, ctx)
        return ModelState.from_module(model.arch, module, self._meta(model))

    def _rules(self) -> FixRules:
        return FixRules(
            fractions=self.percentages,
            distance_allowed=self.distance_allowed,
            zero_distance=self.zero_distance,
            regularisation_ratio=self.regularisation_ratio,
            distance=self.calculation_type,
            powers_of_two=self.powers_of_two,
            published=self.clustering == "published",
            hold=self.hold,
        )


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
