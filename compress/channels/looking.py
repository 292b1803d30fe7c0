"""What training images tell of a model that is to be cut: what each unit is worth, and what each
layer gets. Neither depends on how much is cut.
"""

from dataclasses import dataclass

from torch import nn

from compress.channels.cost import Floats
from compress.channels.importance import (
    GradientMeter,
    activation,
    magnitude,
    random_scores,
)
from compress.channels.layout import Layout
from compress.channels.options import ChannelOptions
from compress.channels.surgery import layers_that_lose
from compress.compensation import InputMoments, input_moments, moments_bytes
from compress.latest import MOST_BYTES, Latest
from compress.stage import Context
from trainers.models.arch import ModelState
from trainers.training.losses import TaskObjective

_DECIDING = (
    "batch_size",
    "compensate",
    "compensate_images",
    "importance",
    "importance_images",
    "label_smoothing",
)
"""Options that decide what is found."""


@dataclass(frozen=True)
class Looked:
    """What was found.

    Attributes:
        scores: (units,) importance.
        inputs: of all layers that may lose some; None where they are not kept, or not asked for.
    """

    scores: Floats
    inputs: InputMoments | None


LATEST = Latest[Looked](
    lambda found: 0 if found.inputs is None else found.inputs.nbytes
)


def looked_at(
    model: ModelState, layout: Layout, options: ChannelOptions, ctx: Context
) -> Looked:
    """Importance by `options.importance`, and moments where a cut is compensated."""

    def found() -> Looked:
        module = model.build().to(ctx.device)
        inputs = None
        layers = layers_that_lose(module, layout)
        if options.compensate and moments_bytes(module, layers) <= MOST_BYTES:
            inputs = inputs_of(module, layers, options, ctx)
        return Looked(scores_of(module, layout, options, ctx), inputs)

    deciding = {name: getattr(options, name) for name in _DECIDING}
    if options.importance == "random":
        deciding["seed"] = ctx.seed
    return LATEST.of(model, ctx, deciding, found)


def inputs_of(
    module: nn.Module, layers: list[str], options: ChannelOptions, ctx: Context
) -> InputMoments:
    """Moments by which cuts of these layers are compensated."""
    return input_moments(module, layers, ctx.images(options.compensate_images))


def scores_of(
    module: nn.Module, layout: Layout, options: ChannelOptions, ctx: Context
) -> Floats:
    """(units,) importance of all units, of a model that stands still."""
    module.eval()
    match options.importance:
        case "random":
            return random_scores(layout, ctx.seed)
        case "magnitude":
            return magnitude(module, layout)
        case "activation":
            return activation(module, layout, ctx.images(options.importance_images))
    meter = GradientMeter(module, layout, options.importance)
    objective = TaskObjective(options.label_smoothing)
    size = min(options.batch_size, options.importance_images, ctx.calibration_batch)
    for images, labels in ctx.batches(-(-options.importance_images // size), size):
        # LeViT, EfficientFormer and TinyViT keep biases between passes in eval mode, and with
        # them the graph of the pass before; in train mode they forget them
        module.train()
        module.eval()
        module.zero_grad(set_to_none=True)
        objective(module, images, labels).backward()
        meter.add()
    return meter.close()
