"""Sizes against published figures, entropies against hand-computed ones, latency's bookkeeping."""

import math
import time
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compress.measure.model import (
    count_gmacs,
    measure_latency,
    measure_static,
    value_statistics,
)
from trainers.models.arch import ModelState
from trainers.models.make import make_arch


@pytest.mark.parametrize(
    ("name", "classes", "image_size", "params", "gmacs", "tolerance"),
    [
        # timm's results tables list 5.72 M / 1.26 G, 22.05 M / 4.61 G; attention products
        # are included
        ("vit_tiny_patch16_224", 1000, 224, 5_717_416, 1.26, 0.01),
        ("vit_small_patch16_224", 1000, 224, 22_050_664, 4.61, 0.01),
        ("resnet18", 1000, 224, 11_689_512, 1.82, 0.01),
        ("resnet50", 1000, 224, 25_557_032, 4.11, 0.01),
        ("convnext_tiny", 1000, 224, 28_589_128, 4.47, 0.01),
        ("convnext_femto", 1000, 224, 5_217_784, 0.79, 0.02),
        # He et al. 2016, table 6: 0.27 M and 0.85 M; 40.8 and 125.5 MMACs are in wide use
        ("resnet20_cifar", 10, 32, 269_722, 0.0408, 0.01),
        ("resnet56_cifar", 10, 32, 853_018, 0.1255, 0.01),
    ],
)
def test_published_sizes(
    name: str,
    classes: int,
    image_size: int,
    params: int,
    gmacs: float,
    tolerance: float,
) -> None:
    arch = make_arch(name, num_classes=classes, image_size=image_size)
    with torch.device("meta"):
        module = arch.build()
    assert sum(p.numel() for p in module.parameters()) == params
    assert count_gmacs(arch, image_size) == pytest.approx(gmacs, rel=tolerance)


def test_macs_of_resnet20_by_hand() -> None:
    macs = 3 * 16 * 9 * 32**2 + 6 * 16 * 16 * 9 * 32**2  # stem and stage 1
    macs += (
        (16 * 32 + 5 * 32 * 32) * 9 * 16**2
        + (32 * 64 + 5 * 64 * 64) * 9 * 8**2
        + 64 * 10
    )
    assert count_gmacs(
        make_arch("resnet20_cifar", num_classes=10, image_size=32), 32
    ) == pytest.approx(macs / 1e9, rel=1e-12)


def test_macs_where_a_parameter_is_a_modules_input() -> None:
    """The query of attention pooling is a parameter that goes through a layer."""
    d, n, classes = 64, 4, 10
    args = {"embed_dim": d, "depth": 1, "num_heads": 2, "patch_size": 16}
    arch = make_arch(
        "vit_base_patch16_siglip_224", num_classes=classes, image_size=32, args=args
    )
    block = n * 12 * d * d + 2 * n * n * d
    pool = d * d + n * 2 * d * d + 2 * n * d + d * d + 8 * d * d
    macs = n * 3 * 16**2 * d + block + pool + d * classes
    assert count_gmacs(arch, 32) == pytest.approx(macs / 1e9, rel=1e-12)


def test_macs_of_attention_by_hand() -> None:
    d, n, depth = 192, 197, 12
    linear = depth * n * 12 * d * d + (n - 1) * 768 * d + 1000 * d
    attention = depth * 2 * n * n * d
    assert count_gmacs(
        make_arch("vit_tiny_patch16_224", num_classes=1000, image_size=224), 224
    ) == pytest.approx((linear + attention) / 1e9, rel=1e-12)


def test_macs_follow_input_channels() -> None:
    grey = make_arch("resnet18", num_classes=10, image_size=64, args={"in_chans": 1})
    colour = make_arch("resnet18", num_classes=10, image_size=64)
    assert count_gmacs(colour, 64) - count_gmacs(grey, 64) == pytest.approx(
        2 * 64 * 49 * 32 * 32 / 1e9
    )


# ---- entropy
# ---------------------------------------------------------------------------------------------


def test_entropy_by_hand() -> None:
    statistics = value_statistics(
        [torch.tensor([0.0, -0.0, 1.0, 1.0]), torch.tensor([[0.0, 0.0], [2.0, 3.0]])]
    )
    # 0 ×4, 1 ×2, 2, 3 of 8: 4/8·1 + 2/8·2 + 2·1/8·3; without zeros 1/2, 1/4, 1/4
    assert statistics.entropy_bits == pytest.approx(1.75)
    assert statistics.entropy_nonzero_bits == pytest.approx(1.5)
    assert statistics.unique_values == 4
    assert statistics.zero_fraction == 0.5


@pytest.mark.parametrize(
    ("values", "bits"),
    [([0.0] * 9, 0.0), ([0.1] * 7, 0.0), ([], 0.0), (range(1, 1025), 10.0)],
)
def test_entropy_of_extremes(values: list[float], bits: float) -> None:
    statistics = value_statistics([torch.tensor(list(values), dtype=torch.float32)])
    assert statistics.entropy_bits == pytest.approx(bits)
    assert statistics.entropy_bits >= 0
    assert statistics.unique_values == len(set(values))


@given(
    st.lists(st.sampled_from([0.0, 0.5, -0.5, 1.0, 3.0, -7.0]), min_size=1, max_size=60)
)
def test_entropy_is_that_of_the_histogram(values: list[float]) -> None:
    def entropy(items: list[float]) -> float:
        return -sum(
            c / len(items) * math.log2(c / len(items)) for c in Counter(items).values()
        )

    statistics = value_statistics([torch.tensor(values[:7]), torch.tensor(values[7:])])
    nonzero = [v for v in values if v]
    assert statistics.entropy_bits == pytest.approx(entropy(values), abs=1e-12)
    assert statistics.entropy_nonzero_bits == pytest.approx(
        entropy(nonzero) if nonzero else 0.0, abs=1e-12
    )
    assert statistics.unique_values == len(set(values))
    assert statistics.zero_fraction == values.count(0.0) / len(values)


