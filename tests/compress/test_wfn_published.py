"""Weight fixing as published: where the published code departs from the paper, and ten
iterations in sequence, against oracles written from the description.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compress import wfn
from compress.wfn.clustering import Distance, cluster
from tests.compress.test_wfn_cluster import DRAWS, GAMMA, assert_equal_to_oracle, oracle


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize(
    ("mode", "gamma"),
    [("euclidean", GAMMA), ("euclidean", 0.0123), ("relative", 0.01)],
)
def test_equal_to_the_oracle_as_published(
    mode: Distance, gamma: float, draw: str
) -> None:
    rng = np.random.default_rng(6)
    for n, fraction, a in [
        (1, 1.0, 0.2),
        (400, 0.3, 0.01),
        (900, 1.0, 0.2),
        (700, 0.9, 0.5),
    ]:
        w = DRAWS[draw](rng, n).astype(np.float32)
        assert_equal_to_oracle(w, fraction, a, gamma, mode, published=True)


def test_what_is_published_differs_from_the_paper() -> None:
    w = torch.from_numpy(np.float32(np.random.default_rng(7).normal(0, 0.05, 3000)))
    for options in ({"distance": "euclidean"}, {"zero_distance": 0.01}):
        paper, published = (
            cluster(w, 1.0, 0.002, published=each, **options) for each in (False, True)
        )
        assert not torch.equal(paper.values, published.values)
    assert torch.equal(
        cluster(w, 1.0, 0.02).values, cluster(w, 1.0, 0.02, published=True).values
    )


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3)
    )


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (
            torch.randn(16, 1, 8, 8, generator=generator),
            torch.randint(3, (16,), generator=generator),
        )
        for _ in range(3)
    ]


def flat_of(module: nn.Module) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in module.parameters()])


def put_back(module: nn.Module, values: np.ndarray, where: np.ndarray) -> None:
    start = 0
    for p in module.parameters():
        part = slice(start, start + p.numel())
        start += p.numel()
        new = np.where(where[part], values[part], p.detach().numpy().ravel())
        p.data.copy_(torch.from_numpy(new.astype(np.float32)).view_as(p))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(
    ("mode", "gamma"),
    [
        ("relative", GAMMA),
        ("euclidean", GAMMA),
        ("relative", 0.01),
        ("euclidean", 0.006),
    ],
)
def test_ten_iterations_are_those_of_the_description(
    mode: Distance, gamma: float, optimizer: str
) -> None:
    """A fresh optimiser and a clipped gradient each time; what is fixed is held to the bit."""
    delta = 0.01 if mode == "relative" else 0.002
    loss_of = nn.CrossEntropyLoss()

    def new_optimizer(module: nn.Module) -> torch.optim.Optimizer:
        if optimizer == "adam":
            return torch.optim.Adam(module.parameters(), lr=1e-3)
        return torch.optim.SGD(
            module.parameters(), lr=1e-2, momentum=0.9, weight_decay=5e-4
        )

    slow = network()
    fixed = np.zeros(len(flat_of(slow)), bool)
    values = flat_of(slow)
    expected = []
    for t, fraction in enumerate(wfn.FixRules().fractions):
        chosen = new_optimizer(slow)
        for images, targets in batches() if t else ():  # first_epoch is 0
            chosen.zero_grad()
            loss_of(slow(images), targets).backward()
            start = 0
            for p in slow.parameters():
                held = torch.from_numpy(fixed[start : start + p.numel()]).view_as(p)
                start += p.numel()
                p.grad[held] = 0
            nn.utils.clip_grad_norm_(slow.parameters(), 0.5)
            chosen.step()
            put_back(slow, values, fixed)
        a = delta * max(1, 10 - t)
        values, fixed, *_ = oracle(
            flat_of(slow), fraction, a, gamma, mode, published=True
        )
        put_back(slow, values, fixed)
        expected.append(flat_of(slow))

    fast = network()
    seen = []

    def train(hook: wfn.HoldFixed, iteration: int) -> None:
        if iteration:
            seen.append(flat_of(fast))
        chosen = new_optimizer(fast)
        for step, (images, targets) in enumerate(batches() if iteration else ()):
            chosen.zero_grad()
            hook.on_loss(loss_of(fast(images), targets)).backward()
            hook.on_grads(step)
            nn.utils.clip_grad_norm_(fast.parameters(), 0.5)
            chosen.step()
            hook.on_step(step)

    rules = wfn.FixRules(
        distance_allowed=delta,
        zero_distance=gamma,
        regularisation_ratio=0,
        distance=mode,
        published=True,
    )
    wfn.fix(fast, train, rules)
    seen.append(flat_of(fast))
    for t, (mine, theirs) in enumerate(zip(seen, expected, strict=True)):
        np.testing.assert_array_equal(mine, theirs, err_msg=f"iteration {t}")


def test_weights_held_by_their_gradients_decay_as_published() -> None:
    """With Adam nothing moves them; with SGD and weight decay they shrink."""
    for kind, options, moves in [
        (torch.optim.Adam, {"lr": 1e-2}, False),
        (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1}, True),
    ]:
        module = network()
        fixing = wfn.Fixing(module, wfn.FixRules(hold="gradients"))
        fixed = fixing.fix_more().fixed.numpy()
        hook, before = fixing.hook(), flat_of(module)
        chosen: Any = kind(module.parameters(), **options)
        for images, targets in batches():
            chosen.zero_grad()
            hook.on_loss(
                nn.functional.cross_entropy(module(images), targets)
            ).backward()
            hook.on_grads()
            chosen.step()
            hook.on_step()
        after = flat_of(module)
        assert (before[fixed] != after[fixed]).any() == moves
        assert (before[~fixed] != after[~fixed]).any()
