"""Sizes that a forward pass writes down in slices, splits and pads, and what a cut makes of them.

The oracle is the whole model, in whose first convolution the channels are set to 0 by hand. The
sizes that the cut model should have are written down beside each way of writing the forward pass.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.channels.decide import layout_of
from compress.channels.identities import Identities
from compress.channels.sizes import Attribute, Sized, SizedSum, blocks, flat
from compress.channels.surgery import cut_state
from trainers.models.arch import BUILDERS, Arch, ModelState

IMAGE = 8
Parts = Callable[["Branches", Tensor], Any]


class Branches(nn.Module):
    """A convolution of 16 channels, two parts of which go into a branch each.

    Args:
        parts: the two parts of the convolution's output.
        inputs: channels of each part.
    """

    def __init__(self, parts: Parts, inputs: tuple[int, int]) -> None:
        super().__init__()
        self.parts = parts
        self.n, self.rest = inputs
        self.half_width = 8
        self.width = 16
        self.sizes = list(inputs)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.left = nn.Conv2d(inputs[0], 5, 1)
        self.right = nn.Conv2d(inputs[1], 5, 1)
        self.head = nn.Linear(10, 4)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.stem(images))
        left, right = self.parts(self, x)
        found = torch.cat([self.left(left), self.right(right)], 1)
        return self.head(found.square().mean((2, 3)))


def written(m: Branches, x: Tensor) -> tuple[Tensor, Tensor]:
    """Writes into a part of a tensor."""
    x = x.clone()
    x[:, : m.n] = 2 * x[:, : m.n]
    return x[:, : m.n], x[:, m.n :]


# the parts, and what becomes of attributes once channels 1, 5 and 9 of 16 are removed
BY_ATTRIBUTE: dict[str, tuple[Parts, dict[str, Any]]] = {
    "slice": (lambda m, x: (x[:, : m.n], x[:, m.n :]), {"n": 4}),
    "both_bounds": (
        lambda m, x: (x[:, 0 : m.n], x[:, m.n : m.width]),
        {"n": 4, "width": 13},
    ),
    "sum": (
        lambda m, x: (x[:, : m.n], x[:, m.n : m.n + m.rest]),
        {"n": 4, "rest": 9},
    ),
    "ellipsis": (lambda m, x: (x[..., : m.n, :, :], x[:, m.n :, ...]), {"n": 4}),
    "new_axis": (lambda m, x: (x[:, None, : m.n].squeeze(1), x[:, m.n :]), {"n": 4}),
    "from_the_end": (lambda m, x: (x[:, : -m.rest], x[:, -m.rest :]), {"rest": 9}),
    "difference": (
        lambda m, x: (x[:, : m.width - m.rest], x[:, m.n :]),
        {"n": 4, "rest": 9, "width": 13},
    ),
    "difference_from_the_tensor": (
        lambda m, x: (x[:, : x.shape[1] - m.rest], x[:, -m.rest :]),
        {"rest": 9},
    ),
    "written": (written, {"n": 4}),
    "narrow": (
        lambda m, x: (x.narrow(1, 0, m.n), torch.narrow(x, 1, m.n, m.rest)),
        {"n": 4, "rest": 9},
    ),
    "narrow_from_the_end": (
        lambda m, x: (x.narrow(1, 0, m.n), x.narrow(1, -m.rest, m.rest)),
        {"n": 4, "rest": 9},
    ),
    "split": (
        lambda m, x: torch.split(x, [m.n, m.rest], 1),
        {"n": 4, "rest": 9},
    ),
    "split_by_a_list": (lambda m, x: x.split(m.sizes, dim=1), {"sizes": [4, 9]}),
    "split_by_a_difference": (
        lambda m, x: torch.split(x, [m.n, m.width - m.n], dim=1),
        {"n": 4, "width": 13},
    ),
    "split_at_places": (lambda m, x: x.tensor_split([m.n], dim=1), {"n": 4}),
    "a_layers_size": (
        lambda m, x: (x[:, : m.left.in_channels], x[:, -m.right.in_channels :]),
        {},
    ),
}
# halves of the 16 channels, and what becomes of attributes without channels 3, 6, 11 and 14
HALVES: dict[str, tuple[Parts, dict[str, Any]]] = {
    "share": (
        lambda m, x: (x[:, : x.shape[1] // 2], x[:, x.size(1) // 2 :]),
        {},
    ),
    "chunk": (lambda m, x: x.chunk(2, dim=1), {}),
    "tensor_split": (lambda m, x: torch.tensor_split(x, 2, 1), {}),
    "unflatten": (lambda m, x: x.unflatten(1, (2, -1)).unbind(1), {}),
    "unflatten_by_an_attribute": (
        lambda m, x: x.unflatten(1, (2, m.half_width)).unbind(1),
        {"half_width": 6},
    ),
    "reshape_by_an_attribute": (
        lambda m, x: x.reshape((len(x), 2, m.half_width, *x.shape[2:])).unbind(1),
        {"half_width": 6},
    ),
    "multiples": (
        lambda m, x: (x[:, : m.half_width], x[:, m.half_width : 2 * m.half_width]),
        {"half_width": 6},
    ),
    "blocks": (
        lambda m, x: [
            x[:, i * m.half_width : (i + 1) * m.half_width] for i in range(2)
        ],
        {"half_width": 6},
    ),
}
# the parts, and which of the 16 channels may go: a number in the pass is one in the cut model too
BY_NUMBER: dict[str, tuple[Parts, list[int]]] = {
    "slice": (lambda m, x: (x[:, :6], x[:, 6:]), [*range(6, 16)]),
    "from_the_end": (lambda m, x: (x[:, :-10], x[:, -10:]), [*range(6)]),
    "to_the_end": (lambda m, x: (x[:, :6], x[:, 6:16]), [*range(6, 16)]),
    "number_computed": (
        lambda m, x: (x[:, : int(0.4 * m.width)], x[:, m.n :]),
        [*range(6, 16)],
    ),
    "steps": (lambda m, x: (x[:, :12:2], x[:, 6:]), []),
    "narrow": (lambda m, x: (x.narrow(1, 0, 6), x[:, 6:]), [*range(6, 16)]),
    "narrow_to_the_end": (lambda m, x: (x[:, :6], x.narrow(1, 6, 10)), []),
    "split": (lambda m, x: torch.split(x, [6, 10], 1), []),
    "reshape": (
        lambda m, x: (x[:, :6], x.reshape(len(x), 8, 2, 8, 8)[:, 3:].flatten(1, 2)),
        [],
    ),
    "a_factor": (lambda m, x: (x[:, : m.n] / m.n, x[:, m.n :]), [*range(6, 16)]),
    "a_size_of_another": (
        lambda m, x: (
            x[:, : m.n] + torch.ones(m.n, 1, 1, device=x.device),
            x[:, m.n :],
        ),
        [*range(6, 16)],
    ),
    "a_constant_axis": (
        lambda m, x: (x[:, : m.n, : m.n], x[:, m.n :, : m.n]),
        [*range(6, 16)],
    ),
}

# half of a width that is written down loses what it loses; the rest is free
ODD: dict[str, tuple[Parts, dict[str, Any]]] = {
    "half_of_an_attribute": (
        lambda m, x: (x[:, : m.width // 2][:, : m.n], x[:, m.n :]),
        {"width": 12, "n": 4},
    ),
    "all_of_the_axis": (
        lambda m, x: (x[:, : m.width][:, : m.n], x[:, m.n :]),
        {"width": 13, "n": 4},
    ),
    "further_than_the_axis": (
        lambda m, x: (x[:, : m.n], x[:, m.n : m.width + m.half_width]),
        {"n": 4},
    ),
}


class Padded(nn.Module):
    """A sum of 24 channels and of 16, to which 8 of zeros are added as `amount` says."""

    def __init__(self, amount: Callable[["Padded", Tensor, Tensor], int]) -> None:
        super().__init__()
        self.amount = amount
        self.narrow, self.wide, self.more = 16, 24, 8
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.other = nn.Conv2d(3, 24, 3, padding=1)
        self.head = nn.Linear(24, 4)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, images: Tensor) -> Tensor:
        x, wide = self.stem(images), self.other(images)
        padded = F.pad(x, (0, 0, 0, 0, 0, self.amount(self, x, wide)))
        return self.head(F.relu(wide + padded).mean((2, 3)))


# what becomes of attributes without channels 1, 5 and 20 of 24
PADS: dict[str, tuple[Any, dict[str, int]]] = {
    "attribute": (lambda m, x, wide: m.more, {"more": 7}),
    "difference": (
        lambda m, x, wide: m.wide - m.narrow,
        {"wide": 21, "narrow": 14},
    ),
    "difference_of_tensors": (lambda m, x, wide: wide.shape[1] - x.shape[1], {}),
}


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models of this file as a builder of architectures."""

    def build(arch: Arch) -> nn.Module:
        table, kind = arch.args["table"], arch.args["kind"]
        if table == "pads":
            return Padded(PADS[kind][0])
        if table == "halves":
            return Branches(HALVES[kind][0], (8, 8))
        cases = {"attribute": BY_ATTRIBUTE, "number": BY_NUMBER, "odd": ODD}[table]
        return Branches(cases[kind][0], (6, 10))

    monkeypatch.setitem(BUILDERS, "little", build)


