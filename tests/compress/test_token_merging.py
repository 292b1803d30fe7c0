"""Token merging beside a slow model written from the paper, in loops; its exports and its cost."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compress.measure.model import count_gmacs
from compress.measure.options import RuntimeOptions
from compress.nvit.stage import Nvit
from compress.runtimes.onnx_file import write_onnx
from compress.runtimes.registry import runtime
from compress.token_merging import TokenMerging
from tests.compress.test_nvit import context, prune, source
from trainers.data.splits import Data
from trainers.models.arch import ModelState
from trainers.models.from_timm import from_timm
from trainers.models.token_merging import merge_tokens, tokens_left, tokens_merged


def slow_merge(
    x: Tensor, size: Tensor, keys: Tensor, r: int, prefix: int
) -> tuple[Tensor, Tensor]:
    """One image's tokens (N, E), sizes (N,) and keys (N, D), merged one pair after another."""
    tokens = range(prefix, len(x))
    first = [i for i in tokens if i % 2 == 0]
    second = [i for i in tokens if i % 2]
    edges = []
    for i in first:
        cosines = [
            float(torch.cosine_similarity(keys[i], keys[j], dim=0)) for j in second
        ]
        best = int(np.argmax(cosines))
        edges.append((cosines[best], i, second[best]))
    chosen = {i: j for _, i, j in sorted(edges, reverse=True)[:r]}
    groups = {j: [j, *(i for i in chosen if chosen[i] == j)] for j in second}
    kept = [[i] for i in (*range(prefix), *(i for i in first if i not in chosen))]
    kept += [groups[j] for j in second]
    sizes = torch.stack([size[group].sum() for group in kept])
    merged = [(x[g] * size[g, None]).sum(0) / size[g].sum() for g in kept]
    return torch.stack(merged), sizes


def slow_logits(state: ModelState, merged: list[int], images: Tensor) -> Tensor:
    """A ViT with merging, image by image and head by head, with softmax written out."""
    vit: Any = state.build()
    logits = []
    for image in images:
        x = vit.embed(image[None])[0]
        size = torch.ones(len(x))
        for block, r in zip(vit.blocks, merged, strict=True):
            attn, normed = block.attn, block.norm1(x)
            heads, keys = [], []
            for h in range(attn.num_heads):
                rows = slice(h * attn.qk_dim, (h + 1) * attn.qk_dim)
                q, k = attn.q(normed)[:, rows], attn.k(normed)[:, rows]
                v = attn.v(normed)[:, h * attn.v_dim : (h + 1) * attn.v_dim]
                weights = (q @ k.T * attn.scale).exp() * size
                heads.append(weights / weights.sum(1, keepdim=True) @ v)
                keys.append(k)
            x = x + attn.proj(torch.cat(heads, 1))
            mean = torch.stack(keys).mean(0)
            x, size = slow_merge(x, size, mean, r, vit.num_prefix_tokens)
            x = x + block.mlp(block.norm2(x))
        x = vit.norm(x)
        p = vit.num_prefix_tokens
        if vit.global_pool == "avg":
            share = size[p:] / size[p:].sum()
            logits.append(vit.head(vit.fc_norm((x[p:] * share[:, None]).sum(0))))
        elif vit.head_dist is None:
            logits.append(vit.head(x[0]))
        else:
            logits.append((vit.head(x[0]) + vit.head_dist(x[1])) / 2)
    return torch.stack(logits)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_tiny_patch16_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    ],
)
@pytest.mark.parametrize("schedule", ["constant", "decreasing"])
def test_logits_are_those_of_the_description(
    name: str, args: dict[str, Any], schedule: str, digits: Data, tmp_path: Path
) -> None:
    state = source(name, patch_size=8, depth=3, **args)
    stage = TokenMerging.model_validate({"r": 3, "schedule": schedule})
    ctx = context(digits, tmp_path)
    merged = stage.run(state, ctx)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert merged.arch == stage.check(state.arch, digits.info)
    by_block = merged.arch.args["merge"]
    assert by_block == ([3, 3, 3] if schedule == "constant" else [6, 3, 0])
    with torch.inference_mode():
        expected = slow_logits(from_timm(state), by_block, images)
        torch.testing.assert_close(
            merged.build()(images), expected, rtol=1e-4, atol=1e-5
        )
    prefix = {"deit_tiny_distilled_patch16_224": 2}.get(
        name, args.get("class_token", 1)
    )
    assert ctx.reported == {"tokens_before": 16 + prefix, "tokens_left": 7 + prefix}


