"""Training of the whole model, from scratch too, with optional distillation (DeiT)."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from compress.stage import Context, Phase, Stage
from trainers.config import DistillConfig, TrainConfig
from trainers.data import DataInfo
from trainers.losses import DistillObjective, Objective, TaskObjective
from trainers.models import Arch, ModelState
from trainers.optim import check_train_config


class Finetune(Stage, TrainConfig):
    """Train every weight of the model; a randomly initialised source makes it training from scratch."""

    phase: ClassVar[Phase] = "train"
    version: ClassVar[int] = 2
    paper: ClassVar[str] = (
        "recipe and distillation: Touvron et al., Training data-efficient image transformers, ICML 2021"
    )

    distill: DistillConfig | None = Field(None, description="distillation from a teacher")

    def teachers(self) -> list[tuple[str, Path | None]]:
        return [(self.distill.teacher, self.distill.teacher_checkpoint)] if self.distill else []

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        check_train_config(self, data.num_train)
        with torch.device("meta"):
            self._trainable_arch(arch).build()
        return arch

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        module = self._trainable_arch(model.arch).build()
        module.load_state_dict(model.weights)
        ctx.fit(module, self._objective(module, ctx), self)
        return ModelState.from_module(model.arch, module, model.meta)

    def _trainable_arch(self, arch: Arch) -> Arch:
        """The same weights with this fit's drop rates.

        Raises:
            ValueError: the model has no such drop rate.
        """
        rates: dict[str, Any] = {}
        if self.drop:
            rates["drop_rate"] = self.drop
        if self.drop_path is not None:
            rates["drop_path_rate"] = self.drop_path
        if rates and arch.builder != "timm":
            raise ValueError(f"{', '.join(rates)}: {arch.name} has no drop rates; leave drop and drop_path out")
        return Arch(arch.builder, arch.name, arch.args | rates, arch.dims)

    def _objective(self, module: nn.Module, ctx: Context) -> Objective:
        if self.distill is None:
            return TaskObjective(self.label_smoothing)
        if hasattr(module, "set_distilled_training"):
            module.set_distilled_training(True)  # type: ignore[operator]
        teacher = ctx.teacher(self.distill.teacher, self.distill.teacher_checkpoint)
        return DistillObjective(teacher, self.distill, self.label_smoothing)
