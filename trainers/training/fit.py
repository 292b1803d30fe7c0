"""The one training loop. Methods call it with an objective and hooks; none copies it."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainers import measuring
from trainers.config import TrainConfig
from trainers.data.splits import Data, TrainBatches
from trainers.option_types import Strategy
from trainers.seeding import derive_seed, seed_everything
from trainers.training import distributed
from trainers.training.checkpoint import CheckpointFolder
from trainers.training.evaluate import evaluate
from trainers.training.losses import Objective
from trainers.training.optim import Schedule, make_optimizer
from trainers.training.parallel import parallel_model
from trainers.training.recompute import recompute_activations

_AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite; names the step and the learning rate."""


class Hook:
    """What a method adds to the loop. Every method here does nothing; override what is needed."""

    def on_begin(self, module: nn.Module) -> None:
        """Before the first step, with the module that is trained. With resources.strategy fsdp it
        is not the one that `fit` was given: its parameters are split over the workers, and
        `trainers.training.sharding.placed_like` splits other tensors alike.
        """

    def on_loss(self, loss: Tensor, step: int) -> Tensor:
        """The loss to minimise instead of `loss` (scalar); `step` counts finished optimiser
        steps.
        """
        return loss

    def on_grads(self, step: int) -> None:
        """After backward and unscaling, before clipping and the update."""

    def on_step(self, step: int) -> bool | None:
        """After the update, gradients still there. True ends the fit; None where there is
        nothing to decide at this step.

        Several workers agree on what is decided, which makes them wait for each other; so
        whether it is None must be the same on all of them.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only: checkpoints are read without unpickling code."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""


Row = dict[str, Any]
"""One epoch as it is recorded: `fit`, `epoch`, what `TrainedEpoch` has, and after an evaluation the
metrics of the validation part (`trainers.training.epoch_metrics`).
"""


@dataclass(frozen=True)
class TrainedEpoch:
    """One pass over the training part.

    Attributes:
        step: optimiser steps since the fit began.
        train_loss: mean loss of the pass's steps, over all ranks.
        lr: learning rate of the last step.
        seconds: of the pass alone, without evaluation and pauses (`trainers.measuring`).
        images_per_second: over all ranks.
        steps_per_second: optimiser steps.
    """

    step: int
    train_loss: float
    lr: float
    seconds: float
    images_per_second: float
    steps_per_second: float


@dataclass
class FitResult:
    """What a fit did.

    Attributes:
        rows: one for each epoch, see `Row`.
        steps: optimiser steps taken.
        seconds: time spent training and evaluating, over all the processes that a resumed fit had;
            without pauses.
        seconds_restored: the part of them that earlier processes spent.
    """

    rows: list[Row] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    seconds_restored: float = 0.0


class _LossMeter:
    """The mean loss of an epoch's steps. Losses stay on the device and are read in blocks: to read
    one makes the host wait for a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.block = 1 if device.type == "cpu" else 32
        self.pending: list[tuple[int, float, Tensor]] = []
        self.total = 0.0
        self.count = 0

    def add(self, step: int, lr: float, loss: Tensor) -> None:
        """Note the loss of an optimiser step, a scalar on the device."""
        self.pending.append((step, lr, loss))
        if len(self.pending) >= self.block:
            self.check()

    def check(self) -> None:
        """Read the losses noted since the last time.

        Raises:
            NonFiniteLossError: one of them is NaN or infinite.
        """
        if not self.pending:
            return
        values = torch.stack([loss for _, _, loss in self.pending]).tolist()
        for (step, lr, _), value in zip(self.pending, values, strict=True):
            if not math.isfinite(value):
                raise NonFiniteLossError(
                    f"the loss is {value} at step {step}, learning rate {lr:.3g}; lower"
                    " lr or set clip_grad"
                )
            self.total += value
            self.count += 1
        self.pending.clear()

    def mean(self) -> float:
        self.check()
        return self.total / max(self.count, 1)


_LARGE = {"module", "optimizer", "ema"}
"""What of a fit's state its `ParallelModel` holds."""


