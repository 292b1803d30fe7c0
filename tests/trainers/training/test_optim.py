"""Optimisers: each of timm's gets the options that its class takes."""

from typing import Any

import pytest
import torch
from torch import nn

from trainers.config import TrainConfig
from trainers.timm_library import timm
from trainers.training import optim
from trainers.training.optim import make_optimizer

NEEDS_GPU = ("bnb", "fused")
"""How the names begin of those that timm makes on a GPU alone, with bitsandbytes or apex."""
NAMES = [n for n in timm.optim.list_optimizers() if not n.startswith(NEEDS_GPU)]


def settings(optimizer: Any) -> list[dict[str, Any]]:
    """What an optimiser does with each group of parameters."""
    return [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]


def made(name: str, **options: Any) -> Any:
    return make_optimizer(nn.Linear(2, 2), TrainConfig(optimizer=name, **options))


@pytest.mark.filterwarnings("ignore:.*opt_einsum")
@pytest.mark.parametrize("name", NAMES)
def test_each_gets_its_options(name: str) -> None:
    """Those that take an eps get it, and all others are made without a complaint."""
    for eps in (None, 1e-8, 1e-3):
        given = (
            {} if eps is None else {"eps": eps}
        )  # timm drops what it knows to be foreign
        config = TrainConfig(optimizer=name)
        expected = timm.optim.create_optimizer_v2(
            nn.Linear(2, 2),
            opt=name,
            lr=config.scaled(config.lr),
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            **given,
        )
        assert settings(made(name, eps=eps)) == settings(expected)


def test_a_wrapped_one_is_made_and_an_unknown_one_is_named() -> None:
    wrapped = made("lookahead_adamw", eps=1e-3)
    assert type(wrapped).__name__ == "Lookahead"
    assert {group["eps"] for group in wrapped.param_groups} == {1e-3}
    with pytest.raises(ValueError, match=r"optimizer 'adamx': .*list_optimizers"):
        made("adamx")


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_fused_kernels_take_the_same_steps(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are chosen on a GPU; torch has them on the CPU too, where this compares."""
    after = []
    for fused in (False, True):
        monkeypatch.setattr(
            optim, "_fused", lambda *_, fused=fused: {"fused": True} if fused else {}
        )
        torch.manual_seed(0)
        module = nn.Linear(6, 4)
        config = TrainConfig(optimizer=name, lr=0.1, lr_scaling="unscaled")
        optimizer = make_optimizer(module, config)
        assert optimizer.param_groups[0].get("fused") == (fused or None)
        for _ in range(3):
            optimizer.zero_grad()
            module(torch.ones(2, 6)).square().sum().backward()
            optimizer.step()
        after.append(module.weight.detach().clone())
    torch.testing.assert_close(after[1], after[0], atol=1e-6, rtol=1e-6)
