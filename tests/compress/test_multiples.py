"""How many channels a runtime takes at a time, by runtimes that count instead of taking time."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import compress.measure.multiples as multiples
from compress.channels.decide import layout_of
from compress.channels.options import ChannelOptions
from compress.measure.layer_shape import LayerShape
from compress.measure.multiples import (
    LOSSES,
    chunk_size,
    liked_multiple,
    nearest_staircase,
)
from compress.measure.options import RuntimeOptions
from trainers.models.make import make_arch

OPTIONS = RuntimeOptions(runtime="onnxruntime", batch_size=1, threads=1)


def layer(outputs: int, inputs: int, **changes: Any) -> LayerShape:
    shape = LayerShape("conv", outputs, inputs, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1))
    return replace(shape, **changes)


class Vectors:
    """A runtime that computes so many outputs and inputs at a time, with noise."""

    def __init__(self, outputs: int, inputs: int, noise: float = 0.0) -> None:
        self.each, self.noise = (outputs, inputs), noise
        self.rng = np.random.default_rng(outputs * 100 + inputs)
        self.seen: list[tuple[int, int]] = []

    def layer_times(self, cuts: Any, *_: Any) -> Any:
        sizes = [tuple(module.weight.shape[:2]) for module, _ in cuts]
        self.seen += sizes
        steps = [
            np.prod(
                [-(-n // each) * each for n, each in zip(size, self.each, strict=True)]
            )
            for size in sizes
        ]
        return np.array(steps) * (1 + self.noise * self.rng.normal(size=len(sizes)))


@pytest.mark.parametrize("each", [8, 16, 32])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_what_the_runtime_takes_at_a_time(
    each: int, noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Vectors(each, each, noise)
    monkeypatch.setattr(multiples, "layer_times", runtime.layer_times)
    monkeypatch.setattr(multiples, "_LIKED", {})
    layers = [layer(112, 96), layer(64, 128), layer(256, 64)]
    assert liked_multiple(layers, OPTIONS, "cpu") == each
    # a layer's sizes start at a multiple of 32, and lose 1 to 32 of one side
    assert (96, 96) in runtime.seen
    assert (95, 96) in runtime.seen
    assert (96, 64) in runtime.seen
    count = len(runtime.seen)
    assert liked_multiple(layers, OPTIONS, "cpu") == each
    assert len(runtime.seen) == count  # kept in the process


def test_a_runtime_without_steps_likes_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiples, "layer_times", Vectors(1, 1).layer_times)
    monkeypatch.setattr(multiples, "_LIKED", {})
    assert liked_multiple([layer(128, 128)], OPTIONS, "cpu") == 1


@pytest.mark.parametrize(
    "narrow",
    [
        layer(63, 63),
        layer(128, 1, groups=128),
        layer(128, 128, vary=(False, False)),
    ],
)
def test_layers_that_tell_nothing(
    narrow: LayerShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise AssertionError("nothing is there to be measured")

    monkeypatch.setattr(multiples, "layer_times", fail)
    monkeypatch.setattr(multiples, "_LIKED", {})
    assert liked_multiple([narrow], OPTIONS, "cpu") is None


def test_penalties_for_odd_sizes_are_no_savings() -> None:
    """As measured in OpenVINO: 1 to 8 of 96 outputs less take longer, 16 less are a sixth."""
    times = np.array([152.8, 164.4, 175.2, 164.4, 153.1, 127.0, 99.5])
    assert nearest_staircase(times[0] - times) == 16
    assert nearest_staircase(np.zeros(len(LOSSES))) is None
    assert nearest_staircase(-np.array(LOSSES, float)) is None


def test_groups_take_as_many_units_as_make_the_channels() -> None:
    """Of a ViT of 4 heads of 32, 256 hidden units: a unit of heads is 32 channels wide."""
    arch = make_arch(
        "vit_tiny_patch16_224",
        num_classes=10,
        image_size=32,
        args={"embed_dim": 128, "depth": 1, "num_heads": 4, "mlp_ratio": 2.0},
    )
    layout = layout_of(arch, 32)
    rules = ChannelOptions().rules(layout, liked=16)
    found = {
        group.name: (len(group.units), rule.chunk)
        for group, rule in zip(layout.groups, rules, strict=True)
    }
    hidden = next(v for k, v in found.items() if "fc1" in k)
    assert hidden == (256, 16)
    heads = [v for v in found.values() if v[0] == 4]
    assert heads == [(4, 1)]
    assert all(chunk <= max(1, size // 2) for size, chunk in found.values())


def test_small_groups_halve() -> None:
    """A group of 16 channels cannot lose 16; one of 40 first loses what is beyond 32."""
    arch = make_arch("resnet20_cifar", num_classes=10, image_size=32)
    layout = layout_of(arch, 32)
    rules = ChannelOptions(least=0.0).rules(layout, liked=16)
    sizes = {
        (len(group.units), rule.chunk, rule.least)
        for group, rule in zip(layout.groups, rules, strict=True)
    }
    assert sizes <= {(16, 8, 8), (32, 16, 16), (64, 16, 16)}
    assert len(sizes) == 3
    default = ChannelOptions(least=0.0).rules(layout)
    assert {rule.chunk for rule in default} == {2, 4, 8}


def test_the_layer_that_computes_most_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = Vectors(16, 16)
    monkeypatch.setattr(multiples, "layer_times", runtime.layer_times)
    monkeypatch.setattr(multiples, "_LIKED", {})
    sizes = [(64, 64), (160, 96), (96, 192), (160, 128), (1024, 1024)]
    layers = [layer(*each) for each in sizes[:4]]
    layers.append(layer(*sizes[4], places=(1, 1), kernel=(1, 1)))
    liked_multiple(layers, OPTIONS, "cpu")
    products = [64 * o * i * 9 for o, i in sizes[:4]] + [1024**2]
    largest = sorted(zip(products, sizes, strict=True))[-3:]
    assert {size for _, size in largest} <= set(runtime.seen)
    assert (64, 64) not in runtime.seen


def test_two_chunks_are_in_every_group() -> None:
    found = [chunk_size(size, 16) for size in (1, 2, 3, 15, 16, 31, 32, 40, 1000)]
    assert found == [1, 1, 1, 4, 8, 8, 16, 16, 16]
    assert chunk_size(1000, 1) == 1
    assert chunk_size(1000, 0) == 1
