"""Training of the whole model, from scratch too, with optional distillation (DeiT)."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, model_validator
from torch import nn

from compress.asp import HoldZeros, asp_masks
from compress.stage import Context, Phase, Stage
from trainers.config import DistillConfig, FitOptions, TrainConfig
from trainers.data.splits import DataInfo
from trainers.hashing import LATER
from trainers.models.arch import (
    DROP_RATE_BUILDERS,
    Arch,
    ModelState,
    buildable,
    on_meta,
    shared_on_meta,
)
from trainers.option_types import ModelName
from trainers.training.losses import (
    DistillObjective,
    KlHeads,
    KlObjective,
    Objective,
    TaskObjective,
)
from trainers.training.optim import check_train_config, make_optimizer
from trainers.training.recompute import recompute_activations


class Finetune(Stage, TrainConfig):
    """Train every weight of the model; a randomly initialised source makes it training from
    scratch.
    """

    phase: ClassVar[Phase] = "train"
    version: ClassVar[int] = 2
    keeps_costs: ClassVar[bool] = True
    trains_sharded: ClassVar[bool] = True
    continues: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "recipe and distillation: Touvron et al., Training data-efficient image"
        " transformers, ICML 2021"
    )

    distill: DistillConfig | None = Field(
        None, description="distillation from a teacher"
    )
    kl_teacher: ModelName | None = Field(
        None,
        description=(
            "a second teacher, whose outputs are followed by KL divergence (NViT: the"
            " model before pruning); named as in distill.teacher"
        ),
    )
    kl_loss_coeff: float = Field(
        1e5,
        ge=0,
        description=(
            "weight of the KL divergence to kl_teacher (a mean over batch and classes)"
        ),
    )
    kl_tau: float = Field(3.0, gt=0, description="temperature of that divergence")
    kl_heads: Annotated[KlHeads, LATER] = Field(
        "mean",
        description=(
            "of distilled models. mean: that divergence of the mean of both heads'"
            " logits; both: the mean of both heads' divergences, as NViT's code"
        ),
    )
    scratch: bool = Field(
        False,
        description=(
            "train the same architecture from random weights, not from the incoming"
            " ones"
        ),
    )

    @model_validator(mode="after")
    def _both_heads_are_trained(self) -> "Finetune":
        if self.kl_heads == "both" and (self.distill is None or not self.kl_teacher):
            raise ValueError(
                "kl_heads: 'both' needs kl_teacher, and distill, which trains both heads;"
                " give them or leave kl_heads out"
            )
        return self

    def teachers(self) -> list[tuple[str, Path | None]]:
        distill = (
            [(self.distill.teacher, self.distill.teacher_checkpoint)]
            if self.distill
            else []
        )
        return distill + ([(self.kl_teacher, None)] if self.kl_teacher else [])

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        check_fit(arch, self, data)
        if self.kl_heads == "both":
            give_both_heads(on_meta(with_drop_rates(arch, self)))
        return arch

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        module = with_drop_rates(model.arch, self).build()
        start = ModelState.initialised(model.arch, ctx.seed) if self.scratch else model
        module.load_state_dict(start.weights)
        masks = asp_masks(model)
        hooks = [HoldZeros(module, masks)] if masks else []
        ctx.fit(module, self._objective(module, ctx), self, hooks=hooks)
        return ModelState.from_module(model.arch, module, model.meta)

    def _objective(self, module: nn.Module, ctx: Context) -> Objective:
        base = task_objective(self, self.distill, module, ctx)
        if self.kl_teacher is None:
            return base
        dense = ctx.teacher(self.kl_teacher)
        if self.kl_heads == "both":
            give_both_heads(dense)
            give_both_heads(module)
        return KlObjective(
            base, dense, self.kl_loss_coeff, self.kl_tau, heads=self.kl_heads
        )


def give_both_heads(module: nn.Module) -> None:
    """Let a distilled model give both heads' logits, in eval mode too.

    Raises:
        ValueError: the model has one head.
    """
    if getattr(module, "head_dist", None) is None:
        raise ValueError(
            f"kl_heads: 'both' needs distilled models; {type(module).__name__} has one"
            " head. Set kl_heads to 'mean'"
        )
    module.set_distilled_training(True)  # type: ignore[operator]
    module.training = True  # the root alone, which decides nothing else


def check_fit(arch: Arch, config: TrainConfig, data: DataInfo) -> None:
    """Refuse what training a model of this architecture would refuse, before it starts.

    Raises:
        ValueError: batch size, warm-up, optimiser or drop rates do not fit.
    """
    check_train_config(config, data.num_train)
    if config.schedule == "plateau" and config.epochs and data.num_val == 0:
        raise ValueError(
            "schedule: plateau looks at the accuracy on the validation part, which is empty;"
            " set data.val_fraction above 0, or choose another schedule"
        )
    _check_drop_rates(arch, config)
    if config.grad_checkpointing:
        recompute_activations(on_meta(arch))
    if config.layer_decay is not None:
        make_optimizer(shared_on_meta(with_drop_rates(arch, config)), config)


def task_objective(
    options: FitOptions, distill: DistillConfig | None, module: nn.Module, ctx: Context
) -> TaskObjective | DistillObjective:
    """The loss of labels, or of labels and a teacher; in the latter case a distilled module
    trains both heads.
    """
    if distill is None:
        return TaskObjective(options.label_smoothing)
    if hasattr(module, "set_distilled_training"):
        module.set_distilled_training(True)  # type: ignore[operator]
    teacher = ctx.teacher(distill.teacher, distill.teacher_checkpoint)
    return DistillObjective(teacher, distill, options.label_smoothing)


def _check_drop_rates(arch: Arch, options: FitOptions) -> None:
    """Refuse drop rates that the model's class has no argument for.

    Raises:
        ValueError: names the rates and what remains.
    """
    with_drop_rates(arch, options)
    for name in _drop_rates(options):
        # one rate for all: then the models of a sweep that draws its rates are built once
        alone = replace(arch, args=arch.args | {name: 0.1})
        try:
            buildable(alone)
        except ValueError as error:
            option = _OPTION_OF[name]
            raise ValueError(
                f"{option}: {arch.name} does not take {name} ({error.__cause__}); leave"
                f" {option} out, or train a model that takes it"
            ) from error


_OPTION_OF = {"drop_rate": "drop", "drop_path_rate": "drop_path"}
"""Argument of a model's builder → the option of a fit that sets it."""


def with_drop_rates(arch: Arch, options: FitOptions) -> Arch:
    """The same architecture with a fit's drop rates.

    Raises:
        ValueError: the model has no such drop rate.
    """
    rates = _drop_rates(options)
    if rates and arch.builder not in DROP_RATE_BUILDERS:
        raise ValueError(
            f"{', '.join(rates)}: {arch.name} has no drop rates; leave drop and"
            " drop_path out"
        )
    return Arch(arch.builder, arch.name, arch.args | rates, arch.dims)


def _drop_rates(options: FitOptions) -> dict[str, float]:
    """Argument of a model's builder → the rate that a fit sets."""
    rates: dict[str, float] = {}
    if options.drop:
        rates["drop_rate"] = options.drop
    if options.drop_path is not None:
        rates["drop_path_rate"] = options.drop_path
    return rates