def model_of(table: str, kind: str) -> ModelState:
    arch = Arch("little", "branches", {"table": table, "kind": kind})
    return ModelState.initialised(arch, 0)


def cut_without(
    model: ModelState, channels: dict[str, list[int]]
) -> tuple[nn.Module, float]:
    """The model without these outputs of its layers, and how far its logits are from those of
    the whole model in which they are 0.
    """
    layout = layout_of(model.arch, IMAGE)
    keep = np.ones(layout.num_units, bool)
    whole = model.build()
    for path, removed in channels.items():
        units = layout.rows[f"{path}.weight", 0][removed]
        assert (units.max(1) >= 0).all()
        keep[units[units >= 0]] = False
        layer = whole.get_submodule(path)
        with torch.no_grad():
            layer.weight[removed] = 0  # type: ignore[index]
            layer.bias[removed] = 0  # type: ignore[index]
    images = torch.randn(2, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(0))
    small = cut_state(model, layout, keep).build()
    with torch.no_grad():
        expected, found = whole(images), small(images)
    return small, float((found - expected).abs().max() / expected.abs().max())


def attributes(module: nn.Module) -> dict[str, Any]:
    names = ("n", "rest", "half_width", "width", "sizes", "narrow", "wide", "more")
    return {name: vars(module)[name] for name in names if name in vars(module)}