class _Fit:
    """The parts of one fit, and its state."""

    def __init__(
        self,
        module: nn.Module,
        data: Data,
        objective: Objective,
        config: TrainConfig,
        hooks: Sequence[Hook],
        seed: int,
        device: torch.device,
        strategy: Strategy = "ddp",
    ) -> None:
        self.data = data
        self.objective = objective
        self.config = config
        self.hooks = hooks
        self.seed = seed
        self.device = device
        self.parallel = parallel_model(
            strategy, module, config, device, data.info.image_size
        )
        self.module = self.parallel.module
        self.ema = self.parallel.ema
        world = distributed.world_size()
        _, self.accumulation = config.accumulation(world)
        self.batches = TrainBatches(
            data,
            config.augment,
            batch_size=config.batch_size,
            images_per_epoch=config.images_per_epoch,
            accumulation=self.accumulation,
            seed=derive_seed(seed, "batches"),
            device=device,
            rank=distributed.rank(),
            world_size=world,
        )
        self.optimizer = make_optimizer(self.module, config)
        self.schedule = Schedule(self.optimizer, config, self.batches.steps_per_epoch)
        self.amp = _AMP[config.amp]
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
        called = self.parallel.called
        compiled: Any = torch.compile(called) if config.compile else called
        self.model: nn.Module = compiled
        for hook in hooks:
            hook.on_begin(self.module)
        self.result = FitResult()
        self.epoch = 0
        self.ended = False

    def run_epoch(self, name: str) -> Row:
        """Train one epoch and evaluate where that is due; the row is part of the result, too."""
        start = measuring.working_seconds()
        row = {"fit": name, "epoch": self.epoch, **asdict(self.train_epoch())}
        scores = {}
        if self.is_last or (self.epoch + 1) % self.config.eval_every == 0:
            scores = self.validate()
        row |= scores
        self.schedule.after_epoch(self.epoch, scores.get("accuracy"))
        self.result.rows.append(row)
        self.result.seconds += measuring.working_seconds() - start
        self.epoch += 1
        return row

    @property
    def is_last(self) -> bool:
        """Whether no epoch follows the one that is being trained."""
        return self.ended or self.epoch + 1 == self.config.epochs

    def train_epoch(self) -> TrainedEpoch:
        """One pass over the training part. Sets `ended` when a hook ends the fit."""
        seed_everything(derive_seed(self.seed, "epoch", self.epoch, distributed.rank()))
        set_training(self.module, self.config.train_mode)
        meter = _LossMeter(self.device)
        images_seen = 0
        steps_before = self.result.steps
        lr = self.schedule.lr
        start, paused = measuring.working_seconds(), measuring.paused_seconds()
        step_loss = torch.zeros((), device=self.device)
        for completes_step, images, targets in self._micro_batches():
            step_loss = step_loss + self._backward(images, targets, completes_step)
            images_seen += len(images)
            if not completes_step:
                continue
            lr = self.schedule.lr
            meter.add(self.result.steps, lr, step_loss)
            step_loss = torch.zeros((), device=self.device)
            if self._update():
                self.ended = True
                break
            measuring.pause_point()
        distributed.same_buffers(self.module)
        train_loss = distributed.mean_over_ranks(meter.mean(), self.device)
        paused = measuring.paused_seconds() - paused
        # where one rank stands still, the others wait for it within a step
        longest = distributed.max_over_ranks(paused, self.device)
        measuring.count_as_paused(longest - paused)
        seconds = measuring.working_seconds() - start
        steps = self.result.steps - steps_before
        return TrainedEpoch(
            step=self.result.steps,
            train_loss=train_loss,
            lr=lr,
            seconds=seconds,
            images_per_second=images_seen * distributed.world_size() / seconds,
            steps_per_second=steps / seconds,
        )

    def _micro_batches(self) -> Iterator[tuple[bool, Tensor, Tensor]]:
        """(whether an optimiser step follows, images, targets) of the epoch."""
        for i, (images, targets) in enumerate(self.batches.epoch(self.epoch)):
            if self.config.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            yield (i + 1) % self.accumulation == 0, images, targets

    def _backward(
        self, images: Tensor, targets: Tensor, completes_step: bool
    ) -> Tensor:
        """Add a micro-batch's gradients; its share of the step's loss, a scalar."""
        # ranks exchange gradients once a step
        later = nullcontext() if completes_step else self.parallel.without_exchange()
        dtype, enabled = self.amp or torch.float32, self.amp is not None
        with later, torch.autocast(self.device.type, dtype, enabled=enabled):
            loss = self.objective(self.model, images, targets)
            for hook in self.hooks:
                loss = hook.on_loss(loss, self.result.steps)
            loss = loss / self.accumulation
            self.scaler.scale(loss).backward()
        return loss.detach()

    def _update(self) -> bool:
        """One optimiser step with the gradients that are there; whether the fit ends here."""
        config = self.config
        self.scaler.unscale_(self.optimizer)
        for hook in self.hooks:
            hook.on_grads(self.result.steps)
        if config.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), config.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.module)
        self.result.steps += 1
        stops = [hook.on_step(self.result.steps) for hook in self.hooks]
        decided = [stop for stop in stops if stop is not None]
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.after_step(self.result.steps)
        return distributed.any_rank(any(decided), self.device) if decided else False

    def validate(self) -> dict[str, float]:
        """The metrics of the validation part; empty when there is none."""
        if self.data.size("val") == 0:
            return {}
        ema = self.config.ema
        module = (
            self.ema.module
            if self.ema is not None and ema is not None and ema.use
            else self.module
        )
        return evaluate(
            module,
            self.data,
            "val",
            self.device,
            amp=self.amp,
            in_lockstep=self.parallel.in_lockstep,
        )

    def state_dict(self) -> dict[str, Any]:
        """All that a later process needs to go on to the same bits, on rank 0. Every rank calls
        this.
        """
        return self.parallel.state_dict(self.optimizer) | {
            "epoch": self.epoch,
            "ended": self.ended,
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "hooks": [hook.state_dict() for hook in self.hooks],
            "rows": self.result.rows,
            "steps": self.result.steps,
            "seconds": self.result.seconds,
        }

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on from what `state_dict` gave on rank 0, if it gave anything; others give None."""
        small = {key: state[key] for key in state.keys() - _LARGE} if state else None
        (own,) = distributed.from_rank_0((small,))
        if own is None:
            return
        self.parallel.load_state_dict(self.optimizer, state)
        self.epoch = own["epoch"]
        self.ended = own["ended"]
        self.result = FitResult(
            own["rows"], own["steps"], own["seconds"], own["seconds"]
        )
        self.schedule.after_step(self.result.steps)
        self.schedule.load_state_dict(own["schedule"])
        self.scaler.load_state_dict(own["scaler"])
        for hook, hook_state in zip(self.hooks, own["hooks"], strict=True):
            hook.load_state_dict(hook_state)


def set_training(module: nn.Module, train_mode: bool) -> None:
    """Put a module in training mode; unless `train_mode`, with all layers in eval mode.

    Then a distilled model still gives the logits of both heads, which its root alone decides.
    """
    module.train()
    if train_mode:
        return
    module.training = bool(getattr(module, "distilled_training", False))
    for child in module.children():
        child.eval()


def fit(
    module: nn.Module,
    data: Data,
    objective: Objective,
    config: TrainConfig,
    *,
    hooks: Sequence[Hook] = (),
    seed: int,
    device: torch.device,
    workdir: Path,
    name: str = "fit",
    on_epoch: Callable[[Row], None] = lambda row: None,
    strategy: Strategy = "ddp",
) -> FitResult:
    """Train `module` in place; checkpoint into `workdir` and go on from there when called again.

    The same arguments give the same bits on a CPU with the same number of threads, whether the fit
    was killed and resumed or not: every random number comes from (seed, epoch, rank). A finished
    fit that is called again only loads its weights. In a process group every rank calls this; rank
    0 writes the checkpoints, and all ranks end with the same weights and buffers.

    Args:
        module: moved to `device` and left there, in eval mode; where it is sharded it stays where
            it is, and gets its weights when the fit ends.
        objective: the loss of a batch.
        hooks: what a method adds to the loop.
        seed: of the order of images, augmentation and dropout.
        workdir: of this fit alone.
        name: of the fit, in its rows.
        on_epoch: called with every row, on every rank; with those of earlier processes first.
        strategy: what each of several ranks holds of the model while it is trained.

    Raises:
        NonFiniteLossError: the loss is NaN or infinite.
        ValueError: batch size, warm-up or optimiser do not fit the data.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
        config.tf32
    )
    run = _Fit(module, data, objective, config, hooks, seed, device, strategy)
    checkpoints = CheckpointFolder(workdir, config.keep_checkpoints)
    writes = distributed.rank() == 0
    run.load_state_dict(checkpoints.load() if writes else None)
    for row in run.result.rows:
        on_epoch(row)
    while run.epoch < config.epochs and not run.ended:
        row = run.run_epoch(name)
        ends = run.ended or run.epoch == config.epochs
        if ends or run.epoch % config.checkpoint_every == 0:
            state = run.state_dict()
            if writes:
                checkpoints.save(run.epoch, state)
        on_epoch(row)
    run.parallel.give_back(averaged=config.ema is not None and config.ema.use)
    if config.grad_checkpointing:
        recompute_activations(module, enable=False)
    module.eval()
    distributed.barrier()
    return run.result
