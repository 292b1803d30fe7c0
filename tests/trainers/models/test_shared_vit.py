"""Shared layers against a timm ViT that holds a copy of them for every use."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainers.config import TrainConfig
from trainers.models.arch import Arch, buildable
from trainers.models.mean_vit import drop_path
from trainers.timm_library import timm
from trainers.training.optim import make_optimizer

SIZE: dict[str, Any] = {
    "num_classes": 5,
    "img_size": 16,
    "patch_size": 8,
    "embed_dim": 16,
    "num_heads": 2,
}
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def shaken(arch: Arch) -> nn.Module:
    """A module in eval mode whose every parameter is random: no scale is 1, no bias 0."""
    torch.manual_seed(1)
    module = arch.build().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return module


def sws(repeats: list[int], **options: Any) -> Any:
    return shaken(Arch("sws_vit", "sws_vit", SIZE | {"repeats": repeats} | options))


def tleg(depth: int, **options: Any) -> Any:
    return shaken(Arch("tleg_vit", "tleg_vit", SIZE | {"depth": depth} | options))


def plain(depth: int, **options: Any) -> nn.Module:
    args = SIZE | {"depth": depth, "class_token": False, "global_pool": "avg"} | options
    return Arch("timm", "vit_base_patch16_224", args).build().eval()


def copied(module: nn.Module, stages: list[int], **options: Any) -> nn.Module:
    """timm's ViT with a copy of its stage's block for every layer."""
    state = {
        k: v for k, v in module.state_dict().items() if not k.startswith("blocks.")
    }
    blocks = [
        k.removeprefix("blocks.0.")
        for k in module.state_dict()
        if k.startswith("blocks.0.")
    ]
    state |= {
        f"blocks.{i}.{k}": module.state_dict()[f"blocks.{s}.{k}"]
        for i, s in enumerate(stages)
        for k in blocks
    }
    if options.get("fc_norm") is False:
        state |= {f"norm.{k}": state.pop(f"fc_norm.{k}") for k in ("weight", "bias")}
    vit = plain(len(stages), **options)
    vit.load_state_dict(state)
    return vit


@pytest.mark.parametrize("norm_before_pool", [False, True])
@pytest.mark.parametrize("repeats", [[1], [3, 1], [1, 2, 2]])
def test_sws_equals_timm_with_copies(
    repeats: list[int], norm_before_pool: bool
) -> None:
    module = sws(repeats, norm_before_pool=norm_before_pool)
    stages = [s for s, count in enumerate(repeats) for _ in range(count)]
    same = copied(module, stages, **({"fc_norm": False} if norm_before_pool else {}))
    other = copied(module, stages, **({} if norm_before_pool else {"fc_norm": False}))
    torch.testing.assert_close(module(IMAGES), same(IMAGES), atol=1e-5, rtol=1e-5)
    assert (
        module(IMAGES) - other(IMAGES)
    ).abs().max() > 1e-3  # the order of norm and pooling matters


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("training", [True, False])
def test_stochastic_depth_is_timms(rate: float, training: bool) -> None:
    x = torch.randn(8, 3, 2)
    torch.manual_seed(1)
    ours = drop_path(x, rate, training)
    torch.manual_seed(1)
    assert torch.equal(ours, timm.layers.drop_path(x, rate, training))


def test_stochastic_depth_and_dropout_are_timms() -> None:
    rates = {"drop_rate": 0.2, "drop_path_rate": 0.4}
    module = sws([2, 2], **rates)
    vit = copied(module, [0, 0, 1, 1], **rates)
    seen = []
    for m in (module.train(), vit.train()):
        torch.manual_seed(3)
        seen.append(m(IMAGES))
    torch.testing.assert_close(*seen, atol=1e-5, rtol=1e-5)
    assert module.drop_path_rates == pytest.approx([0, 0.4 / 3, 0.8 / 3, 0.4])


def gradients(module: nn.Module) -> dict[str, Tensor]:
    module(IMAGES).square().sum().backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def assert_like(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(
        found, expected, atol=1e-5 * max(1.0, expected.abs().max().item()), rtol=1e-4
    )


def test_sws_gradients_are_the_sum_over_uses() -> None:
    stages = [0, 0, 1, 2, 2, 2]
    module = sws([2, 1, 3])
    of_copies, found = gradients(copied(module, stages)), gradients(module)
    assert len(found) == len(dict(module.named_parameters()))
    for name, grad in found.items():
        if name.startswith("blocks."):
            _, stage, rest = name.split(".", 2)
            uses = [
                of_copies[f"blocks.{i}.{rest}"]
                for i, s in enumerate(stages)
                if s == int(stage)
            ]
            assert_like(grad, sum(uses[1:], uses[0]))
        else:
            assert_like(grad, of_copies[name])


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_tleg_is_a_line_of_layers(depth: int) -> None:
    module = tleg(depth)
    state, places = (
        module.state_dict(),
        [(i / (depth - 1) if depth > 1 else 0.0) for i in range(depth)],
    )
    vit = plain(depth)
    line = {k: v for k, v in state.items() if not k.startswith("blocks.")}
    for i, place in enumerate(places):
        for name, base in state.items():
            if name.startswith("blocks.0."):
                rest = name.removeprefix("blocks.0.")
                line[f"blocks.{i}.{rest}"] = base + place * state[f"blocks.1.{rest}"]
    vit.load_state_dict(line)
    torch.testing.assert_close(module(IMAGES), vit(IMAGES), atol=1e-5, rtol=1e-5)
    of_layers, found = gradients(vit), gradients(module)
    for name, grad in found.items():
        if not name.startswith("blocks."):
            assert_like(grad, of_layers[name])
            continue
        _, which, rest = name.split(".", 2)
        uses = [
            (place if which == "1" else 1.0) * of_layers[f"blocks.{i}.{rest}"]
            for i, place in enumerate(places)
        ]
        assert_like(grad, sum(uses[1:], uses[0]))


def test_tleg_starts_with_every_norm_at_one() -> None:
    module: Any = Arch("tleg_vit", "tleg_vit", SIZE | {"depth": 4}).build()
    for w in module.layer_weights():
        assert all((w[f"norm{i}.weight"] == 1).all() for i in (1, 2))
        assert w["attn.qkv.weight"].std() > 0


@pytest.mark.parametrize("module", [sws([4, 4]), tleg(8)], ids=["sws", "tleg"])
def test_two_sets_are_stored_and_vectors_are_not_decayed(module: nn.Module) -> None:
    one = sum(p.numel() for p in plain(1).parameters())
    two = sum(p.numel() for p in plain(2).parameters())
    assert sum(p.numel() for p in module.parameters()) == one + (two - one)
    optimizer = make_optimizer(module, TrainConfig(weight_decay=0.5))
    decayed = {
        id(p)
        for group in optimizer.param_groups
        if group["weight_decay"]
        for p in group["params"]
    }
    names = {name for name, p in module.named_parameters() if id(p) in decayed}
    assert names == {
        name
        for name, p in module.named_parameters()
        if p.ndim > 1 and name != "pos_embed"
    }


def test_compiles_as_one_graph() -> None:
    module = sws([1, 2])
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    assert torch.equal(compiled(IMAGES), module(IMAGES))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": [1], "num_heads": 3}, "divisible"),
        ({"repeats": [1], "patch_size": 32}, "larger than the image"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        buildable(Arch("sws_vit", "sws_vit", SIZE | options))
