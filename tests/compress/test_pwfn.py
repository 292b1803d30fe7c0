"""Probabilistic weight fixing: clustering by its slow description, the noise, its gradients."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.wfn.fixing import fixable_parameters
from compress.wfn.probabilistic import Pwfn
from compress.wfn.uncertain import (
    Uncertain,
    UncertainFixing,
    UncertainRules,
    Widen,
    check_unshared,
    cluster_uncertain,
    initial_uncertainty,
    make_uncertain,
    means,
    sums_of_powers,
)


def weights(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mu = 0.2 * torch.randn(count, generator=generator)
    mu[::7] = 0.0
    sigma = 0.02 * torch.rand(count, generator=generator)
    return mu, sigma


def slow_candidates(count: int, bits: int, largest: float) -> list[float]:
    powers = [2.0**e for e in range(-bits, math.ceil(math.log2(largest)))]
    sums = {0.0}
    for chosen in itertools.product([0.0, *powers], repeat=count):
        sums |= {sum(chosen), -sum(chosen)}
    return sorted(s + 0.0 for s in sums if abs(s) <= largest)


def slowly(
    mu: Tensor, sigma: Tensor, fraction: float, allowed: float, bits: int
) -> tuple[list[float | None], list[float]]:
    """Value of each weight, or None, and its new sigma: one weight and one candidate at a time."""
    m = mu.double().tolist()
    s = [max(v, 2.0**-20) for v in sigma.double().tolist()]
    value: list[float | None] = [None] * len(m)
    spread = sigma.double().tolist()
    needed = math.ceil(len(m) * fraction)
    powers, turn = 1, 1
    while needed:
        left = [i for i, v in enumerate(value) if v is None]
        largest = max(abs(m[i]) for i in left)
        candidates = slow_candidates(powers, bits, largest) if largest else [0.0]
        while needed:
            left = [i for i, v in enumerate(value) if v is None]
            takes: list[list[tuple[float, int]]] = []
            for c in candidates:
                near = []
                for i in left:
                    distance = abs(c - m[i]) / s[i]
                    if c == 0 and abs(m[i]) < 2.0**-bits:
                        distance = 0.0
                    if distance <= allowed:
                        near.append((distance, i))
                takes.append(sorted(near))
            most = max((len(near) for near in takes), default=0)
            if not most:
                break
            best = next(k for k, near in enumerate(takes) if len(near) == most)
            chosen = [i for _, i in takes[best]][:needed]
            for i in chosen:
                value[i] = candidates[best]
                spread[i] = float(np.std([m[j] for j in chosen]))
            needed -= len(chosen)
            del candidates[best]
        if powers < 4 and turn % 2:
            powers += 1
        else:
            allowed *= 2
        turn += 1
    return value, spread


@pytest.mark.parametrize(
    ("fraction", "allowed", "bits"),
    [(0.3, 1.0, 7), (0.8, 0.5, 5), (1.0, 1.0, 4), (1.0, 0.01, 3)],
)
def test_clustering_is_that_of_the_description(
    fraction: float, allowed: float, bits: int
) -> None:
    mu, sigma = weights(120, seed=bits)
    found = cluster_uncertain(mu, sigma, fraction, allowed, bits=bits)
    value, spread = slowly(mu, sigma, fraction, allowed, bits)
    held = torch.tensor([v is not None for v in value])
    assert torch.equal(found.fixed, held)
    expected = torch.tensor(
        [m if v is None else v for v, m in zip(value, mu.tolist(), strict=True)]
    )
    assert torch.equal(found.values, expected)
    torch.testing.assert_close(found.sigmas, torch.tensor(spread))
    assert torch.equal(found.values[held], found.codebook[found.assignments[held]])
    assert bool((found.assignments[~held] == -1).all())
    assert sum(found.orders.values()) == math.ceil(120 * fraction)
    assert bool(
        (found.distances[held] <= found.allowed + 1e-4)[
            mu[held].abs() >= 2**-bits
        ].all()
    )


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_candidates_are_sums_of_powers_of_two(count: int) -> None:
    found = sums_of_powers(count, 4, 0.9)
    assert found.tolist() == slow_candidates(count, 4, 0.9)
    assert sums_of_powers(count, 4, 0.0).tolist() == [0.0]


def test_a_wider_uncertainty_lets_a_weight_go_further() -> None:
    mu = torch.tensor([0.30, 0.30, 0.25])
    sigma = torch.tensor([0.06, 0.001, 0.001])
    found = cluster_uncertain(mu, sigma, 2 / 3, 1.0)
    assert found.fixed.tolist() == [True, False, True]
    assert found.values.tolist() == pytest.approx([0.25, 0.30, 0.25])
    assert found.sigmas.tolist() == pytest.approx([0.025, 0.001, 0.025])


def test_uncertainties_start_small_next_to_powers_of_two() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = 0.1 * torch.randn(400, generator=generator)
    weight[0], weight[1], weight[2] = 0.25, -(2.0**-9), 0.0
    found = initial_uncertainty(weight)
    assert bool((found >= 2.0**-30).all())
    assert bool((found <= 0.05).all())
    assert found[:3].tolist() == [2.0**-30] * 3
    assert float(found.quantile(0.75)) == pytest.approx(0.0025, rel=1e-3)
    w = abs(float(weight[10]))
    up, down = 2.0 ** math.ceil(math.log2(w)), 2.0 ** math.floor(math.log2(w))
    product = (up - w) / w * (w - down) / w
    w2 = abs(float(weight[11]))
    up, down = 2.0 ** math.ceil(math.log2(w2)), 2.0 ** math.floor(math.log2(w2))
    other = (up - w2) / w2 * (w2 - down) / w2
    assert float(found[10] / found[11]) == pytest.approx(product / other, rel=1e-4)


def test_training_computes_with_noise_and_evaluation_without() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3))
    weight, bias = (p.detach().clone() for p in module.parameters())
    uncertain = make_uncertain(module, ["0.weight", "0.bias"])
    layer: Any = module[0]
    widen = Widen(uncertain, 0.25, seed=3)
    widen.on_begin(module)
    noise, sigma = uncertain["0.weight"].noise, uncertain["0.weight"].sigma
    assert 0.3 < float(noise.std()) < 3
    module.train()
    torch.testing.assert_close(layer.weight, weight + sigma * noise)
    x = torch.randn(5, 4)
    module(x).square().sum().backward()
    plain = weight.clone().requires_grad_()
    shifted = plain + (sigma * noise).detach()
    bias_noise = (uncertain["0.bias"].sigma * uncertain["0.bias"].noise).detach()
    (x @ shifted.T + bias + bias_noise).square().sum().backward()
    assert plain.grad is not None
    original: Any = layer.parametrizations.weight.original
    torch.testing.assert_close(original.grad, plain.grad)
    torch.testing.assert_close(sigma.grad, plain.grad * noise)
    before = uncertain["0.bias"].sigma.grad
    assert before is not None
    before = before.clone()
    widen.on_grads()
    push = 0.25 * (0.05 - sigma).clamp_min(0) * noise.abs()
    torch.testing.assert_close(sigma.grad, plain.grad * noise - push)
    assert torch.equal(uncertain["0.bias"].sigma.grad, before)  # type: ignore[arg-type]
    old = noise.clone()
    widen.on_step()
    assert not torch.equal(noise, old)
    module.eval()
    assert torch.equal(layer.weight, original)
    assert {k: v.shape for k, v in means(module).items()} == {
        "0.weight": (3, 4),
        "0.bias": (3,),
    }


def test_fixed_weights_and_their_uncertainties_are_held_to_the_bit() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    rules = UncertainRules(fractions=(0.5, 1.0), bits=4)
    fixing = UncertainFixing(module, rules, seed=1)
    clustering = fixing.fix_more()
    held = clustering.fixed
    hooks = fixing.hooks()
    for hook in hooks:
        hook.on_begin(module)
    optimizer = torch.optim.SGD(
        module.parameters(), 0.1, momentum=0.9, weight_decay=0.1
    )
    module.train()

    def now(of: dict[str, Any]) -> Tensor:
        return torch.cat([p.detach().reshape(-1).clone() for p in of.values()])

    before = now(fixing.parameters), now(fixing.sigmas)
    for step in range(3):
        optimizer.zero_grad()
        module(torch.randn(9, 6)).square().mean().backward()
        for hook in hooks:
            hook.on_grads(step)
        optimizer.step()
        for hook in hooks:
            hook.on_step(step)
    for old, new in zip(
        before, (now(fixing.parameters), now(fixing.sigmas)), strict=True
    ):
        assert torch.equal(old[held], new[held])
        assert bool((old[~held] != new[~held]).any())
    last = fixing.fix_more()
    assert bool(last.fixed.all())
    assert torch.equal(now(fixing.parameters), last.values)
    assert len(last.codebook) == len(last.values.unique())


def test_shared_parameters_and_idle_settings_are_refused() -> None:
    shared = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    shared[1].weight = shared[0].weight
    with pytest.raises(ValueError, match="shares parameters between layers"):
        check_unshared(shared, False)
    with pytest.raises(ValueError, match="train_mode"):
        Pwfn(train_mode=False)
    with pytest.raises(ValueError, match="both must be above 0"):
        Pwfn(sigmas=(0.0, 1.0))


def test_noise_travels_with_a_checkpoint() -> None:
    module = nn.Sequential(nn.Linear(3, 2))
    names = list(fixable_parameters(module, False))
    make_uncertain(module, names)
    kept = [name for name in module.state_dict() if name.endswith("noise")]
    assert len(kept) == len(names)
    assert isinstance(module[0].parametrizations.weight[0], Uncertain)  # type: ignore
