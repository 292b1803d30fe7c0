"""NViT's maths: masks against dense cuts, importance and ranking against slow oracles
written from the formulas.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compress.measure.model import count_gmacs
from compress.nvit.cost import MacsModel
from compress.nvit.groups import (
    GroupSizes,
    UnitLayout,
    block_table,
    latency_credit,
    rank_groups,
)
from compress.nvit.importance import (
    TaylorMeter,
    magnitude_scores,
    random_scores,
    taylor,
)
from compress.nvit.masked_vit import MaskedVit
from compress.nvit.surgery import MaskedLayerNorm, Masks, cut
from trainers.models.arch import Arch, ModelState
from trainers.models.from_timm import from_timm
from trainers.models.make import make_arch
from trainers.models.parameters import DIMENSIONS

SMALL = {"embed_dim": 24, "depth": 3, "num_heads": 3}
ONES = GroupSizes(embed=1, heads=1, qk=1, v=1, mlp=1)
MODELS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "plain": ("vit_tiny_patch16_224", 32, {"patch_size": 16}),
    "distilled": ("deit_tiny_distilled_patch16_224", 32, {"patch_size": 16}),
    "mean pooling": (
        "vit_tiny_patch16_224",
        24,
        {"patch_size": 8, "global_pool": "avg"},
    ),
    "no class token": (
        "vit_tiny_patch16_224",
        32,
        {"patch_size": 16, "class_token": False, "global_pool": "avg"},
    ),
    "no qkv bias": ("vit_tiny_patch16_224", 20, {"patch_size": 4, "qkv_bias": False}),
    "deit3 layer scale": ("deit3_small_patch16_224", 32, {"patch_size": 16}),
    "distilled, small patches": (
        "deit_tiny_distilled_patch16_224",
        28,
        {"patch_size": 7},
    ),
}


def vit(kind: str, seed: int = 0, **args: Any) -> ModelState:
    """A small ViT with weights that make every part matter (norms, biases and tokens too)."""
    name, size, more = MODELS[kind]
    arch = make_arch(
        name, num_classes=7, image_size=size, args={**SMALL, **more, **args}
    )
    state = from_timm(ModelState.initialised(arch, seed))
    generator = torch.Generator().manual_seed(seed)
    noisy = {
        k: v + 0.1 * torch.randn(v.shape, generator=generator)
        for k, v in state.weights.items()
    }
    return ModelState(state.arch, noisy, state.meta)


def random_keep(layout: UnitLayout, seed: int, share: float) -> Tensor:
    """A mask that leaves at least one unit of every structure."""
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(layout.num_units, generator=generator) < share
    starts = layout.sizes.cumsum(0) - layout.sizes
    keep[
        starts + (torch.rand(len(starts), generator=generator) * layout.sizes).long()
    ] = True
    return keep


def masked(state: ModelState, layout: UnitLayout, keep: Tensor) -> MaskedVit:
    module = MaskedVit.from_state(state)
    Masks(module, layout, keep).on_values()
    return module.eval()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_masked_and_dense_agree(kind: str, share: float, tmp_path: Path) -> None:
    state = vit(kind)
    layout = UnitLayout.of(state.arch.dims, ONES)
    keep = random_keep(layout, 3, share)
    module, small = masked(state, layout, keep), cut(state, layout, keep)
    size = state.arch.args["img_size"]
    images = torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = module(images)
        assert relative(small.build()(images), expected) <= 1e-5
        # as cut after training: from the masked module's own weights
        again = cut(ModelState.from_module(state.arch, module), layout, keep)
        assert again.hash() == small.hash()
        small.save(tmp_path)
        assert torch.equal(
            ModelState.load(tmp_path).build()(images), small.build()(images)
        )
    assert small.arch.dims == layout.dims(keep)
    assert sum(v.numel() for v in small.weights.values()) < sum(
        v.numel() for v in state.weights.values()
    )


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "deit_small_distilled_patch16_224",
        "vit_base_patch16_224",
    ],
)
@pytest.mark.parametrize(("size", "patch"), [(32, 16), (24, 8)])
def test_masked_and_dense_agree_at_true_widths(
    name: str, size: int, patch: int
) -> None:
    """ViT-Ti, S and B with their own widths, heads and groups, and few blocks."""
    arch = make_arch(
        name, num_classes=10, image_size=size, args={"patch_size": patch, "depth": 2}
    )
    state = from_timm(ModelState.initialised(arch, 0))
    layout = UnitLayout.of(state.arch.dims, GroupSizes())
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    for share in (0.4, 0.8):
        keep = random_keep(layout, 7, share)
        with torch.inference_mode():
            assert (
                relative(
                    cut(state, layout, keep).build()(images),
                    masked(state, layout, keep)(images),
                )
                <= 1e-5
            )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "vit_small_patch32_224",
        "deit_small_distilled_patch16_224",
        "deit_base_distilled_patch16_224",
    ],
)
def test_masked_and_dense_agree_at_full_size(name: str) -> None:
    state = from_timm(
        ModelState.initialised(make_arch(name, num_classes=1000, image_size=224), 0)
    )
    layout = UnitLayout.of(state.arch.dims, GroupSizes())
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    for share in (0.5, 0.9):
        keep = random_keep(layout, 5, share)
        with torch.inference_mode():
            assert (
                relative(
                    cut(state, layout, keep).build()(images),
                    masked(state, layout, keep)(images),
                )
                <= 1e-5
            )


def test_nothing_masked_is_the_model_itself() -> None:
    state = vit("distilled")
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(
            MaskedVit.from_state(state).eval()(images), state.build()(images)
        )
    layout = UnitLayout.of(state.arch.dims, ONES)
    assert (
        cut(state, layout, torch.ones(layout.num_units, dtype=torch.bool)).hash()
        == state.hash()
    )


def test_a_plain_layer_norm_would_not_agree() -> None:
    """The trap: statistics over all channels, zeroed ones too, are others."""
    norm, plain = MaskedLayerNorm(8, 1e-6), torch.nn.LayerNorm(8, eps=1e-6)
    keep = torch.tensor([1, 1, 0, 1, 0, 0, 1, 1]).bool()
    x = torch.randn(4, 8) * keep
    norm.set_keep(keep)
    mean, var = (
        x[:, keep].mean(1, keepdim=True),
        x[:, keep].var(1, correction=0, keepdim=True),
    )
    torch.testing.assert_close(
        norm(x)[:, keep], (x[:, keep] - mean) / (var + 1e-6).sqrt()
    )
    assert not torch.allclose(norm(x)[:, keep], plain(x)[:, keep], atol=1e-2)


def test_dropped_layers_keep_both_heads_in_training() -> None:
    state = vit("distilled", drop_path_rate=0.5, drop_rate=0.5)
    module = MaskedVit.from_state(state).train()
    module.set_distilled_training(True)
    images = torch.randn(3, 3, 32, 32)
    assert not torch.equal(module(images)[0], module(images)[0])
    module.student_eval = True
    module.train()
    first, second = module(images), module(images)
    assert len(first) == 2
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal((first[0] + first[1]) / 2, module.eval()(images))


# --- importance
# ------------------------------------------------------------


def slow_importance(
    state: ModelState, weights: dict[str, Tensor], grads: dict[str, Tensor]
) -> dict[str, Any]:
    """I(s) unit by unit: the sum over P(s) of w·g, divided, squared."""
    dims = state.arch.dims
    depth = len(dims["heads"])
    wg = {name: (weights[name] * grads[name]).double() for name in weights}

    def sum_of(*parts: Tensor) -> float:
        return float(sum(part.sum() for part in parts))

    def entry(name: str, *index: Any) -> list[Tensor]:
        return [wg[name][index]] if name in wg else []

    embed = []
    for c in range(dims["embed"]):
        parts = entry("patch_embed.proj.weight", c) + entry("patch_embed.proj.bias", c)
        for b in range(depth):
            for layer in ("attn.q", "attn.k", "attn.v", "mlp.fc1"):
                parts += entry(f"blocks.{b}.{layer}.weight", slice(None), c)
            for layer in ("attn.proj", "mlp.fc2"):
                parts += entry(f"blocks.{b}.{layer}.weight", c) + entry(
                    f"blocks.{b}.{layer}.bias", c
                )
        embed.append((sum_of(*parts) / depth) ** 2)
    result: dict[str, Any] = {"embed": embed, "heads": [], "qk": [], "v": [], "mlp": []}
    for b in range(depth):
        heads, qk, v = dims["heads"][b], dims["qk"][b], dims["v"][b]

        def rows(layer: str, indices: list[int], b: int = b) -> list[Tensor]:
            names = (f"blocks.{b}.{layer}.weight", f"blocks.{b}.{layer}.bias")
            return [part for i in indices for name in names for part in entry(name, i)]

        result["heads"].append(
            [
                (
                    sum_of(
                        *rows("attn.q", [h * qk + j for j in range(qk)]),
                        *rows("attn.k", [h * qk + j for j in range(qk)]),
                        *rows("attn.v", [h * v + j for j in range(v)]),
                    )
                    / 6
                )
                ** 2
                for h in range(heads)
            ]
        )
        result["qk"].append(
            [
                (sum_of(*rows("attn.q", [h * qk + j for h in range(heads)])) / 2) ** 2
                for j in range(qk)
            ]
        )
        result["v"].append(
            [
                (sum_of(*rows("attn.v", [h * v + j for h in range(heads)])) / 2) ** 2
                for j in range(v)
            ]
        )
        result["mlp"].append(
            [sum_of(*rows("mlp.fc1", [m])) ** 2 for m in range(dims["mlp"][b])]
        )
    return result


@pytest.mark.parametrize("kind", ["distilled", "mean pooling", "no qkv bias"])
def test_importance_is_the_formula_unit_by_unit(kind: str) -> None:
    state = vit(kind, embed_dim=12, depth=2)
    module = MaskedVit.from_state(state)
    layout = UnitLayout.of(state.arch.dims, ONES)
    size = state.arch.args["img_size"]
    module(
        torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    ).square().sum().backward()
    named = dict(module.named_parameters())
    weights = {name: p.detach() for name, p in named.items()}
    grads = {name: p.grad for name, p in named.items() if p.grad is not None}
    parts, expected = (
        layout.split(taylor(module)),
        slow_importance(state, weights, grads),
    )
    for kind_of_unit in DIMENSIONS:
        mine = (
            parts[kind_of_unit]
            if kind_of_unit == "embed"
            else torch.stack(parts[kind_of_unit])
        )
        oracle = np.array(expected[kind_of_unit])
        np.testing.assert_allclose(
            mine.numpy(),
            oracle,
            rtol=2e-3,
            atol=1e-6 * oracle.max(),
            err_msg=kind_of_unit,
        )


def test_intervals_average_steps_and_then_are_smoothed() -> None:
    meter = TaylorMeter(3, 0.9, torch.device("cpu"))
    steps = torch.rand(
        6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    for step in steps[:4]:
        meter.add(step)
    meter.add(
        torch.tensor([1.0, torch.inf, 1.0], dtype=torch.float64)
    )  # a step that the loss scaler skips
    first = meter.close()
    torch.testing.assert_close(first, steps[:4].mean(0))
    for step in steps[4:]:
        meter.add(step)
    torch.testing.assert_close(
        meter.close(), 0.9 * steps[:4].mean(0) + 0.1 * steps[4:].mean(0)
    )


def test_baseline_scores() -> None:
    state = vit("plain", depth=1)
    layout = UnitLayout.of(
        state.arch.dims, GroupSizes(embed=4, heads=1, qk=2, v=2, mlp=8)
    )
    keep = random_keep(layout, 0, 0.7)
    scores = layout.split(magnitude_scores(MaskedVit.from_state(state), keep, layout))
    w = {k: v.double() for k, v in state.weights.items()}
    norms = (
        w["blocks.0.mlp.fc1.weight"].square().sum(1)
        + w["blocks.0.mlp.fc1.bias"].square()
    ).sqrt()
    mean = norms[layout.split(keep)["mlp"][0]].mean()
    torch.testing.assert_close(scores["mlp"][0], norms / mean / 8, rtol=1e-5, atol=0)
    patch = w["patch_embed.proj.weight"].flatten(1)
    embed = patch.square().sum(1) + w["patch_embed.proj.bias"].square()
    for layer in ("attn.q", "attn.k", "attn.v", "mlp.fc1"):
        embed += w[f"blocks.0.{layer}.weight"].square().sum(0)
    for layer in ("attn.proj", "mlp.fc2"):
        embed += (
            w[f"blocks.0.{layer}.weight"].square().sum(1)
            + w[f"blocks.0.{layer}.bias"].square()
        )
    mean = embed.sqrt()[layout.split(keep)["embed"]].mean()
    torch.testing.assert_close(
        scores["embed"], embed.sqrt() / mean / 4, rtol=1e-5, atol=0
    )
    assert torch.equal(random_scores(layout, 1), random_scores(layout, 1))
    assert not torch.equal(random_scores(layout, 1), random_scores(layout, 2))


# --- ranking
# ------------------------------------------------------------


def slow_ranking(
    score: list[float], keep: list[bool], sizes: list[int], groups: list[int]
) -> list[set[int]]:
    """Groups that may go, lowest first, by the text: sort, cut, sum; a whole group stays."""
    found: list[tuple[float, int, int, set[int]]] = []
    start = 0
    for s, (size, g) in enumerate(zip(sizes, groups, strict=True)):
        left = sorted((score[i], i) for i in range(start, start + size) if keep[i])
        start += size
        position = 0
        while len(left) - position - g >= g:
            chosen = left[position : position + g]
            found.append(
                (sum(value for value, _ in chosen), s, position, {i for _, i in chosen})
            )
            position += g
    return [members for *_, members in sorted(found, key=lambda item: item[:3])]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    share=st.floats(0.2, 1.0),
    sizes=st.tuples(*[st.integers(1, 4)] * 5),
    ties=st.booleans(),
)
def test_ranking_is_sort_cut_and_sum(
    seed: int, share: float, sizes: tuple[int, ...], ties: bool
) -> None:
    groups = GroupSizes(**dict(zip(DIMENSIONS, sizes, strict=True)))
    dims = {"embed": 9, "heads": [3, 2], "qk": [6, 5], "v": [8, 1], "mlp": [13, 12]}
    layout = UnitLayout.of(dims, groups)
    keep = random_keep(layout, seed, share)
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand(layout.num_units, generator=generator, dtype=torch.float64) - 0.3
    if ties:
        score = (score * 4).round()
    ranking = rank_groups(score, keep, layout)
    expected = slow_ranking(
        score.tolist(), keep.tolist(), layout.sizes.tolist(), layout.groups.tolist()
    )
    mine = [set(ranking.members(i).tolist()) for i in range(len(ranking.scores))]
    assert mine == expected
    assert all(a <= b for a, b in pairwise(ranking.scores.tolist()))
    for members, s, value in zip(
        mine, ranking.structures.tolist(), ranking.scores.tolist(), strict=True
    ):
        assert {int(layout.structure[i]) for i in members} == {s}
        assert value == pytest.approx(float(score[list(members)].sum()))
    for members in mine:  # all of them gone: the floors hold
        keep[list(members)] = False
    left, before = layout.counts(keep), layout.counts(random_keep(layout, seed, share))
    assert bool((left >= torch.minimum(before, layout.groups)).all())


def test_credits_are_finite_differences_and_end_at_the_floor() -> None:
    state = vit("distilled")
    model = MacsModel.of(state.arch)
    groups = GroupSizes(embed=4, heads=2, qk=4, v=2, mlp=8)
    layout = UnitLayout.of(state.arch.dims, groups)
    keep = random_keep(layout, 2, 0.8)
    counts = layout.counts(keep)
    credit = latency_credit(
        torch.from_numpy(model.gradient(block_table(counts).numpy())),
        counts,
        layout.groups,
    )
    blocks = block_table(counts)[:, 1:].numpy()
    now = model.block_ms(block_table(counts).numpy()).sum()
    for s in range(len(counts)):
        fewer = counts.clone()
        fewer[s] -= 1
        saved = now - model.block_ms(block_table(fewer).numpy()).sum()
        at_floor = counts[s] < 2 * layout.groups[s]
        assert float(credit[s]) == pytest.approx(
            0.0 if at_floor else saved, rel=1e-9, abs=1e-15
        )
    assert any(counts < 2 * layout.groups)  # three heads in groups of two
    assert model.model_ms(int(counts[0]), blocks) > now


@pytest.mark.parametrize(
    "kind", ["plain", "distilled", "no class token", "no qkv bias"]
)
def test_macs_are_those_that_are_counted(kind: str) -> None:
    state = vit(kind)
    layout = UnitLayout.of(state.arch.dims, ONES)
    for keep in (
        torch.ones(layout.num_units, dtype=torch.bool),
        random_keep(layout, 4, 0.6),
    ):
        arch = Arch("pruned_vit", "x", state.arch.args, layout.dims(keep))
        table = block_table(layout.counts(keep)).numpy()
        mine = MacsModel.of(state.arch).model_ms(int(table[0, 0]), table[:, 1:])
        assert mine == pytest.approx(
            count_gmacs(arch, state.arch.args["img_size"]), rel=1e-9
        )
