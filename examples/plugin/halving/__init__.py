"""One stage, one metric and one data set for compression-sweeps, in a package of their own."""

from typing import ClassVar

import numpy as np

from compress.metrics import FinalModel, Measurement, Metric
from compress.stage import Context, Phase, Stage
from trainers.config import DataConfig
from trainers.data.parts import ArrayPart, Dataset
from trainers.models.arch import ModelState


class Halve(Stage):
    """Set the smaller half of every matrix to zero."""

    phase: ClassVar[Phase] = "prune"
    version: ClassVar[int] = 1
    metrics: ClassVar = (Metric("halved", "matrices that were halved", "1"),)
    fraction: float = 0.5

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        weights = {name: value.clone() for name, value in model.weights.items()}
        matrices = [value for value in weights.values() if value.ndim > 1]
        for value in matrices:
            smaller = int(self.fraction * value.numel())
            limit = value.abs().flatten().kthvalue(max(smaller, 1)).values
            value[value.abs() <= limit] = 0
        ctx.report(halved=len(matrices))
        return ModelState(model.arch, weights, model.meta)


def largest_layer(final: FinalModel) -> dict[str, float]:
    sizes = [value.nbytes for value in final.state.weights.values()]
    return {"largest_layer_kb": max(sizes) / 1000}


def stripes(config: DataConfig) -> Dataset:
    labels = np.arange(400) % 4
    waves = np.sin(np.arange(32) * (labels[:, None] + 1) * 0.4)
    noise = np.random.default_rng(0).normal(0, 0.5, (400, 3, 32, 32))
    pixels = np.clip(128 + 60 * (waves[:, None, None] + noise), 0, 255).astype(np.uint8)
    parts = ArrayPart(pixels[:300], labels[:300]), ArrayPart(pixels[300:], labels[300:])
    return Dataset(("one", "two", "three", "four"), *parts)


LARGEST_LAYER = Measurement(
    (Metric("largest_layer_kb", "size of the largest parameter", "kB"),), largest_layer
)
