"""2:4 sparsity: the pattern, what keeps it through training, and what is said where no
kernel uses it.
"""

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.asp import (
    Asp,
    asp_masks,
    has_sparse_kernels,
    mask_2_of_4,
    with_sparse_kernels,
)
from compress.finetune import Finetune
from compress.stage import Context
from trainers.data.splits import Data
from trainers.models.arch import ModelState
from trainers.models.make import make_arch

CPU = torch.device("cpu")


def source(name: str = "deit_tiny_distilled_patch16_224") -> ModelState:
    args = {"patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}
    return ModelState.initialised(
        make_arch(name, num_classes=10, image_size=32, args=args), 3
    )


def context(data: Data, workdir: Path) -> Context:
    def find(name: str, checkpoint: Path | None) -> ModelState:
        raise AssertionError

    return Context(data, CPU, 5, workdir, find)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), ties=st.booleans())
def test_the_two_largest_of_every_four_stay(seed: int, ties: bool) -> None:
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed))
    if ties:
        weight = weight.round()
    mask = mask_2_of_4(weight)
    for row, kept in zip(weight.view(-1, 4), mask.view(-1, 4), strict=True):
        assert int(kept.sum()) == 2
        best = max(
            float(row[list(pair)].abs().sum()) for pair in combinations(range(4), 2)
        )
        assert float(row[kept].abs().sum()) == pytest.approx(best)
    assert torch.equal(mask_2_of_4(weight * mask) & (weight != 0), mask & (weight != 0))


def test_shapes_without_fours_are_refused() -> None:
    with pytest.raises(ValueError, match=r"columns divide by 4; got shape \(2, 6\)"):
        mask_2_of_4(torch.zeros(2, 6))


def test_all_layers_but_the_classifiers(
    digits: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, ctx = source(), context(digits, tmp_path)
    sparse = Asp().run(model, ctx)
    assert sparse.meta["asp"]["layers"] == [
        f"blocks.0.{layer}" for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ]
    for name, value in sparse.weights.items():
        layer = name.removesuffix(".weight")
        if layer in sparse.meta["asp"]["layers"]:
            assert float((value == 0).float().mean()) == 0.5
        else:
            assert torch.equal(value, model.weights[name])
    assert ctx.reported == {"sparse_layers": 4, "sparse_kernels": 0}
    assert "no kernels for 2:4 sparsity" in caplog.text


@pytest.mark.parametrize("scratch", [False, True])
def test_fine_tuning_keeps_the_zeros(
    scratch: bool, digits: Data, tmp_path: Path
) -> None:
    sparse = Asp().run(source(), context(digits, tmp_path / "asp"))
    options: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 40,
        "lr": 1e-2,
        "warmup": 0,
        "augment": "none",
    }
    tuned = Finetune(scratch=scratch, **options).run(
        sparse, context(digits, tmp_path / "tune")
    )
    masks = asp_masks(sparse)
    assert len(masks) == 4
    for name, keep in masks.items():
        assert not tuned.weights[name][~keep].any()
        assert tuned.weights[name][keep].all()
        assert not torch.equal(tuned.weights[name], sparse.weights[name])
    free = Finetune(**options).run(
        ModelState(sparse.arch, sparse.weights), context(digits, tmp_path / "free")
    )
    assert any(free.weights[name][~keep].any() for name, keep in masks.items())


def test_a_model_without_linear_layers_is_refused(digits: Data) -> None:
    with pytest.raises(ValueError, match="no Linear layer whose inputs divide by 4"):
        Asp().check(
            make_arch("resnet20_cifar", num_classes=10, image_size=32), digits.info
        )


@pytest.mark.gpu
def test_sparse_kernels_compute_the_same() -> None:
    device = torch.device("cuda")
    if not has_sparse_kernels(device):
        pytest.skip("a CUDA device without 2:4 kernels")
    arch = make_arch(
        "vit_tiny_patch16_224",
        num_classes=10,
        image_size=32,
        args={"embed_dim": 128, "num_heads": 2, "depth": 2},
    )
    model = ModelState.initialised(arch, 0)
    layers = [
        name.rpartition(".")[0]
        for name in model.weights
        if "attn." in name or "mlp." in name
    ]
    layers = list(dict.fromkeys(layers))
    weights = {
        name: (
            value * mask_2_of_4(value)
            if name.removesuffix(".weight") in layers
            else value
        )
        for name, value in model.weights.items()
    }
    dense = ModelState(arch, weights).build().to(device, torch.float16)
    sparse = with_sparse_kernels(dense, layers, torch.float16)
    images = torch.randn(64, 3, 32, 32, device=device, dtype=torch.float16)
    with torch.inference_mode():
        torch.testing.assert_close(sparse(images), dense(images), rtol=2e-2, atol=2e-2)
