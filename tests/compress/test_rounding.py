"""Layer-wise rounding: greedy by explicit least squares, small cases by trying everything."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress import rounding
from compress.compensation import input_rows
from compress.quant_baselines import KmeansQuant, UniformQuant
from compress.rounding import (
    GroupedMoments,
    nearest,
    round_layer,
    round_module,
    round_rows,
)
from trainers.hashing import values_to_hash
from trainers.models.resnet_cifar import resnet_cifar

GRID = torch.tensor([-1.0, -0.4, 0.0, 0.3, 1.1], dtype=torch.float64)


def on_grid(values: Tensor, outputs: Tensor) -> Tensor:
    return nearest(values, GRID)


def mixed(count: int, size: int, seed: int = 0) -> Tensor:
    """Vectors (count, size) whose entries depend on each other, with a mean."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator)
    x = torch.randn(count, size, generator=generator) @ mixing
    return x + torch.randn(size, generator=generator)


def errors(weight: Tensor, rounded: Tensor, h: Tensor) -> Tensor:
    difference = (weight - rounded).double()
    return torch.einsum("oi,ij,oj->o", difference, h, difference)


def damped(second: Tensor, damping: float) -> Tensor:
    return second + damping * second.diagonal().mean() * torch.eye(len(second))


def by_least_squares(w: Tensor, h: Tensor) -> Tensor:
    """One row, weight by weight, largest h_jj first; the rest are solved for anew each time."""
    order = h.diagonal().argsort(descending=True, stable=True).tolist()
    q = torch.zeros_like(w)
    for place, j in enumerate(order):
        fixed, free = order[:place], order[place:]
        pull = (w[fixed] - q[fixed]) @ h[fixed][:, free]
        best = w[free] + torch.linalg.solve(h[free][:, free], pull)
        q[j] = GRID[(best[0] - GRID).abs().argmin()]
    return q


@pytest.mark.parametrize("size", [3, 7, 20])
def test_greedy_is_least_squares_after_each_weight(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        rounding, "_BLOCK", 4
    )  # errors are handed on between blocks too
    x = mixed(200, size).double()
    w = torch.randn(6, size, generator=torch.Generator().manual_seed(1)).double()
    second = x.T @ x / len(x)
    h = damped(second, 0.01)
    found = round_rows(w, second, on_grid, damping=0.01, descents=0)
    greedy = torch.stack([by_least_squares(row, h) for row in w])
    plain = nearest(w, GRID)
    better = errors(w, greedy, h) < errors(w, plain, h)
    assert bool(better.any())
    assert torch.equal(found, torch.where(better[:, None], greedy, plain))


def test_it_lies_between_the_best_and_nearest_rounding() -> None:
    x = mixed(100, 5, seed=3).double()
    second = x.T @ x / len(x)
    h = damped(second, 0.05)
    w = torch.randn(12, 5, generator=torch.Generator().manual_seed(2)).double()
    every = torch.stack([torch.stack(q) for q in itertools.product(GRID, repeat=5)])
    best = torch.stack([errors(row - every, 0 * every, h).min() for row in w])
    found = errors(w, round_rows(w, second, on_grid, damping=0.05), h)
    plain = errors(w, nearest(w, GRID), h)
    assert bool((found >= best - 1e-9).all())
    assert bool((found <= plain + 1e-9).all())
    # all but a small part of what nearest rounding loses is got back
    assert (found - best).sum() < 0.2 * (plain - best).sum()


def test_independent_inputs_leave_nearest_rounding() -> None:
    w = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    found = round_rows(w, torch.eye(9), on_grid)
    assert torch.equal(found, nearest(w.double(), GRID))


def test_an_input_that_is_always_0_is_rounded_to_the_nearest() -> None:
    second = torch.diag(torch.tensor([1.0, 0.0, 2.0]))
    w = torch.tensor([[0.5, 0.9, -0.1]])
    assert torch.equal(round_rows(w, second, on_grid), nearest(w.double(), GRID))
    assert torch.equal(round_rows(w, 0 * second, on_grid), nearest(w.double(), GRID))


def test_free_weights_make_up_for_the_others_as_least_squares_does() -> None:
    x = mixed(300, 8).double()
    second = x.T @ x / len(x)
    h = damped(second, 1e-6)
    w = torch.randn(3, 8, generator=torch.Generator().manual_seed(4)).double()
    free = torch.zeros(3, 8, dtype=torch.bool)
    free[:, [1, 4, 6]] = True
    found = round_rows(w, second, on_grid, free=free, damping=1e-6, descents=50)
    assert bool(torch.isin(found[~free], GRID).all())
    kept, loose = (~free[0]).nonzero()[:, 0], free[0].nonzero()[:, 0]
    pull = (w - found)[:, kept] @ h[kept][:, loose]
    expected = w[:, loose] + torch.linalg.solve(h[loose][:, loose], pull.T).T
    assert errors(w, found, h).sum() < errors(w, nearest(w, GRID), h).sum()
    torch.testing.assert_close(found[:, loose], expected, rtol=1e-2, atol=1e-2)


