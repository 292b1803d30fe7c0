"""Round trips to the bit, and sizes against entropies computed here."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress.codec.file import coded_bytes, decode, decode_bytes, encode
from compress.codec.indices import Coder
from compress.codec.models import Plane, encode_with_contexts
from compress.codec.tensors import DTYPES
from compress.measure.model import value_statistics
from trainers.models import arch as models
from trainers.models.arch import Arch, ModelState
from trainers.models.make import make_arch

MakeToy = Callable[..., ModelState]
SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.5,
    float("inf"),
    float("-inf"),
    float("nan"),
    1e-45,
    3.4e38,
]


class Toy(nn.Module):
    """Layers and buffers of any shape."""

    def __init__(
        self, layers: Sequence[Sequence[int]], buffers: Sequence[Sequence[int]]
    ) -> None:
        super().__init__()
        for i, shape in enumerate(layers):
            layer = nn.Conv2d(1, 1, 1, bias=False)
            layer.weight = nn.Parameter(torch.empty(tuple(shape)))
            self.add_module(f"layer{i}", layer)
        for i, shape in enumerate(buffers):
            self.register_buffer(f"buffer{i}", torch.empty(tuple(shape)))


@pytest.fixture(scope="module")
def make_toy() -> Any:
    """A model of the given layers and buffers."""

    def make(layers: Sequence[Tensor], buffers: Sequence[Tensor] = ()) -> ModelState:
        args = {
            "layers": [list(t.shape) for t in layers],
            "buffers": [list(t.shape) for t in buffers],
        }
        weights = {f"layer{i}.weight": t for i, t in enumerate(layers)}
        return ModelState(
            Arch("toy", "toy", args),
            weights | {f"buffer{i}": t for i, t in enumerate(buffers)},
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.BUILDERS, "toy", lambda arch: Toy(**arch.args))
        yield make


def quantised(
    shape: Sequence[int], scale: float, seed: int, step: float = 0.01
) -> Tensor:
    """Laplace values on the grid of `step`; |v| < 2·step becomes 0."""
    values = np.random.default_rng(seed).laplace(scale=scale, size=shape)
    values = np.where(np.abs(values) < 2 * step, 0, np.round(values / step) * step)
    return torch.from_numpy(values.astype(np.float32))


def assert_same(state: ModelState, other: ModelState) -> None:
    assert other.arch == state.arch
    assert other.meta == state.meta
    assert other.weights.keys() == state.weights.keys()
    for name, tensor in state.weights.items():
        assert other.weights[name].dtype == tensor.dtype
        assert other.weights[name].shape == tensor.shape
    assert other.hash() == state.hash()


@st.composite
def layers(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 6), min_size=0, max_size=5))
    count = int(np.prod(shape, dtype=int))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    kind = draw(st.sampled_from(["few", "one", "special", "unique", "patterns"]))
    if kind == "few":
        values = rng.choice(np.array([-0.5, -0.25, 0, 0.25, 0.5], np.float32), count)
    elif kind == "one":
        values = np.full(count, draw(st.sampled_from(SPECIAL)), np.float32)
    elif kind == "special":
        values = rng.choice(np.array(SPECIAL, np.float32), count)
    elif kind == "unique":
        values = rng.standard_normal(count).astype(np.float32)
    else:  # any bits, NaN payloads among them
        values = rng.choice(rng.integers(0, 1 << 32, 4, dtype=np.uint32), count).view(
            np.float32
        )
    return torch.from_numpy(np.asarray(values)).reshape(shape)


@st.composite
def buffers(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    count = int(np.prod(shape, dtype=int))
    raw = np.random.default_rng(draw(st.integers(0, 99))).bytes(
        max(1, count) * dtype.itemsize
    )
    if dtype == torch.bool:
        return (
            torch.frombuffer(bytearray(raw), dtype=torch.uint8)[:count] > 127
        ).reshape(shape)
    return torch.frombuffer(bytearray(raw), dtype=dtype)[:count].reshape(shape)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(layers(), max_size=4),
    st.lists(buffers(), max_size=3),
    st.sampled_from(["contexts", "order0"]),
)
def test_round_trip(
    make_toy: MakeToy,
    given_layers: list[Tensor],
    given_buffers: list[Tensor],
    mode: Coder,
) -> None:
    state = make_toy(given_layers, given_buffers)
    coded = encode(state, mode=mode)
    size = coded.size
    assert size.total_bytes == len(coded.content)
    assert (
        size.header_bytes + size.codebook_bytes + size.index_bytes + size.tensor_bytes
        == size.total_bytes
    )
    assert_same(state, decode_bytes(coded.content))


@pytest.mark.parametrize("mode", ["contexts", "order0"])
@pytest.mark.parametrize(
    "shape",
    [
        (64, 48),
        (40, 30, 3, 3),
        (3, 50, 7, 7),
        (200, 1, 5, 5),
        (30, 20, 9),
        (6, 7, 3, 3, 3),
        (5000,),
        (1, 3000),
        (2, 700, 1, 1),
    ],
)
def test_round_trip_of_layers(
    make_toy: MakeToy, shape: tuple[int, ...], mode: Coder
) -> None:
    state = make_toy(
        [quantised(shape, 0.05, 0), quantised(shape, 0.5, 1), quantised((17,), 0.1, 2)]
    )
    coded = encode(state, mode=mode)
    assert coded.size.coded_weights == sum(t.numel() for t in state.weights.values())
    assert_same(state, decode_bytes(coded.content))


def test_blocks_larger_than_a_cache(make_toy: MakeToy) -> None:
    state = make_toy(
        [
            quantised((700, 900), 0.05, 0),
            quantised((300_000,), 0.05, 1),
            quantised((2, 280_000), 0.05, 2),
        ]
    )
    assert_same(state, decode_bytes(encode(state).content))


def test_many_values(make_toy: MakeToy) -> None:
    wide = torch.from_numpy(
        np.random.default_rng(0).integers(-1200, 1200, (100, 300)).astype(np.float32)
    )
    state = make_toy([wide, wide.flip(0) / 2])
    for mode in ("contexts", "order0"):
        coded = encode(state, mode=mode)
        assert coded.size.codebook_values > 2000
        assert_same(state, decode_bytes(coded.content))


@pytest.mark.parametrize("step", [0.004, 0.01, 0.03])
def test_one_histogram_is_at_the_entropy(make_toy: MakeToy, step: float) -> None:
    tensors = [
        quantised((120, 60, 3, 3), 0.03, 0, step),
        quantised((500, 500), 0.06, 1, step),
    ]
    coded = encode(make_toy(tensors), mode="order0")
    statistics = value_statistics(tensors)
    count = sum(t.numel() for t in tensors)
    assert count >= 300_000
    assert coded.size.coded_weights == count
    assert coded.size.codebook_values == statistics.unique_values
    bound = count * statistics.entropy_bits / 8
    assert (
        coded.size.index_bytes + coded.size.codebook_bytes
        <= 1.001 * bound + 4 * statistics.unique_values
    )
    assert coded.size.index_bytes <= 1.0005 * bound


def test_contexts_use_layers_channels_and_kernels(make_toy: MakeToy) -> None:
    rng = np.random.default_rng(0)
    shape = (128, 96, 3, 3)
    by_layer = [rng.laplace(scale=scale, size=shape) for scale in (0.03, 0.1, 0.3)]
    by_channel = [
        rng.laplace(size=shape)
        * rng.lognormal(-2.5, 0.5, (128, 1, 1, 1))
        * rng.lognormal(0, 0.5, (96, 1, 1))
        for _ in range(4)
    ]
    smooth = rng.laplace(size=shape) * 0.05 + rng.laplace(size=(128, 96, 1, 1)) * 0.1
    gains = []
    for arrays in (by_layer, by_channel, [smooth]):
        state = make_toy(
            [
                torch.from_numpy(
                    (np.round(a.clip(-1, 1) / 0.03) * 0.03).astype(np.float32)
                )
                for a in arrays
            ]
        )
        best, plain = encode(state).size, encode(state, mode="order0").size
        gains.append(1 - best.index_bytes / plain.index_bytes)
    # there to gain: 8.7 % by the layers' own entropies, 6.4 % by channels if their scales
    # were known
    assert gains[0] > 0.05
    assert gains[1] > 0.03
    assert gains[2] > 0.08


@pytest.mark.parametrize("count", [1, 7, 60, 500, 4000])
def test_contexts_never_lose_to_one_histogram(make_toy: MakeToy, count: int) -> None:
    noise = torch.from_numpy(
        np.random.default_rng(0).integers(0, 40, count).astype(np.float32)
    )
    state = make_toy([noise, noise.flip(0)])
    # a few bytes of slack: the length of one histogram is estimated
    assert coded_bytes(state) <= encode(state, mode="order0").size.total_bytes + 8


def test_values_of_each_tensor(make_toy: MakeToy) -> None:
    """Per-tensor quantisation: grids with other steps share their statistics."""
    tensors = [
        quantised((64, 64, 3, 3), 0.1 * step, i, step * 0.1)
        for i, step in enumerate((0.3, 0.77, 1.9, 2.3))
    ]
    state = make_toy(tensors)
    coded = encode(state)
    assert_same(state, decode_bytes(coded.content))
    one_by_one = sum(
        t.numel() * value_statistics([t]).entropy_bits / 8 for t in tensors
    )
    assert coded.size.index_bytes < 1.03 * one_by_one
    assert coded.size.index_bytes < 0.85 * encode(state, mode="order0").size.index_bytes


def test_a_real_architecture(tmp_path: Path) -> None:
    fresh = ModelState.initialised(
        make_arch("resnet20_cifar", num_classes=10, image_size=32), 0
    )
    assert encode(fresh).size.coded_weights == 0  # nothing is shared
    assert_same(fresh, decode_bytes(encode(fresh).content))
    weights = {
        name: (
            torch.round(tensor * 50) / 50
            if name.endswith(("conv1.weight", "conv2.weight", "linear.weight"))
            else tensor
        )
        for name, tensor in fresh.weights.items()
    }
    weights["bn1.weight"] = torch.full_like(
        weights["bn1.weight"], 0.02
    )  # lies on the codebook: coded with it
    state = ModelState(fresh.arch, weights, {"note": [1, None, "é", 0.1]})
    coded = encode(state, tmp_path / "deep" / "model.wfn")
    assert (tmp_path / "deep" / "model.wfn").read_bytes() == coded.content
    assert_same(state, decode(tmp_path / "deep" / "model.wfn"))
    indexed = sum(
        t.numel() for n, t in weights.items() if n.endswith("weight") and "bn" not in n
    )
    assert coded.size.coded_weights >= indexed + 16
    assert coded.size.total_bytes < 0.25 * 4 * indexed
    assert encode(state).content == coded.content


def test_the_format_stays() -> None:
    """The words of a fixed tensor: were they to change, files written before could not be
    read any more.
    """
    state, symbols = 1, []
    for _ in range(32 * 48 * 9):
        state = state * 48271 % 2147483647
        symbols.append((state >> 8) % 5 + (state >> 16) % 7)
    signed = (np.arange(11) - 5).astype(np.int16) * 1000
    words = encode_with_contexts(
        [Plane((32, 48, 3, 3), signed, np.array(symbols, np.uint8))], 11
    )
    assert (
        hashlib.sha256(words.astype("<u4").tobytes()).hexdigest()[:16]
        == "5d45e127691a24b4"
    )
