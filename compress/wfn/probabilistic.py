"""Probabilistic Weight Fixing (Subia-Waud & Dasmahapatra, NeurIPS 2023): as WFN, but how far a
weight may move is learnt for each position. The maths is in `uncertain`.
"""

from typing import ClassVar

from pydantic import Field, model_validator

from compress.metrics import Metric
from compress.stage import Context
from compress.wfn.fixing import fixable_parameters, flat
from compress.wfn.stage import CHANGES, WeightFixing
from compress.wfn.uncertain import (
    UncertainFixing,
    UncertainRules,
    check_unshared,
    means,
)
from trainers.data.splits import DataInfo
from trainers.models.arch import Arch, ModelState, shared_on_meta

FRACTIONS = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.99, 1.0)
"""The public code's fixed fractions."""


class Pwfn(WeightFixing):
    """Fix all weights on few shared values, those first whose learnt uncertainty allows it."""

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Subia-Waud and Dasmahapatra, Probabilistic Weight Fixing, NeurIPS 2023"
    )
    metrics: ClassVar[tuple[Metric, ...]] = (
        *CHANGES,
        Metric(
            "sigmas_allowed",
            "standard deviations that a weight may lie from its centroid, at the end of"
            " the last clustering",
            "1",
        ),
        Metric("mean_sigma", "mean uncertainty of a weight before it", "1"),
        *(
            Metric(
                f"order_{order}",
                "weights that the last clustering fixed with centroids of up to"
                f" {order} powers of two",
                "1",
            )
            for order in range(1, 5)
        ),
    )

    percentages: tuple[float, ...] = Field(
        FRACTIONS, min_length=1, description="fixed fraction after each iteration"
    )
    first_epoch: int = Field(
        1,
        ge=0,
        description="epochs before the first clustering (published: of a 20th of the images)",
    )
    fixing_epochs: int = Field(
        3, ge=0, description="epochs before each later clustering"
    )
    sigmas: tuple[float, float] = Field(
        (1.0, 1.0),
        description=(
            "delta of the first and of the last clustering: standard deviations that a weight may"
            " lie from its centroid; it grows by `growth` where no weight is near enough"
        ),
    )
    growth: float = Field(2.0, gt=1, description="factor of delta")
    bits: int = Field(
        7,
        ge=1,
        le=30,
        description="b: 2^-b is the least power of two; weights below it may become 0",
    )
    sigma_ratio: float = Field(
        2.0**-11, ge=0, description="alpha: how strongly uncertainties are pushed up"
    )

    optimizer: str = Field("sgd", description="a fresh one each iteration")
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    clip_grad: float | None = Field(1.0, gt=0, description="gradient norm")

    @model_validator(mode="after")
    def _possible(self) -> "Pwfn":
        if min(self.sigmas) <= 0:
            raise ValueError(f"sigmas are {list(self.sigmas)}; both must be above 0")
        if not self.train_mode:
            raise ValueError(
                "train_mode: false leaves weights without noise, so that no uncertainty"
                " is learnt; leave it out, or use the stage wfn"
            )
        return self

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        check_unshared(shared_on_meta(arch), self.include_norm)
        return super().check(arch, data)

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        module = model.build().to(ctx.device)
        before = flat(fixable_parameters(module, self.include_norm))
        fixing = UncertainFixing(
            module,
            UncertainRules(
                fractions=self.percentages,
                allowed=self.sigmas,
                growth=self.growth,
                bits=self.bits,
                ratio=self.sigma_ratio,
            ),
            seed=ctx.seed,
            include_norm=self.include_norm,
        )
        self._fixed(module, fixing, before, ctx)
        ctx.report(sigmas_allowed=fixing.allowed, mean_sigma=fixing.mean_sigma)
        plain = model.build()
        plain.load_state_dict(means(module))
        return ModelState.from_module(model.arch, plain, self._meta(model))