def test_a_number_too_large_merges_half_of_the_patches() -> None:
    assert tokens_left(17, 1, [100, 100, 1]) == [17, 9, 5, 4]
    assert tokens_left(18, 2, [5, 0]) == [18, 13, 13]
    assert tokens_merged(8, 12, "decreasing")[0] == 16
    assert sum(tokens_merged(8, 5, "decreasing")) == 40
    state = source(patch_size=8, depth=2)
    dense = from_timm(state)
    arch = replace(dense.arch, args=dense.arch.args | {"merge": [100, 100]})
    assert ModelState(arch, dense.weights).build()(torch.randn(2, 3, 32, 32)).shape == (
        2,
        10,
    )
    with pytest.raises(
        ValueError, match="one number of tokens for each of the 2 blocks"
    ):
        replace(arch, args=arch.args | {"merge": [1]}).build()


def test_equal_tokens_merge_without_loss() -> None:
    """Pairs of equal tokens, each in A and in B: what remains says the same."""
    generator = torch.Generator().manual_seed(0)
    distinct = torch.randn(2, 4, 8, generator=generator)
    x = torch.cat([torch.randn(2, 1, 8), distinct.repeat_interleave(2, 1)], 1)
    merged, size = merge_tokens(x, None, x, 4, 1)
    assert merged.shape == (2, 5, 8)
    torch.testing.assert_close(merged[:, 1:], distinct)
    torch.testing.assert_close(merged[:, 0], x[:, 0])
    assert size[..., 0].tolist() == [[1, 2, 2, 2, 2]] * 2


def test_fewer_tokens_cost_fewer_operations(digits: Data, tmp_path: Path) -> None:
    state = source(patch_size=4, depth=3)
    gmacs = [
        count_gmacs(TokenMerging(r=r).run(state, context(digits, tmp_path)).arch, 32)
        for r in (0, 8, 16)
    ]
    assert gmacs[0] == count_gmacs(from_timm(state).arch, 32)
    assert gmacs[0] > 1.1 * gmacs[1] > 1.2 * gmacs[2]


@pytest.fixture(scope="module")
def exported(
    digits: Data, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Tensor, Tensor]:
    """An ONNX file of a model that merges, images, and the model's logits for them."""
    folder = tmp_path_factory.mktemp("exported")
    state = source("deit_tiny_distilled_patch16_224", patch_size=8, depth=2)
    merged = TokenMerging(r=3).run(state, context(digits, folder)).build()
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    write_onnx(merged, images, folder / "model.onnx", {})
    with torch.inference_mode():
        return folder / "model.onnx", images, merged(images)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_the_exported_file_merges_as_the_module_does(
    name: Any, exported: tuple[Path, Tensor, Tensor]
) -> None:
    pytest.importorskip(name)
    file, images, expected = exported
    chosen: Any = runtime(name)
    run = chosen.load_onnx(file, RuntimeOptions(runtime=name, batch_size=5))
    np.testing.assert_allclose(
        run.infer(images.numpy()), expected.numpy(), rtol=1e-3, atol=1e-4
    )


def test_it_follows_nvit_and_does_not_precede_it(digits: Data, tmp_path: Path) -> None:
    pruned, _ = prune(digits, tmp_path / "prune", source(patch_size=8))
    merged = TokenMerging(r=2).run(pruned, context(digits, tmp_path / "merge"))
    assert merged.arch.dims == pruned.arch.dims
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = slow_logits(pruned, [2, 2], images)
        torch.testing.assert_close(
            merged.build()(images), expected, rtol=1e-4, atol=1e-5
        )
    with pytest.raises(ValueError, match="put token_merging after nvit"):
        Nvit(epochs=1).check(merged.arch, digits.info)
