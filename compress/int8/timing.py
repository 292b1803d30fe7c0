"""A model in integers whose latency is wanted, and whose accuracy is not: places of quantisers as
the stage chooses them, ranges from one batch.
"""

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from compress.int8.calibrate import activation_step, observe, weight_steps
from compress.int8.fold import fold_norms
from compress.int8.nncf_internals import choose
from trainers.models.quantised import QuantisedModel, QuantiserPlan, round_to_steps

_BITS = 8


@torch.no_grad()
def in_integers(module: nn.Module, inputs: Tensor) -> QuantisedModel:
    """A copy of a module in eval mode with 8-bit weights and activations.

    Args:
        inputs: what it takes (B, ...); the ranges of activations are those that it gives.
    """
    module = copy.deepcopy(module).eval()
    with torch.random.fork_rng(devices=[]):
        fold_norms(module, inputs[:2])
        choice = choose(module, [inputs], None)
    open_plan = QuantiserPlan(
        points=tuple(
            (place, index)
            for index, group in enumerate(choice.groups)
            for place in group
        ),
        signed=(True,) * len(choice.groups),
    )
    seen = observe(QuantisedModel(copy.deepcopy(module), open_plan), [inputs])
    steps = [activation_step(each, "minmax", 100.0, symmetric=True) for each in seen]
    plan = replace(
        open_plan,
        signed=tuple(zero.dtype == torch.int8 for _, zero in steps),
        weights={f"{layer}.weight": _BITS for layer in choice.weights},
    )
    weights = {name: module.get_parameter(name).detach() for name in plan.weights}
    model = QuantisedModel(module, plan)
    for index, (step, zero) in enumerate(steps):
        model.get_buffer(f"step_{index}").copy_(step)
        model.get_buffer(f"zero_{index}").copy_(zero)
    for index, (name, weight) in enumerate(weights.items()):
        channel_steps = weight_steps(weight, _BITS, "minmax")
        model.get_buffer(f"weight_steps_{index}").copy_(channel_steps)
        integers = round_to_steps(weight, channel_steps, _BITS).to(torch.int8)
        model.inner.get_parameter(name).copy_(integers)
    return model.eval()
