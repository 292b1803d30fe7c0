"""Measured latency of the layers of a model, in the runtime in which it will be deployed.

Legend
    layer       a convolution or linear layer, with its bias
    o, i        shares of its outputs and inputs that stay
    T(o, i)     milliseconds that it adds to a pass of a batch, measured at `SHARES` of both,
                bilinear in between; below the smallest share it stays as it is

In a convolution with groups both shares are that of the groups. What is no such layer (attention's
products) counts by its multiply-accumulates, at the mean speed of the layers. The figures are
there to be compared with each other: a runtime fuses layers and does more than layers, so that
their sum is not the model's latency. `compress.channels.decide` measures whole models to meet a
target.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from compress.channels.cost import Axes, Floats, Terms
from compress.channels.layout import Layout, Rows
from compress.measure.in_turns import layer_times
from compress.measure.layer_shape import LayerShape
from compress.measure.options import RuntimeOptions

SHARES = (0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Layer:
    """A layer of a model, and rows of its outputs and inputs; None where they cannot change."""

    path: str
    shape: LayerShape
    outputs: Rows | None
    inputs: Rows | None


def layers(
    module: nn.Module, layout: Layout, image_shape: Sequence[int]
) -> list[Layer]:
    """Convolutions and linear layers in the order of a pass (C, H, W), on the meta device."""
    found: dict[str, Layer] = {}
    handles = []

    def watch(path: str) -> Callable[..., None]:
        def note(layer: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            outputs = layout.rows.get((f"{path}.weight", 0))
            reads = layout.rows.get((f"{path}.weight", 1))
            vary = (outputs is not None, reads is not None)
            shape = _shape_of(layer, tuple(inputs[0].shape), vary)
            found[path] = Layer(path, shape, outputs, reads)

        return note

    for path, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            handles.append(layer.register_forward_pre_hook(watch(path)))
    with torch.no_grad():
        module(torch.empty(1, *image_shape, device=next(module.parameters()).device))
    for handle in handles:
        handle.remove()
    return list(found.values())


def _shape_of(
    layer: Any, shape: tuple[int, ...], vary: tuple[bool, bool]
) -> LayerShape:
    if isinstance(layer, nn.Linear):
        return LayerShape(
            "linear", layer.out_features, layer.in_features, shape[1:-1], vary=vary
        )
    padding = layer.padding
    return LayerShape(
        "conv",
        layer.out_channels,
        layer.in_channels,
        shape[2:],
        tuple(layer.kernel_size),
        tuple(layer.stride),
        padding if isinstance(padding, str) else tuple(padding),
        tuple(layer.dilation),
        layer.groups,
        vary,
    )


def table(shape: LayerShape, options: RuntimeOptions, device: str) -> list[list[float]]:
    """T at `SHARES` of outputs and inputs, ms a batch; measured once in a process, whose trials
    share it.
    """
    return _measured(shape, options.model_dump_json(), device)


def _grid(shape: LayerShape) -> list[tuple[int, int, int, int]]:
    """(place of o, place of i, outputs, inputs) of what is measured."""
    found = []
    for a, o in enumerate(SHARES):
        for b, i in enumerate(SHARES):
            if shape.groups > 1:
                if a != b:
                    continue
                groups = max(1, round(shape.groups * o))
                each = (shape.outputs // shape.groups, shape.inputs // shape.groups)
                found.append((a, b, groups * each[0], groups * each[1]))
                continue
            if (o < 1 and not shape.vary[0]) or (i < 1 and not shape.vary[1]):
                continue
            sizes = (shape.outputs, shape.inputs)
            outputs, inputs = (
                max(1, round(n * s)) for n, s in zip(sizes, (o, i), strict=True)
            )
            found.append((a, b, outputs, inputs))
    return found


@lru_cache(maxsize=1024)
def _measured(shape: LayerShape, options_json: str, device: str) -> list[list[float]]:
    options = RuntimeOptions.model_validate_json(options_json)
    grid = _grid(shape)
    cuts = [
        (
            shape.module(outputs, inputs),
            torch.zeros(shape.input_shape(options.batch_size, inputs)),
        )
        for _, _, outputs, inputs in grid
    ]
    times = layer_times(cuts, options, torch.device(device))
    found = np.full((len(SHARES), len(SHARES)), np.nan)
    for (a, b, _, _), time_ms in zip(grid, times, strict=True):
        found[a, b] = time_ms
    if shape.groups > 1:
        found = np.repeat(np.diag(found)[:, None], len(SHARES), 1)
    for axis in (0, 1):  # where a share cannot change, all have the time of the whole
        last = np.take(found, [-1], axis=axis)
        found = np.where(np.isnan(found), last, found)
    # more channels cost no less: what is measured otherwise is noise
    found = np.maximum.accumulate(np.maximum.accumulate(found, 0), 1)
    return found.tolist()


class MeasuredCost:
    """Σ T over the layers of a model, ms a batch. It is a `compress.channels.cost.Cost`."""

    def __init__(
        self,
        layout: Layout,
        found: Sequence[Layer],
        tables: Sequence[Any] | np.ndarray,
        others: Terms,
        others_ms: float,
    ) -> None:
        """Args:
        others: multiply-accumulates of what is no layer; others_ms: what one takes.
        """
        self._tables = np.array(tables, float)
        self._others, self._others_ms = others, others_ms
        rows: list[Rows] = []
        self._places = np.zeros((2, len(found)), int)
        whole = np.full((1, 1), -1)
        for i, layer in enumerate(found):
            grouped = layer.shape.groups > 1
            for j, each in enumerate((layer.outputs, layer.inputs)):
                used = layer.outputs if grouped else each
                self._places[j, i] = len(rows)
                rows.append(whole if used is None else used)
        self._axes = Axes(layout, rows)
        self._sizes = np.array([len(each) for each in rows], float)

    def of(self, shares: Floats) -> Floats:
        """Milliseconds (B,) for shares (B, G)."""
        kept = self._axes.counts(shares) / self._sizes
        points = np.array(SHARES)
        low: list[Any] = []
        part: list[Any] = []
        for j in (0, 1):
            x = np.clip(kept[:, self._places[j]], points[0], points[-1])
            at = np.clip(
                np.searchsorted(points, x, side="right") - 1, 0, len(points) - 2
            )
            low.append(at)
            part.append((x - points[at]) / (points[at + 1] - points[at]))
        each = np.arange(len(self._tables))
        total = np.zeros(low[0].shape)
        for a in (0, 1):
            for b in (0, 1):
                weight = (part[0] if a else 1 - part[0]) * (
                    part[1] if b else 1 - part[1]
                )
                total += weight * self._tables[each, low[0] + a, low[1] + b]
        # a layer of which nothing is left is not there
        there = kept[:, self._places].min(1) > 1e-6
        return (total * there).sum(1) + self._others_ms * self._others.of(shares)


def measured_cost(
    layout: Layout, found: Sequence[Layer], measured: Mapping[str, list[list[float]]]
) -> MeasuredCost:
    """The cost of a model by what its layers take.

    Args:
        found: the layers of the whole model.
        measured: path → T of each of them, see `table`.
    """
    tables = np.array([measured[each.path] for each in found], float)
    weights = {f"{layer.path}.weight" for layer in found}
    macs_of = [
        each.times * float(np.prod([len(rows) for rows in each.rows]))
        for each in layout.products
    ]
    inside = [each.weight in weights for each in layout.products]
    layer_macs = sum(n for n, own in zip(macs_of, inside, strict=True) if own)
    layer_ms = float(tables[:, -1, -1].sum())
    others = [p for p, own in zip(layout.products, inside, strict=True) if not own]
    return MeasuredCost(
        layout,
        found,
        tables,
        Terms(layout, [(each.times, each.rows) for each in others]),
        layer_ms / max(layer_macs, 1.0),
    )