LAYERS: dict[str, Any] = {
    "linear": (lambda: nn.Linear(6, 4), (50, 6)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (8, 4, 7, 7)),
    "groups": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=2), (8, 4, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(5, 5, 3, bias=False, groups=5), (8, 5, 6, 6)),
    "reflect": (
        lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        (16, 4, 7, 7),
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_s_outputs_move_less_than_by_nearest_rounding(kind: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    layer: Any = make()
    noise = torch.randn(shape)
    x = noise + 0.8 * noise.roll(1, -1) + 0.5 * noise.roll(1, 1) + 0.3
    rows = input_rows(layer, x)
    moments = GroupedMoments(rows.shape[1], getattr(layer, "groups", 1))
    moments.add(rows)
    grid = torch.linspace(-0.6, 0.6, 7).double()
    centred = layer.bias is not None
    new, lost = round_layer(
        layer, moments, lambda v, outputs: nearest(v, grid), centred=centred
    )
    assert new.shape == layer.weight.shape
    assert bool(torch.isin(new, grid.float()).all())

    def moved(weight: Tensor, shift: Tensor | None) -> float:
        with torch.no_grad():
            before = layer(x)
            layer_weight = layer.weight.clone()
            layer.weight.copy_(weight)
            after = layer(x)
            layer.weight.copy_(layer_weight)
        if shift is not None:
            channel = 1 if x.ndim == 4 else -1
            sides = [1] * before.ndim
            sides[channel] = -1
            after = after + shift.float().view(sides)
        return float(F.mse_loss(before, after))

    plain = nearest(layer.weight.detach(), grid)
    with torch.no_grad():  # which may have the best shift
        difference = layer(x) - moved_output(layer, plain, x)
        dims = [0, *range(2, difference.ndim)]
        best_shift = difference.mean(dims)
    most = 0.8 if kind in ("linear", "conv") else 1.0  # rows of few weights gain less
    assert moved(new, lost if centred else None) < most * moved(
        plain, best_shift if centred else None
    )


def moved_output(layer: Any, weight: Tensor, x: Tensor) -> Tensor:
    kept = layer.weight.clone()
    layer.weight.copy_(weight)
    output: Tensor = layer(x)
    layer.weight.copy_(kept)
    return output


def test_each_output_may_have_values_of_its_own() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, groups=2)
    steps = torch.linspace(0.05, 0.3, 6).double()
    rows = input_rows(layer, torch.randn(4, 4, 8, 8))
    moments = GroupedMoments(36, 2)
    moments.add(rows)

    def to_steps(values: Tensor, outputs: Tensor) -> Tensor:
        own = steps[outputs][:, None]
        return (values / own).round() * own

    new, _ = round_layer(layer, moments, to_steps)
    multiples = new.double() / steps.view(-1, 1, 1, 1)
    torch.testing.assert_close(multiples, multiples.round(), rtol=0, atol=1e-5)


def test_many_patches_are_looked_at_in_part_and_means_are_over_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = mixed(4000, 6)
    whole, part = GroupedMoments(6, 1), GroupedMoments(6, 1)
    whole.add(rows)
    monkeypatch.setattr(rounding, "_MOST_ROWS", 1000)
    part.add(rows)
    assert torch.equal(whole.mean, part.mean)
    scale = whole.second().diagonal(dim1=1, dim2=2).mean()
    assert (whole.second() - part.second()).abs().max() < 0.2 * scale
    assert not torch.equal(whole.second(), part.second())


def test_a_module_keeps_its_logits_better() -> None:
    torch.manual_seed(0)
    module = resnet_cifar("resnet20_cifar", width=4, num_classes=10)
    images = torch.randn(64, 3, 16, 16)
    module(images)  # running means of the norms that are not 0
    module.eval()
    with torch.no_grad():
        logits = module(images)
    names = [n for n, p in module.named_parameters() if p.ndim > 1 or "linear" in n]
    values = UniformQuant(bits=3)._values(module.state_dict(), names)
    state = {k: v.clone() for k, v in module.state_dict().items()}

    def distance() -> float:
        with torch.no_grad():
            return float((module(images) - logits).square().mean())

    with torch.no_grad():
        for name in names:
            parameter = module.get_parameter(name)
            parameter.copy_(values[name](parameter))
    plain = distance()
    module.load_state_dict(state)
    round_module(module, values, images.split(16))
    assert distance() < 0.5 * plain
    for name in names:
        parameter = module.get_parameter(name).detach()
        assert torch.equal(values[name](parameter), parameter)
    others = [n for n, p in module.named_parameters() if n not in names]
    assert all(torch.equal(module.get_parameter(n), state[n]) for n in others)


def test_at_their_defaults_the_options_do_not_enter_a_key() -> None:
    assert values_to_hash(KmeansQuant()).keys() == {
        "include_norm",
        "clusters",
        "scope",
    }
    assert "rounding" in values_to_hash(KmeansQuant(rounding="layerwise"))
