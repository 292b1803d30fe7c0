"""PrunedVit: timm's logits at full dimensions, a hand-written forward at uneven ones, and
the shapes of ReViT.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.codec.arch import arch_tensors
from compress.finetune import Finetune
from compress.measure.model import count_gmacs
from compress.selection.random_init import RandomInit
from compress.selection.stage import WeightSelection
from trainers.config import SourceConfig
from trainers.data.splits import DataInfo
from trainers.models.arch import Arch, ModelState
from trainers.models.from_timm import check_vit, dense_arch, from_timm
from trainers.models.make import make_arch
from trainers.models.parameters import BLOCK_DIMS
from trainers.models.revit import revit_arch
from trainers.models.source import load_source

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 8}
UNEVEN = {
    "embed": 12,
    "heads": [2, 3, 1],
    "qk": [4, 2, 7],
    "v": [4, 5, 3],
    "mlp": [10, 1, 33],
}
INFO = DataInfo(num_classes=5, image_size=32, num_train=100)


def noisy(arch: Arch, seed: int = 0) -> ModelState:
    """Every parameter random, also those that start at 0 or 1."""
    state = ModelState.initialised(arch, seed)
    generator = torch.Generator().manual_seed(seed)
    return replace(
        state,
        weights={
            n: w + 0.3 * torch.randn(w.shape, generator=generator)
            for n, w in state.weights.items()
        },
    )


def uneven(**args: Any) -> Arch:
    base = {"num_classes": 5, "img_size": 16, "patch_size": 8, "scale": 0.3}
    return Arch("pruned_vit", "uneven", base | args, UNEVEN)


def images(size: int | list[int], n: int = 3) -> Tensor:
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "size", "args"),
    [
        ("vit_tiny_patch16_224", 32, {}),
        (
            "vit_tiny_patch16_224",
            24,
            {"patch_size": 4, "num_heads": 2, "mlp_ratio": 1.5, "qkv_bias": False},
        ),
        ("vit_tiny_patch16_224", 32, {"global_pool": "avg"}),
        ("vit_tiny_patch16_224", 32, {"global_pool": "avg", "class_token": False}),
        ("vit_tiny_patch16_224", 32, {"global_pool": "avg", "fc_norm": False}),
        ("vit_tiny_patch16_224", 32, {"fc_norm": True, "no_embed_class": True}),
        (
            "vit_tiny_patch16_224",
            [16, 32],
            {"img_size": [16, 32], "patch_size": [8, 4]},
        ),
        ("deit_tiny_distilled_patch16_224", 32, {}),
        ("deit_tiny_distilled_patch16_224", 16, {"patch_size": 4, "depth": 1}),
        ("deit3_small_patch16_224", 32, {}),
    ],
)
def test_same_logits_as_timm(
    name: str, size: Any, args: dict[str, Any], tmp_path: Path
) -> None:
    arch = make_arch(
        name,
        num_classes=5,
        image_size=32 if isinstance(size, list) else size,
        args=TINY | args,
    )
    state = noisy(arch)
    before = state.hash()
    dense = from_timm(state)
    assert state.hash() == before
    assert dense.arch == dense_arch(arch)
    dense.save(tmp_path)
    loaded = ModelState.load(tmp_path)
    with torch.inference_mode():
        expected, found = state.build()(images(size)), loaded.build()(images(size))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert torch.equal(found, dense.build()(images(size)))
    if "deit3" not in name:
        # every parameter found its place: as many, and qkv in three
        assert sum(w.numel() for w in dense.weights.values()) == sum(
            w.numel() for w in state.weights.values()
        )


def test_check_vit_gives_dims() -> None:
    arch = make_arch(
        "deit_small_distilled_patch16_224", num_classes=1000, image_size=224
    )
    twelve = {"heads": 6, "qk": 64, "v": 64, "mlp": 1536}
    assert check_vit(arch) == {
        "embed": 384,
        **{name: [value] * 12 for name, value in twelve.items()},
    }
    assert check_vit(uneven()) == UNEVEN
    state = ModelState.initialised(uneven(), 0)
    assert from_timm(state) is state


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("resnet18", {}, "it is a ResNet"),
        ("swin_tiny_patch4_window7_224", {"img_size": 224}, "SwinTransformer"),
        ("vit_tiny_patch16_224", {"qk_norm": True}, "qk_norm"),
        ("vit_tiny_patch16_224", {"scale_mlp_norm": True}, "scale_mlp_norm"),
        ("vit_tiny_patch16_224", {"reg_tokens": 2}, "register tokens"),
        ("vit_tiny_patch16_224", {"pre_norm": True}, "pre_norm"),
        ("vit_tiny_patch16_224", {"global_pool": "map"}, "attention pooling"),
        ("vit_tiny_patch16_224", {"global_pool": "max"}, "global_pool 'max'"),
        ("vit_tiny_patch16_224", {"pos_embed": "none"}, "no position embedding"),
        ("vit_tiny_patch16_224", {"final_norm": False}, "final norm"),
        ("vit_tiny_patch16_224", {"dynamic_img_size": True}, "dynamic_img_size"),
        ("vit_tiny_patch16_224", {"attn_drop_rate": 0.1}, "attn_drop_rate"),
        ("vit_tiny_patch16_224", {"pos_drop_rate": 0.1}, "pos_drop_rate"),
        ("vit_tiny_patch16_224", {"proj_bias": False}, "proj_bias"),
        ("vit_tiny_patch16_224", {"act_layer": "relu"}, "MLP"),
        ("vit_tiny_patch16_224", {"norm_layer": "rmsnorm"}, "RmsNorm"),
        ("vit_base_patch16_18x2_224", {"embed_dim": 48}, "ParallelThingsBlock"),
        ("vit_tiny_r_s16_p8_224", {}, "patch embedding"),
    ],
)
def test_refuses_what_it_cannot_repeat(
    name: str, args: dict[str, Any], message: str
) -> None:
    small = {"depth": 1} if name.startswith("vit") else {}
    arch = Arch("timm", name, {"num_classes": 5, **small, **args})
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        check_vit(arch)


def forward_by_hand(
    state: ModelState, x: Tensor, *, distilled: bool, mean_pool: bool, scale: float
) -> Tensor:
    """The network written out, with an explicit softmax and a loop over heads."""
    w = state.weights

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        normed = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
        return normed * w[f"{name}.weight"] + w[f"{name}.bias"]

    kernel = w["patch_embed.proj.weight"]
    p = kernel.shape[-1]
    patches = x.unfold(2, p, p).unfold(3, p, p)  # B, C, rows, columns, p, p
    tokens = (
        torch.einsum("bcrsij,ecij->brse", patches, kernel).flatten(1, 2)
        + w["patch_embed.proj.bias"]
    )
    prefix = [w["cls_token"]] + ([w["dist_token"]] if distilled else [])
    z = (
        torch.cat([*(t.expand(len(x), 1, -1) for t in prefix), tokens], 1)
        + w["pos_embed"]
    )
    for i, heads in enumerate(UNEVEN["heads"]):  # type: ignore[arg-type]
        qk, v = UNEVEN["qk"][i], UNEVEN["v"][i]  # type: ignore[index]
        y = norm(z, f"blocks.{i}.norm1")
        q, k, values = (linear(y, f"blocks.{i}.attn.{part}") for part in "qkv")
        outs = []
        for h in range(heads):
            scores = (
                q[..., h * qk : (h + 1) * qk]
                @ k[..., h * qk : (h + 1) * qk].transpose(1, 2)
                * scale
            )
            odds = torch.exp(scores - scores.amax(-1, keepdim=True))
            outs.append(
                odds / odds.sum(-1, keepdim=True) @ values[..., h * v : (h + 1) * v]
            )
        z = z + linear(torch.cat(outs, -1), f"blocks.{i}.attn.proj")
        hidden = linear(norm(z, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        z = z + linear(hidden, f"blocks.{i}.mlp.fc2")
    if mean_pool:
        return linear(norm(z[:, len(prefix) :].mean(1), "fc_norm"), "head")
    z = norm(z, "norm")
    logits = linear(z[:, 0], "head")
    return (logits + linear(z[:, 1], "head_dist")) / 2 if distilled else logits


@pytest.mark.parametrize(
    ("distilled", "mean_pool"), [(False, False), (True, False), (False, True)]
)
def test_uneven_dimensions_by_hand(
    distilled: bool, mean_pool: bool, tmp_path: Path
) -> None:
    arch = uneven(distilled=distilled, global_pool="avg" if mean_pool else "token")
    state = noisy(arch)
    state.save(tmp_path)
    with torch.inference_mode():
        found = ModelState.load(tmp_path).build()(images(16))
        expected = forward_by_hand(
            state, images(16), distilled=distilled, mean_pool=mean_pool, scale=0.3
        )
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert state.weights["blocks.1.attn.q.weight"].shape == (6, 12)
    assert state.weights["blocks.1.attn.v.weight"].shape == (15, 12)
    assert state.weights["blocks.1.attn.proj.weight"].shape == (12, 15)


@pytest.mark.parametrize(
    "name", ["deit_tiny_distilled_patch16_224", "vit_tiny_patch16_224"]
)
def test_trains_as_timm_does(name: str) -> None:
    """Both heads while distilling, the same stochastic depth from the same generator, the
    same gradients.
    """
    arch = make_arch(
        name,
        num_classes=5,
        image_size=32,
        args=TINY | {"drop_path_rate": 0.4, "drop_rate": 0.1},
    )
    state = noisy(arch)
    outputs, grads = [], []
    for model in (state, from_timm(state)):
        module: Any = model.build().train()
        if "distilled" in name:
            assert isinstance(module(images(32)), Tensor)
            module.set_distilled_training(True)
        torch.manual_seed(3)
        out = module(images(32))
        outputs.append(torch.cat(out if isinstance(out, tuple) else (out,)))
        assert len(outputs[-1]) == (6 if "distilled" in name else 3)
        outputs[-1].square().sum().backward()
        grads.append({n: p.grad for n, p in module.named_parameters()})
        assert isinstance(module.eval()(images(32)), Tensor)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        grads[1]["pos_embed"], grads[0]["pos_embed"], rtol=1e-4, atol=1e-4
    )
    parts = torch.cat([grads[1][f"blocks.0.attn.{part}.weight"] for part in "qkv"])
    torch.testing.assert_close(
        parts, grads[0]["blocks.0.attn.qkv.weight"], rtol=1e-4, atol=1e-4
    )


def test_layers_for_the_optimiser_are_timms() -> None:
    arch = make_arch(
        "deit_tiny_distilled_patch16_224", num_classes=5, image_size=32, args=TINY
    )
    ours: Any = dense_arch(arch).build()
    theirs: Any = arch.build()
    assert ours.group_matcher() == theirs.group_matcher()
    assert ours.no_weight_decay() == theirs.no_weight_decay() - {"reg_token"}
    assert ours.get_classifier() == (ours.head, ours.head_dist)


def test_initialised_like_timm() -> None:
    arch = make_arch(
        "vit_tiny_patch16_224",
        num_classes=50,
        image_size=32,
        args=TINY | {"embed_dim": 96},
    )
    theirs, ours = (
        ModelState.initialised(arch, 0),
        ModelState.initialised(dense_arch(arch), 0),
    )
    for name in ("blocks.0.attn.proj", "blocks.1.mlp.fc1", "head", "patch_embed.proj"):
        a, b = theirs.weights[f"{name}.weight"], ours.weights[f"{name}.weight"]
        assert a.std() == pytest.approx(float(b.std()), rel=0.1)
    assert ours.weights["blocks.0.attn.q.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert not ours.weights["blocks.0.attn.q.bias"].any()
    assert ours.weights["pos_embed"].std() == pytest.approx(0.02, rel=0.2)


REVIT_T = {
    "embed": 176,
    "heads": [10, 2, 2, 4, 4, 4, 4, 4, 4, 2, 2, 10],
    "qk": [16, 8, 8, 16, 16, 16, 16, 16, 16, 8, 8, 16],
    "v": [64] * 12,
    "mlp": [528, 528, 528, 1056, 1056, 1056, 1056, 1056, 1056, 528, 528, 528],
}
REVIT_S = {
    "embed": 384,
    "heads": [10, 4, 4, 8, 8, 8, 8, 8, 8, 4, 4, 10],
    "qk": [32, 16, 16, 32, 32, 32, 32, 32, 32, 16, 16, 32],
    "v": [64] * 12,
    "mlp": [1152, 1152, 1152, 2304, 2304, 2304, 2304, 2304, 2304, 1152, 1152, 1152],
}


def test_revit_shapes_from_one_number() -> None:
    for dims in (REVIT_T, REVIT_S):
        arch = make_arch(
            "revit",
            num_classes=1000,
            image_size=224,
            args={"embed": dims["embed"], "distilled": True},
        )
        assert arch.dims == dims
        assert arch.args["scale"] == 64**-0.5
    narrow = revit_arch(48, num_classes=5, img_size=32).dims
    assert narrow["heads"] == [
        10,
        2,
        2,
        4,
        4,
        4,
        4,
        4,
        4,
        2,
        2,
        10,
    ], "at least one group"
    assert narrow["qk"] == [16, 8, 8, 16, 16, 16, 16, 16, 16, 8, 8, 16]


def test_revit_from_explicit_lists_and_from_a_spec() -> None:
    lists = {name: UNEVEN[name] for name in BLOCK_DIMS}
    args = {"embed": 12, **lists, "patch_size": 8, "drop_path_rate": 0.1}
    state = load_source(
        SourceConfig(model="revit", args=args), num_classes=5, image_size=16, seed=3
    )
    assert state.arch.dims == UNEVEN
    assert Arch.from_json(json.loads(json.dumps(state.arch.to_json()))) == state.arch
    assert state.build()(images(16)).shape == (3, 5)
    only_v = revit_arch(176, v=[32] * 12, num_classes=5, img_size=32)
    assert only_v.dims == REVIT_T | {"v": [32] * 12}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "needs its width"),
        ({"embed": 16.5}, "embed is an integer"),
        ({"embed": 16, "heads": [2, 2]}, "one entry a block"),
        ({"embed": 16, "v": [0] * 12}, "v: dimensions are integers of at least 1"),
        ({"embed": 16, "depth": 3}, "unexpected keyword argument 'depth'"),
        ({"embed": 16, "patch_size": 64}, "patch is larger"),
        ({"embed": 16, "distilled": True, "global_pool": "avg"}, "two tokens"),
        ({"embed": 16, "class_token": False}, "needs class_token"),
        ({"embed": 16, "global_pool": "max"}, "global_pool is"),
    ],
)
def test_revit_refusals(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_arch("revit", num_classes=5, image_size=32, args=args)


def test_checkpoint_of_another_label_set_and_image_size(tmp_path: Path) -> None:
    """Both heads of a distilled model stay fresh, positions are resampled, the rest is loaded."""
    args = {
        "embed": 16,
        "patch_size": 8,
        "distilled": True,
        **{n: UNEVEN[n] for n in BLOCK_DIMS},
    }
    state = noisy(make_arch("revit", num_classes=3, image_size=16, args=args))
    state.save(tmp_path)
    source = SourceConfig(
        model="revit", args=args, checkpoint=tmp_path / "model.safetensors"
    )
    loaded = load_source(source, num_classes=5, image_size=32, seed=0)
    assert loaded.weights["head_dist.weight"].shape == (5, 16)
    assert loaded.weights["pos_embed"].shape == (1, 16 + 2, 16)
    assert torch.equal(
        loaded.weights["blocks.1.attn.v.weight"],
        state.weights["blocks.1.attn.v.weight"],
    )
    of_folder = load_source(
        source.model_copy(update={"checkpoint": tmp_path}),
        num_classes=5,
        image_size=32,
        seed=0,
    )
    assert all(
        torch.equal(value, of_folder.weights[name])
        for name, value in loaded.weights.items()
    )


def test_stages_take_it() -> None:
    arch = uneven(img_size=32)
    assert RandomInit().check(arch, INFO) == arch, (
        "training from scratch keeps the shape"
    )
    assert (
        RandomInit(args={"drop_path_rate": 0.1})
        .check(arch, INFO)
        .args["drop_path_rate"]
        == 0.1
    )
    stage = Finetune(drop=0.1, drop_path=0.2, epochs=1, batch_size=10, warmup=0)
    assert stage.check(arch, INFO) == arch
    with pytest.raises(
        ValueError, match="VisionTransformer and PrunedVit are different families"
    ):
        WeightSelection(model="revit", args={"embed": 16}).check(
            make_arch("vit_tiny_patch16_224", num_classes=5, image_size=32), INFO
        )
    names = arch_tensors(arch, 80)
    assert "blocks.0.attn.q.weight" in names.indexable
    assert names.shapes["blocks.2.attn.proj.weight"] == (12, 3)


def test_macs_by_hand() -> None:
    arch = uneven(distilled=True)
    tokens, embed = 4 + 2, 12
    macs = 4 * embed * 3 * 64 + 2 * embed * 5
    for heads, qk, v, mlp in zip(*(UNEVEN[name] for name in BLOCK_DIMS), strict=True):  # type: ignore[call-overload]
        macs += (
            tokens * embed * heads * (2 * qk + 2 * v)
            + tokens**2 * heads * (qk + v)
            + 2 * tokens * embed * mlp
        )
    assert count_gmacs(arch, 16) == pytest.approx(macs / 1e9, rel=1e-12)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traces_and_exports() -> None:
    module = noisy(uneven(distilled=True)).build()
    with torch.no_grad():
        traced = torch.jit.trace(module, images(16))
        exported = torch.export.export(
            module, (images(16),), dynamic_shapes=({0: torch.export.Dim("b")},)
        ).module()
        expected = module(images(16, 7))
        torch.testing.assert_close(traced(images(16, 7)), expected)
        torch.testing.assert_close(exported(images(16, 7)), expected)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    module = noisy(uneven(distilled=True)).build()
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        module,
        (images(16),),
        path,
        input_names=["images"],
        dynamic_axes={"images": {0: "b"}},
        dynamo=False,
    )  # type: ignore[call-overload]
    found = runtime.InferenceSession(path).run(None, {"images": images(16, 7).numpy()})[
        0
    ]
    with torch.no_grad():
        torch.testing.assert_close(
            torch.from_numpy(found), module(images(16, 7)), rtol=1e-5, atol=1e-5
        )
