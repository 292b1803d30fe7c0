"""What NViT zeroes is made up for: against slow least squares, on whole models, in the stage."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.nvit.compensate import compensation
from compress.nvit.groups import GroupSizes, UnitLayout
from compress.nvit.masked_vit import MaskedVit
from compress.nvit.surgery import Masks, cut
from tests.compress.test_nvit import prune, source
from trainers.data.splits import Data
from trainers.models.arch import ModelState
from trainers.models.from_timm import from_timm

KINDS = ("embed", "heads", "qk", "v", "mlp")


def dependent(name: str, **args: Any) -> ModelState:
    """A ViT whose layers are large enough for its inner values to depend on each other."""
    state = from_timm(source(name, **args))
    generator = torch.Generator().manual_seed(5)
    weights = {
        key: value + 0.15 * torch.randn(value.shape, generator=generator)
        for key, value in state.weights.items()
    }
    return ModelState(state.arch, weights, state.meta)


def taken(layout: UnitLayout, kind: str, count: int) -> Tensor:
    """All units but the last ones of every structure of a kind."""
    keep = torch.ones(layout.num_units, dtype=torch.bool)
    parts = layout.split(keep)
    for part in [parts["embed"]] if kind == "embed" else parts[kind]:
        part[-count:] = False
    return keep


def outcome(state: ModelState, layout: UnitLayout, keep: Tensor, images: Tensor) -> Any:
    """Logits of the dense cut, plain and compensated."""
    logits = []
    for compensate in (False, True):
        vit = MaskedVit.from_state(state)
        whole = torch.ones_like(keep)
        if compensate:
            found = compensation(vit, layout, whole, keep, images.split(20))
            vit.load_state_dict(vit.state_dict() | found)
        assert vit.training
        Masks(vit, layout, keep).on_values()
        small = cut(ModelState.from_module(state.arch, vit), layout, keep).build()
        with torch.inference_mode():
            logits.append(small(images))
            torch.testing.assert_close(
                vit.eval()(images), logits[-1], rtol=1e-3, atol=1e-4
            )
    return logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_tiny_patch16_224", {"patch_size": 8}),
        ("deit_tiny_distilled_patch16_224", {"patch_size": 8}),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "qkv_bias": False}),
    ],
)
def test_every_kind_of_unit_is_missed_less(
    kind: str, name: str, args: dict[str, Any]
) -> None:
    state = dependent(name, **args)
    layout = UnitLayout.of(state.arch.dims, GroupSizes())
    keep = taken(layout, kind, 1 if kind == "heads" else 8)
    images = torch.randn(60, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = state.build()(images)
    plain, fixed = outcome(state, layout, keep, images)
    errors = [float((each - wanted).square().mean()) for each in (plain, fixed)]
    # random queries and keys hardly depend on each other
    assert errors[1] < (1 if kind == "qk" else 0.9) * errors[0]


def test_hidden_units_are_replaced_as_by_least_squares() -> None:
    state = dependent("vit_tiny_patch16_224", patch_size=8)
    layout = UnitLayout.of(state.arch.dims, GroupSizes())
    keep = taken(layout, "mlp", 40)
    images = torch.randn(60, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    vit: Any = MaskedVit.from_state(state)
    found = compensation(vit, layout, torch.ones_like(keep), keep, [images])
    assert set(found) == {
        f"blocks.{i}.mlp.fc2.{p}" for i in (0, 1) for p in ("weight", "bias")
    }
    mlp = vit.blocks[0].mlp
    with torch.no_grad():
        x = vit.embed(images)
        x = x + vit.blocks[0].attn(vit.blocks[0].norm1(x))
        hidden = mlp.act(mlp.fc1(vit.blocks[0].norm2(x))).flatten(0, 1)
        wanted = mlp.fc2(hidden)
        rows = torch.cat([hidden[:, :88], torch.ones(len(hidden), 1)], 1).double()
        best = rows @ torch.linalg.lstsq(rows, wanted.double()).solution
        weight = found["blocks.0.mlp.fc2.weight"][:, :88]
        mine = hidden[:, :88] @ weight.T + found["blocks.0.mlp.fc2.bias"]
    least = float((best - wanted).square().mean())
    assert least <= float((mine - wanted).square().mean()) < 1.01 * least + 1e-9


def test_scores_of_attention_are_nearest_among_all_mixings() -> None:
    """For independent tokens no other affine map of the queries that stay does better."""
    state = dependent("vit_tiny_patch16_224", patch_size=8, num_heads=1)
    layout = UnitLayout.of(state.arch.dims, GroupSizes())
    keep = taken(layout, "qk", 12)
    images = torch.randn(30, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    vit: Any = MaskedVit.from_state(state)
    found = compensation(vit, layout, torch.ones_like(keep), keep, [images])
    block = vit.blocks[0]
    with torch.no_grad():
        x = block.norm1(vit.embed(images))
        q, k = block.attn.q(x), block.attn.k(x)
        k = k - k.mean(1, keepdim=True)
        fixed = torch.nn.functional.linear(
            x, found["blocks.0.attn.q.weight"], found["blocks.0.attn.q.bias"]
        )[..., :20]
        q, k, fixed = (each.flatten(0, 1).double() for each in (q, k, fixed))
        # over all pairs the error of the scores is a quadratic form in the queries' error
        small, few = k[:, :20], q[:, :20]
        wanted = q @ (k.T @ small) @ torch.linalg.inv(small.T @ small)
        rows = torch.cat([few, torch.ones(len(few), 1)], 1)
        best = rows @ torch.linalg.lstsq(rows, wanted).solution

        def error(query: Tensor) -> float:
            return float((q @ k.T - query @ small.T).square().mean())

    assert error(best) <= error(fixed) < 1.02 * error(best)
    assert error(fixed) < 0.95 * error(few)


def test_the_stage_compensates(digits: Data, tmp_path: Path) -> None:
    options = {"epochs": 2, "lr": 1e-9, "latency_target": 0.6, "prune_per_iter": 9999}
    plain, _ = prune(digits, tmp_path / "plain", **options)
    fixed, _ = prune(digits, tmp_path / "fixed", compensate=True, **options)
    assert plain.arch == fixed.arch
    images = torch.randn(40, 3, 32, 32)
    with torch.inference_mode():
        wanted, *found = (m.build()(images) for m in (source(), plain, fixed))
    errors = [float((each - wanted).square().mean()) for each in found]
    assert errors[1] < errors[0]
