"""The stage of the sweeps that `chaos.py` disturbs: it sleeps where others train.

A plugin file. The stage keeps a checkpoint after each epoch and goes on from it; what it reports
follows from its configuration alone, so that any run of the same trial must report the same.
"""

import ctypes
import time
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from compress.metrics import Metric
from compress.stage import Context, Phase, Stage
from trainers.config import TrainConfig
from trainers.files import read_json, write_atomic
from trainers.models.arch import ModelState

MEMORY_ORDER = "take-memory"
"""A file of this name in the folder `orders` makes one trial take as many MiB as it says."""

_HOLD_SECONDS = 8.0


def quality_of(lr: float, embed_dim: int) -> float:
    """The best lr is 0.3 for any width; wider is better, whatever the lr."""
    return 0.3 + embed_dim / 100 - 0.1 * (lr - 0.3) ** 2


class Doze(Stage, TrainConfig):
    """Sleep through the epochs, and report a quality that follows from `lr` and the width."""

    phase: ClassVar[Phase] = "train"
    version: ClassVar[int] = 1
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("quality", "what the configuration is worth", "fraction"),
    )

    epoch_seconds: float = Field(0.1, ge=0)
    orders: str = Field("", description="folder of orders to trials")

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        quality = quality_of(self.lr, model.arch.args["embed_dim"])
        ctx.workdir.mkdir(parents=True, exist_ok=True)
        done = (read_json(ctx.workdir / "epoch.json") or {"epoch": 0})["epoch"]
        for epoch in range(1, self.epochs + 1):
            if epoch > done:
                self._obey()
                time.sleep(self.epoch_seconds)
                write_atomic(ctx.workdir / "epoch.json", b'{"epoch": %d}' % epoch)
            ctx.on_epoch({"epoch": epoch, "accuracy": quality * (1 - 0.5**epoch)})
        ctx.report(quality=quality)
        weights = {name: value.clone() for name, value in model.weights.items()}
        return ModelState(model.arch, weights, model.meta)

    def _obey(self) -> None:
        """Take the memory that somebody ordered, for a while, unless another trial does."""
        order = Path(self.orders, MEMORY_ORDER)
        taken = order.with_suffix(".taken")
        try:
            order.rename(taken)
        except OSError:
            return
        size = int(taken.read_text()) * 2**20
        held = ctypes.create_string_buffer(size)
        ctypes.memset(held, 1, size)
        time.sleep(_HOLD_SECONDS)


STAGES = {"doze": Doze}
