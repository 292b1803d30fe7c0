"""Optimisers and schedules: timm's, driven by optimiser steps."""

import math
import warnings
from collections.abc import Mapping
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from trainers.config import TrainConfig
from trainers.option_types import duration_in_steps
from trainers.timm_library import timm
from trainers.words import did_you_mean


def make_optimizer(module: nn.Module, config: TrainConfig) -> Optimizer:
    """Any timm optimiser; biases and norms are not decayed.

    Raises:
        ValueError: timm has no such optimiser, or it does not take an option given.
    """
    options: dict[str, Any] = {}
    if config.betas is not None:
        options["betas"] = config.betas
    try:
        kind = _optimizer_class(config.optimizer)
        if config.eps is not None and "eps" in signature(kind).parameters:
            options["eps"] = config.eps
        return timm.optim.create_optimizer_v2(
            module,
            opt=config.optimizer,
            lr=config.scaled(config.lr),
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            layer_decay=config.layer_decay,
            **options,
            **_fused(module, kind),
        )
    except (AssertionError, TypeError, ValueError, LookupError) as error:
        given = f" with betas {list(config.betas)}" if config.betas else ""
        raise ValueError(
            f"optimizer {config.optimizer!r}{given}: {error} (see"
            " timm.optim.list_optimizers())"
        ) from error


def _optimizer_class(name: str) -> type[Optimizer]:
    """The class that a name of timm's stands for; `lookahead_NAME` wraps that of NAME.

    Raises:
        ValueError: timm has no such optimiser.
        AssertionError: timm cannot make it here, for it needs a GPU or another library.
    """
    wanted, known = name.lower().removeprefix("lookahead_"), _optimizers()
    if wanted not in known:
        hint = did_you_mean(wanted, known).strip()
        raise ValueError(f"timm has no such optimiser{hint and '; '}{hint}")
    kind: type[Optimizer] = timm.optim.get_optimizer_class(wanted, bind_defaults=False)
    return kind


@lru_cache(maxsize=1)
def _optimizers() -> frozenset[str]:
    """The names of timm's optimisers."""
    return frozenset(timm.optim.list_optimizers())


def _fused(module: nn.Module, kind: type[Optimizer]) -> dict[str, Any]:
    """The option for one kernel over all parameters, where torch has it: on a GPU.

    It also reads the flag of a loss scale on the device, where others make the host wait.
    """
    on_gpu = all(parameter.is_cuda for parameter in module.parameters())
    return {"fused": True} if on_gpu and kind in (Adam, AdamW, SGD) else {}


def check_train_config(config: TrainConfig, num_train: int) -> None:
    """Refuse what a fit on `num_train` images would refuse, before it starts.

    Raises:
        ValueError: batch size, warm-up or optimiser do not fit.
    """
    if config.epochs == 0:
        return
    images = min(config.images_per_epoch or num_train, num_train)
    if config.batch_size > images:
        what = (
            f"{num_train} images to train on"
            if images == num_train
            else f"{images} images of images_per_epoch"
        )
        raise ValueError(
            f"batch_size {config.batch_size} is more than the {what}; lower batch_size"
        )
    flat = config.model_copy(update={"layer_decay": None})
    Schedule(make_optimizer(nn.Linear(1, 1), flat), config, images // config.batch_size)
    _check_step(
        config.optimizer, config.eps, config.betas, config.momentum, config.weight_decay
    )


@lru_cache(maxsize=32)
def _check_step(
    optimizer: str,
    eps: float | None,
    betas: tuple[float, float] | None,
    momentum: float,
    weight_decay: float,
) -> None:
    """Let the optimiser take a step, on a few parameters of every usual shape.

    Some optimisers can be made, but ask more of the training loop than a gradient.

    Raises:
        ValueError: it cannot take one.
    """
    config = TrainConfig(
        optimizer=optimizer,
        eps=eps,
        betas=betas,
        momentum=momentum,
        weight_decay=weight_decay,
    )
    on_gpu = torch.cuda.is_available()  # some optimisers work there alone
    for device in ("cpu", "cuda") if on_gpu else ("cpu",):
        fault = _fault_of_step(config, torch.device(device))
        if fault is None:
            return
    raise ValueError(
        f"optimizer {optimizer!r} cannot take a step in this training loop: {fault};"
        " choose another one (see timm.optim.list_optimizers())"
    )


def _fault_of_step(config: TrainConfig, device: torch.device) -> str | None:
    """Why an optimiser cannot take a step on this device; None where it can."""
    with torch.random.fork_rng(devices=[]):
        layers = (nn.Conv2d(3, 4, 2), nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 2))
        module = nn.Sequential(*layers).to(device)
        module(torch.ones(2, 3, 2, 2, device=device)).square().sum().backward()
        try:
            make_optimizer(module, config).step()
        except (RuntimeError, TypeError, ValueError, LookupError) as error:
            return str(error).partition("\n")[0]
    return None


def set_by_length(config: TrainConfig) -> str | None:
    """The option through which the first epochs of a fit depend on how many there are.

    None where there is none: then a fit with more epochs begins with the same steps.
    """
    if config.schedule_epochs is not None:
        return None
    if config.schedule == "cosine":
        return "schedule: cosine"
    if isinstance(config.warmup, str) and config.warmup.endswith("%"):
        return f"warmup: {config.warmup}"
    if config.lr_noise is not None:
        return "lr_noise"
    return None if config.weight_decay_end is None else "weight_decay_end"