def test_entropy_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randint(
        -5, 5, (1000,), generator=torch.Generator().manual_seed(0)
    ).float()
    whole = value_statistics([values])
    for chunk in (1, 7, 333, 999, 1000):
        monkeypatch.setattr("compress.measure.model._CHUNK", chunk)
        assert asdict(value_statistics([values])) == pytest.approx(asdict(whole))


def test_static_measures_of_a_model() -> None:
    arch = make_arch("resnet20_cifar", num_classes=10, image_size=32)
    state = ModelState.initialised(arch, 0)
    counted = [n for n in state.weights if "conv" in n or "linear" in n]
    for index, name in enumerate(counted):
        state.weights[name].fill_(float(index % 4))
    state.weights["bn1.weight"].fill_(77.0)  # normalisation is not counted
    values = np.concatenate([state.weights[n].numpy().ravel() for n in counted])
    shares = np.unique(values, return_counts=True)[1] / values.size

    measured = measure_static(state, 32)
    assert measured["num_params"] == 269_722
    assert measured["gmacs"] == pytest.approx(0.0408, rel=0.01)
    assert measured["unique_values"] == 4
    assert measured["entropy_bits"] == pytest.approx(
        float(-(shares * np.log2(shares)).sum())
    )
    assert measured["zero_fraction"] == pytest.approx((values == 0).mean())
    buffers = sum(t.numel() for n, t in state.weights.items() if "running" in n)
    assert (
        measured["model_bytes"] == 4 * (269_722 + buffers) + 8 * 19
    )  # 19 batch counters of 8 bytes


def test_biases_are_counted() -> None:
    arch = make_arch(
        "vit_tiny_patch16_224",
        num_classes=7,
        image_size=32,
        args={"embed_dim": 24, "num_heads": 2, "depth": 1},
    )
    state = ModelState.initialised(arch, 0)
    for tensor in state.weights.values():
        tensor.fill_(1.0)
    state.weights["head.bias"].copy_(torch.arange(7) + 10.0)
    state.weights["pos_embed"].fill_(5.0)
    assert measure_static(state, 32)["unique_values"] == 8


# ---- latency
# ---------------------------------------------------------------------------------------------


class Sleeper(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.seconds, self.calls = seconds, [0]
        self.seen: list[tuple[torch.dtype, bool, bool]] = []

    def __deepcopy__(self, memo: dict) -> "Sleeper":
        twin = Sleeper(self.seconds)
        twin.calls, twin.seen = self.calls, self.seen
        return twin

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        self.calls[0] += 1
        self.seen.append((x.dtype, torch.is_inference_mode_enabled(), self.training))
        return x * self.scale


def test_latency_is_the_time_of_a_pass() -> None:
    sleeper = Sleeper(0.005).train()
    latency = measure_latency(sleeper, 8, "cpu", batch_size=2, warmup=2, repeats=9)
    assert 5 <= latency.p25_ms <= latency.median_ms <= latency.p75_ms
    assert latency.median_ms < 50
    assert (
        latency.batch_size,
        latency.image_size,
        latency.repeats,
        latency.device_name,
    ) == (2, 8, 9, "cpu")
    assert latency.num_threads == torch.get_num_threads()
    assert latency.images_per_s == pytest.approx(2000 / latency.median_ms)
    assert sleeper.calls[0] == 11
    assert set(sleeper.seen) == {(torch.float32, True, False)}
    assert sleeper.training


def test_latency_stops_in_time_but_not_before_the_least_repeats() -> None:
    sleeper = Sleeper(0.01)
    latency = measure_latency(
        sleeper, 8, "cpu", warmup=100, repeats=1000, min_repeats=3, max_seconds=0.1
    )
    assert 3 <= latency.repeats <= 11
    slow = measure_latency(
        sleeper, 8, "cpu", warmup=0, repeats=1000, min_repeats=4, max_seconds=0.0
    )
    assert slow.repeats == 4


@pytest.mark.parametrize(
    ("dtype", "channels_last"), [("float32", True), ("bfloat16", False)]
)
def test_latency_leaves_the_module_alone(dtype: str, channels_last: bool) -> None:
    state = ModelState.initialised(
        make_arch("resnet20_cifar", num_classes=10, image_size=32, args={"width": 4}), 0
    )
    module = state.build()
    latency = measure_latency(
        module,
        32,
        torch.device("cpu"),
        batch_size=2,
        dtype=dtype,
        warmup=1,
        repeats=3,
        channels_last=channels_last,
    )  # type: ignore[arg-type]
    assert (latency.dtype, latency.channels_last, latency.repeats) == (
        dtype,
        channels_last,
        3,
    )
    assert ModelState.from_module(state.arch, module).hash() == state.hash()
    assert module.conv1.weight.is_contiguous()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_latency_on_cuda(dtype: str) -> None:
    module = make_arch("resnet18", num_classes=10, image_size=64).build()
    latency = measure_latency(
        module, 64, "cuda", batch_size=8, dtype=dtype, channels_last=True
    )  # type: ignore[arg-type]
    assert 0 < latency.p25_ms <= latency.median_ms <= latency.p75_ms < 1000
    assert latency.device_name == torch.cuda.get_device_name()
    assert next(module.parameters()).device.type == "cpu"
