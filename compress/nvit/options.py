"""The options of the stage `nvit`, and which of them exclude each other."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from compress.budget import Quantity, Target
from compress.compensation import COMPENSATE_IMAGES
from compress.measure.options import Precision
from compress.nvit.groups import GroupSizes
from compress.nvit.importance import HEAD_DIVISOR
from compress.nvit.pruner import Counting, Importance
from compress.nvit.surgery import NormChannels
from trainers.config import DistillConfig, TrainConfig
from trainers.hashing import LATER
from trainers.option_types import UserPath

CostKind = Literal["measured", "macs", "params"]
COSTS: dict[Quantity, CostKind] = {
    "latency": "measured",
    "macs": "macs",
    "params": "params",
    "bytes": "params",  # all values of a ViT have the same number of bytes
}
"""Quantity of a target → what pruning goes by."""


class NvitOptions(TrainConfig):
    """How a ViT is pruned while it trains."""

    target: Annotated[Target | None, LATER] = Field(
        None,
        description=(
            "what the result may cost: {latency: 0.5}, {macs: 0.5}, {params: 0.5} or"
            " {bytes: 0.5} of the incoming model's, or {latency_ms: 5} a batch; pruning"
            " goes by the same quantity. Default: latency_target"
        ),
    )
    latency_target: float | None = Field(
        0.5,
        gt=0,
        lt=1,
        description=(
            "the share alone, of what `latency` names; `target` says both in one"
        ),
    )
    importance: Importance = Field(
        "nvit",
        description=(
            "what ranks the units. nvit: the Taylor term less what their latency is"
            " worth; taylor: the Taylor term alone; magnitude and random: baselines"
        ),
    )
    latency_regularization: float = Field(
        5e-4, ge=0, description="eta: weight of the saved latency beside the importance"
    )
    latency_unit: Literal["dense", "seconds"] = Field(
        "dense",
        description=(
            "unit of latency in eta. dense: the incoming model's latency, so that one"
            " eta suits all devices; seconds: as in the paper"
        ),
    )
    latency: CostKind = Field(
        "measured",
        description=(
            "what the pruning goes by. measured: a table of latencies; macs, params: the"
            " number of operations or parameters, which is the same on every machine but"
            " no latency"
        ),
    )
    importance_unit: Literal["share", "loss"] = Field(
        "loss",
        description=(
            "unit of importance beside latency. loss: the squared change of the loss,"
            " as in the paper; share: a unit's share of the whole model's importance,"
            " so that one eta suits all losses and is as strong in the first intervals"
            " as in later ones"
        ),
    )
    table: UserPath | None = Field(
        None,
        description=(
            "file of a measured latency table; default: one is measured on the trial's"
            " device"
        ),
    )
    table_below: Annotated[Literal["constant", "to_zero"], LATER] = Field(
        "constant",
        description=(
            "latency of a width or MLP smaller than the table knows. constant: that of"
            " its smallest; to_zero: linear to 0 at size 0, as NViT's code"
        ),
    )
    latency_batch: int = Field(
        64,
        ge=1,
        description=(
            "images in a batch, when a table is measured here and when the models are"
            " compared at the end"
        ),
    )
    latency_dtype: Precision = Field(
        "float32", description="precision of these two measurements"
    )
    measure: bool = Field(
        True, description="measure the latency of both models at the end"
    )

    groups: GroupSizes = Field(
        GroupSizes(), description="how many units of a kind are pruned together"
    )
    prune_per_iter: int = Field(
        32,
        ge=1,
        description="pruned in an interval, in 16ths of a group (32 are two groups)",
    )
    counting: Annotated[Counting, LATER] = Field(
        "new_groups",
        description=(
            "what an interval takes. new_groups: that many groups more; published, as"
            " NViT's code: every group that scores at most as much as the 2nd, 4th, 6th,"
            " … of all groups, those that are gone or must stay included, so that later"
            " intervals take more; the target is then looked at a step later"
        ),
    )
    interval_prune: int = Field(
        100, ge=1, description="optimiser steps between two prunings"
    )
    importance_momentum: float = Field(
        0.9, ge=0, lt=1, description="of the importance, from interval to interval"
    )
    importance_reset: Annotated[bool, LATER] = Field(
        False,
        description=(
            "set the importance so far to 0 after the first pruning, as NViT's code"
        ),
    )
    importance_weights: Annotated[Literal["before", "after"], LATER] = Field(
        "before",
        description=(
            "weights that gradients are multiplied by: those that they belong to, or"
            " those after the update, as in NViT's code"
        ),
    )
    head_divisor: Annotated[int, LATER] = Field(
        HEAD_DIVISOR,
        ge=1,
        description=(
            "divisor of the sum over a head, before it is squared; NViT's code: 12"
        ),
    )
    budget: int = Field(
        39_000, ge=1, description="units that may be pruned at most (prune_dict.Global)"
    )

    kl_loss_coeff: float = Field(
        1e5,
        ge=0,
        description=(
            "weight of the KL divergence to the incoming model (a mean over batch and"
            " classes)"
        ),
    )
    kl_tau: float = Field(3.0, gt=0, description="temperature of that divergence")
    original_loss_coeff: float = Field(
        1.0, ge=0, description="weight of the loss of labels and `distill`"
    )
    distill: DistillConfig | None = Field(
        None, description="a second teacher (in the paper a CNN, hard labels)"
    )
    student_eval: bool = Field(
        True,
        description="no dropout and no stochastic depth from the first pruning on",
    )

    norm_channels: Annotated[NormChannels, LATER] = Field(
        "kept",
        description=(
            "channels that a LayerNorm averages over while others are zeroed. kept: what"
            " is pruned is what is cut out; all, as NViT's code: the model that is cut"
            " out computes something else"
        ),
    )

    compensate: Annotated[bool, LATER] = Field(
        False,
        description=(
            "change the weights that stay so that what an interval takes is missed least:"
            " least squares on `compensate_images`, without labels"
        ),
    )
    compensate_images: Annotated[int, LATER] = Field(
        COMPENSATE_IMAGES,
        ge=2,
        description="training images that `compensate` looks at, at evaluation's crop",
    )

    epochs: int = Field(
        50, ge=1, description="at most; training ends when the target is reached"
    )
    lr: float = Field(1e-4, gt=0, description="at a global batch of 512")
    schedule: Literal["cosine", "step", "plateau", "constant"] = "constant"
    warmup: float | str = 0.0

    @model_validator(mode="before")
    @classmethod
    def _target_by_its_older_names(cls, given: Any) -> Any:
        """A share becomes `latency_target` and `latency`, so that it has the same key in the
        stage cache however it is written.
        """
        if not isinstance(given, dict) or given.get("target") is None:
            return given
        try:
            target = Target.model_validate(given["target"])
        except ValidationError:
            return given  # the field itself says what is wrong
        kind = COSTS[target.quantity]
        if given.get("latency_target") is not None:
            raise ValueError(
                f"target: {target.describe()} is the target, and latency_target is"
                f" {given['latency_target']!r}; remove latency_target"
            )
        if given.get("latency", kind) != kind:
            raise ValueError(
                f"target: for {target.describe()} pruning goes by {kind!r}, and latency is"
                f" {given['latency']!r}; remove latency"
            )
        if not target.is_share:
            return given | {"latency_target": None, "latency": kind}
        rest = {name: value for name, value in given.items() if name != "target"}
        return rest | {"latency_target": target.value, "latency": kind}

    @model_validator(mode="after")
    def _fits_together(self) -> "NvitOptions":
        if self.target is None and self.latency_target is None:
            raise ValueError("target: it is missing; write one, such as {latency: 0.5}")
        if self.ema is not None:
            raise ValueError(
                "ema: NViT does not keep averaged weights, because the model's shape"
                " changes while it trains; remove `ema` from this stage"
            )
        if self.latency != "measured" and self.table is not None:
            raise ValueError(
                f"table: with latency {self.latency!r} no table is read; remove `table`,"
                " or set latency to 'measured'"
            )
        if self.latency != "measured" and self.latency_unit == "seconds":
            raise ValueError(
                f"latency_unit: 'seconds' needs latency 'measured', because"
                f" {self.latency!r} is no time; set one of the two"
            )
        return self