class Schedule:
    """Learning rate and weight decay as a function of optimiser steps taken."""

    def __init__(
        self, optimizer: Optimizer, config: TrainConfig, steps_per_epoch: int
    ) -> None:
        self.optimizer, self.config = optimizer, config
        self.steps_per_epoch = steps_per_epoch
        self.total = steps_per_epoch * config.scheduled_epochs
        self._initial_decay = [
            group["weight_decay"] for group in optimizer.param_groups
        ]
        self._lr = self._make(optimizer, config)
        self.after_step(0)

    def _make(self, optimizer: Optimizer, config: TrainConfig) -> Any:
        """timm's schedule: in epochs for `plateau`, else in optimiser steps."""
        warmup = self._warmup_steps()
        common: dict[str, Any] = {
            "warmup_t": warmup,
            "warmup_lr_init": config.scaled_low(config.warmup_lr),
        }
        if config.lr_noise is not None:
            common |= {
                "noise_range_t": [part * self.total for part in config.lr_noise],
                "noise_pct": config.lr_noise_pct,
                "noise_std": config.lr_noise_std,
            }
        if config.schedule == "plateau":
            common["warmup_t"] = warmup / self.steps_per_epoch
            return _plateau(optimizer, config, common)
        common["t_in_epochs"] = False
        if config.schedule == "cosine":
            return self._cosine(optimizer, warmup, common)
        constant = config.schedule == "constant"
        decay_steps = (
            math.inf if constant else config.decay_epochs * self.steps_per_epoch
        )
        return timm.scheduler.StepLRScheduler(
            optimizer, decay_t=decay_steps, decay_rate=config.decay_rate, **common
        )

    def _warmup_steps(self) -> int:
        """Steps of the warm-up.

        Raises:
            ValueError: the schedule is shorter than the fit, or the warm-up as long as it.
        """
        config = self.config
        if config.scheduled_epochs < config.epochs:
            raise ValueError(
                f"schedule_epochs {config.schedule_epochs} is less than the fit's"
                f" {config.epochs} epochs; raise it, or leave it out"
            )
        warmup = duration_in_steps(config.warmup, self.steps_per_epoch, self.total)
        if warmup and warmup >= self.total:
            raise ValueError(
                f"warmup ({config.warmup!r}: {warmup} steps) must be shorter than the"
                f" fit ({config.scheduled_epochs} epochs: {self.total} steps); lower warmup"
                " or raise epochs"
            )
        return warmup

    def _cosine(
        self, optimizer: Optimizer, warmup: int, common: Mapping[str, Any]
    ) -> Any:
        config = self.config
        span = self.total - config.cooldown_epochs * self.steps_per_epoch
        after_warmup = config.cosine_span == "after_warmup"
        if after_warmup:
            span -= warmup
        return timm.scheduler.CosineLRScheduler(
            optimizer,
            t_initial=max(span, 1),
            lr_min=config.scaled_low(config.min_lr),
            cycle_limit=1,
            warmup_prefix=after_warmup,
            **common,
        )

    def after_step(self, steps: int) -> None:
        """Set rates for the next step after `steps` steps in all."""
        at = steps
        if self.config.schedule_step != "step":
            lag = 1 if self.config.schedule_step == "epoch" else 0
            at = max(steps // self.steps_per_epoch - lag, 0) * self.steps_per_epoch
        self._lr.step_update(at)
        end = self.config.weight_decay_end
        if end is None:
            return
        progress = min(1.0, steps / max(self.total, 1))
        for group, start in zip(
            self.optimizer.param_groups, self._initial_decay, strict=True
        ):
            if start > 0:
                group["weight_decay"] = (
                    end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
                )

    def after_epoch(self, epoch: int, accuracy: float | None) -> None:
        """End an epoch with this validation accuracy (a fraction); only `plateau` looks at it."""
        if self.config.schedule == "plateau":
            self._lr.step(epoch + 1, accuracy)

    @property
    def lr(self) -> float:
        """The largest learning rate over parameter groups, without layer decay."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    def state_dict(self) -> dict[str, Any]:
        if self.config.schedule != "plateau":
            return {}
        return {
            "plateau": self._lr.state_dict(),
            "lrs": [g["lr"] for g in self.optimizer.param_groups],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self._lr.load_state_dict(state["plateau"])
            for group, lr in zip(
                self.optimizer.param_groups, state["lrs"], strict=True
            ):
                group["lr"] = lr


def _plateau(
    optimizer: Optimizer, config: TrainConfig, common: Mapping[str, Any]
) -> Any:
    with warnings.catch_warnings():
        # it warns that a resumed run forgets its state; `Schedule.state_dict` keeps it
        warnings.simplefilter("ignore", FutureWarning)
        return timm.scheduler.PlateauLRScheduler(
            optimizer,
            decay_rate=config.decay_rate,
            patience_t=config.patience_epochs,
            cooldown_t=config.cooldown_epochs,
            lr_min=config.scaled_low(config.min_lr),
            mode="max",
            **common,
        )