@pytest.mark.parametrize("kind", BY_ATTRIBUTE)
def test_parts_whose_sizes_are_attributes_are_cut(kind: str) -> None:
    model = model_of("attribute", kind)
    small, far = cut_without(model, {"stem": [1, 5, 9]})
    assert far < 1e-5
    weights = {name: tuple(w.shape) for name, w in small.state_dict().items()}
    assert weights["stem.weight"] == (13, 3, 3, 3)
    assert weights["left.weight"] == (5, 4, 1, 1)
    assert weights["right.weight"] == (5, 9, 1, 1)
    expected = attributes(model.build()) | BY_ATTRIBUTE[kind][1]
    assert attributes(small) == expected


@pytest.mark.parametrize("kind", HALVES)
def test_halves_stay_halves(kind: str) -> None:
    model = model_of("halves", kind)
    rows = layout_of(model.arch, IMAGE).rows["stem.weight", 0]
    assert (rows >= 0).all()
    assert (rows[:8] == rows[8:]).all()
    small, far = cut_without(model, {"stem": [3, 6, 11, 14]})
    assert far < 1e-5
    weights = {name: tuple(w.shape) for name, w in small.state_dict().items()}
    assert weights["stem.weight"] == (12, 3, 3, 3)
    assert weights["left.weight"] == weights["right.weight"] == (5, 6, 1, 1)
    assert attributes(small) == attributes(model.build()) | HALVES[kind][1]


@pytest.mark.parametrize("kind", BY_NUMBER)
def test_what_is_before_a_number_stays(kind: str) -> None:
    model = model_of("number", kind)
    removable = BY_NUMBER[kind][1]
    layout = layout_of(model.arch, IMAGE)
    rows = layout.rows.get(("stem.weight", 0), np.full((16, 1), -1))
    assert np.flatnonzero((rows >= 0).any(1)).tolist() == removable
    small, far = cut_without(model, {"stem": removable[1:4]} if removable else {})
    assert far < 1e-5
    assert small.get_submodule("stem").out_channels == 16 - len(removable[1:4])
    assert attributes(small) == attributes(model.build())


@pytest.mark.parametrize("kind", PADS)
def test_padded_channels_are_cut(kind: str) -> None:
    model = model_of("pads", kind)
    layout = layout_of(model.arch, IMAGE)
    assert (layout.rows["other.weight", 0] >= 0).all()
    small, far = cut_without(model, {"other": [1, 5, 20], "stem": [1, 5]})
    assert far < 1e-5
    assert small.get_submodule("stem").out_channels == 14
    assert small.get_submodule("other").out_channels == 21
    assert attributes(small) == attributes(model.build()) | PADS[kind][1]


@pytest.mark.parametrize("kind", ODD)
def test_other_bounds(kind: str) -> None:
    model = model_of("odd", kind)
    small, far = cut_without(model, {"stem": [1, 5, 9]})
    assert far < 1e-5
    assert attributes(small) == attributes(model.build()) | ODD[kind][1]


def test_sums_of_sizes() -> None:
    ids = Identities()
    n, rest = (Sized(6, Attribute("", "n")), Sized(10, Attribute("", "rest")))
    channels = Sized(16, rows=ids.fresh(16))
    assert n + rest == 16 == n - -rest
    assert (n + rest).terms == (n, rest)  # type: ignore[attr-defined]
    assert type(n + rest - n) is Sized
    assert type(channels - channels) is int
    assert list(blocks(3 * n)) == [6, 6, 6]
    assert list(blocks(channels - 2 * n)) == [16, -6, -6]
    assert list(blocks(n + 1)) == [6, 1]
    assert n + 0.5 == 6.5
    assert (n + rest) // 3 == 5
    assert 2 * (n + rest) == 32
    assert 20 // n == 3
    assert isinstance(-(n + rest), SizedSum)
    assert list(flat([1, (2, slice(n, None, 3))])) == [1, 2, 6, None, 3]
