"""What a method is: a validated config with `run(model, ctx) -> model`."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from compress.metrics import Metric, Value
from trainers import measuring
from trainers.config import Config, TrainConfig
from trainers.data.splits import Data, DataInfo, eval_batches
from trainers.files import write_atomic
from trainers.models.arch import Arch, ModelState
from trainers.option_types import Strategy
from trainers.seeding import derive_seed
from trainers.training import distributed
from trainers.training.evaluate import calibration_batch, laid_out
from trainers.training.fit import FitResult, Hook, Objective, fit

Phase = Literal["init", "train", "prune", "quantize"]
T = TypeVar("T")


class Stage(Config, ABC):
    """One method applied to a model. Subclasses are frozen configs; unknown keys are rejected."""

    phase: ClassVar[Phase]
    version: ClassVar[int]
    """Part of the cache key: raise it whenever the same config would give another result."""
    paper: ClassVar[str] = ""
    metrics: ClassVar[tuple[Metric, ...]] = ()
    """Everything that `run` gives to `ctx.report`, so that objectives can name it."""
    finds_dims: ClassVar[bool] = False
    """Whether the layers' dimensions are only known after `run`; `check` then returns the
    largest that they can be.
    """
    trains_sharded: ClassVar[bool] = False
    """Whether the parameters may be split over the workers while `run` trains (resources.strategy
    fsdp): nothing but the training loop reads or changes them, or what does heeds `Hook.on_begin`.
    """

    keeps_costs: ClassVar[bool] = False
    """Whether the result costs what the incoming model does, in time, bytes and operations,
    whatever the options are: weights alone change. A search for a goal then need not train what is
    known to cost too much.
    """

    never_cheaper: ClassVar[tuple[str, ...]] = ()
    """Options that, set to anything but their default, may make the result cost more and never
    less, in time, bytes and operations. A search for a goal then leaves out what has been shown to
    cost too much at the default.
    """

    continues: ClassVar[bool] = False
    """Whether `run` with more `epochs` begins as with fewer: apart from the schedule of the loop
    nothing depends on their number, and all that is trained is trained by `ctx.fit`.
    """

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        """The architecture that `run` will return for this input; nothing is computed.

        Raises:
            ValueError: this stage cannot take such a model. The message names the rule, the
                value and a remedy.
        """
        return arch

    def num_epochs(self) -> int:
        """Epochs that `run` trains at most; 0 where it does not train."""
        return int(getattr(self, "epochs", 0))

    def teachers(self) -> list[tuple[str, Path | None]]:
        """Arguments of every call of `ctx.teacher` that `run` makes, as (name, checkpoint).
        The teachers' contents enter the cache key.
        """
        return []

    @abstractmethod
    def run(self, model: ModelState, ctx: "Context") -> ModelState:
        """Apply the method.

        Between two calls of `ctx.fit` everything must be deterministic in `ctx.seed`: where
        a trial was killed, `run` is called again and finished fits are only read back.

        Args:
            model: the incoming model; must not be changed, nor share tensors with the result.
            ctx: data, training loop, teachers, seed and work folder.
        """


@dataclass
class Context:
    """What a stage may use besides its model.

    Attributes:
        data: the data set, split.
        device: where modules run.
        seed: this stage's seed; set torch's global generator from it, nothing else is random.
        workdir: private to this stage and configuration; survives a killed trial.
        find_teacher: resolves a teacher's name to a model (the pipeline gives it).
        on_epoch: receives one row an epoch.
        reported: what `report` gathered.
        restored_seconds: seconds of fits that an earlier, killed process had spent.
        strategy: what each of several workers holds of the model while it is trained.
    """

    data: Data
    device: torch.device
    seed: int
    workdir: Path
    find_teacher: Callable[[str, Path | None], ModelState]
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None
    reported: dict[str, Value] = field(default_factory=dict)
    restored_seconds: float = 0.0
    strategy: Strategy = "ddp"

    def fit(
        self,
        module: nn.Module,
        objective: Objective,
        config: TrainConfig,
        *,
        hooks: Sequence[Hook] = (),
        name: str = "fit",
    ) -> FitResult:
        """Train `module` in place to the end of `config`.

        A fit that a killed trial left unfinished goes on from its checkpoint; one that it finished
        returns at once with the same weights. `name` tells the fits of one stage apart,
        and gives each its own order of images and augmentation.
        """
        result = fit(
            module,
            self.data,
            objective,
            config,
            hooks=hooks,
            seed=derive_seed(self.seed, name),
            device=self.device,
            workdir=self.workdir / name,
            name=name,
            on_epoch=self.on_epoch,
            strategy=self.strategy,
        )
        self.restored_seconds += result.seconds_restored
        return result

    def teacher(self, name: str, checkpoint: Path | None = None) -> nn.Module:
        """A frozen teacher in eval mode on `device`; see `DistillConfig.teacher` for names.

        Raises:
            ValueError: no such teacher, or one with another number of classes than the data.
        """
        state = self.find_teacher(name, checkpoint)
        classes = state.arch.args.get("num_classes")
        if classes != self.data.info.num_classes:
            raise ValueError(
                f"teacher {name!r} has {classes} classes, the data has"
                f" {self.data.info.num_classes}"
            )
        return state.build().to(self.device).requires_grad_(False)

    @property
    def calibration_batch(self) -> int:
        """Images of a batch by which a stage looks at a model."""
        return calibration_batch(self.data.info.image_size, self.device)

    def batches(self, n: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The first `n` batches of the training part, in order, as at evaluation (no
        augmentation).
        """
        for i, batch in enumerate(
            eval_batches(self.data, "train", batch_size, self.device)
        ):
            if i >= n:
                return
            images, labels = batch
            yield laid_out(images), labels
            measuring.pause_point()

    def images(self, n: int) -> Iterator[Tensor]:
        """The first `n` images of the training part, without labels, in batches as at
        evaluation.
        """
        batch_size = self.calibration_batch
        for images, _ in self.batches(-(-n // batch_size), batch_size):
            yield images[:n]
            n -= len(images)

    def write_once(self, name: str, write: Callable[[Path], None]) -> Path:
        """A file of the work folder, which rank 0 writes where it is not there yet.

        For what would come out otherwise each time, such as a measurement: all ranks, and a
        killed trial's successor, read the same. All ranks must call it.

        Args:
            write: writes the file, whole or not at all.
        """
        file = self.workdir / name
        if distributed.rank() == 0 and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write(file)
        distributed.barrier()
        return file

    def measure_once(self, name: str, measure: Callable[[], T]) -> T:
        """What `measure` found when it was first called; kept as JSON, see `write_once`."""

        def write(file: Path) -> None:
            write_atomic(file, json.dumps(measure()).encode())

        found: T = json.loads(self.write_once(name, write).read_text())
        return found

    def report(self, **metrics: Value) -> None:
        """Put metrics of this stage into the trial's record; `Stage.metrics` describes each."""
        self.reported.update(metrics)
