"""Auxiliary networks and their descendants as stages: exact expansion, every size, clear
refusals, resumption.
"""

import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from compress.cache import StageCache
from compress.finetune import task_objective
from compress.learngene.lets import LetsAux, LetsExpand
from compress.learngene.shared import spread
from compress.learngene.sweet import SweetAux, SweetExpand
from compress.learngene.sws import SwsAux, SwsExpand
from compress.learngene.tleg import TlegAux, TlegExpand
from compress.learngene.wave import WaveAux, WaveExpand
from compress.measure.layers import measure_layers
from compress.pipeline import NamedStage, Pipeline, check_pipeline, run_pipeline
from compress.selection.stage import WeightSelection
from compress.stage import Context, Stage
from trainers.config import DataConfig, SourceConfig
from trainers.data.splits import Data, DataInfo
from trainers.models.arch import Arch, ModelState
from trainers.models.make import make_arch
from trainers.training import fit as fit_module

CPU = torch.device("cpu")
SIZE: dict[str, Any] = {
    "patch_size": 16,
    "embed_dim": 16,
    "num_heads": 2,
    "epochs": 1,
    "batch_size": 40,
    "warmup": 0,
}
LETS = SIZE | {"gene_dim": 8, "embed_dim": 24, "num_heads": 3, "depth": 5}
SWS = SIZE | {"repeats": (2, 1, 1)}
TLEG = SIZE | {"depth": 3}
WAVE = SIZE | {"depth": 2, "template_dim": 8, "num_templates": 3}
SWEET = SIZE | {"depth": 2, "ranks": (4, 9, 10)}
FIT = {
    "batch_size": 40,
    "lr": 1e-2,
    "lr_scaling": "unscaled",
    "warmup": 0,
    "augment": "none",
}
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def no_teacher(name: str, checkpoint: Path | None) -> ModelState:
    raise AssertionError


def context(data: Data, workdir: Path, seed: int = 11) -> Context:
    return Context(data, CPU, seed, workdir, no_teacher)


def auxiliary(stage: Any, data: DataInfo, shaken: bool = True) -> ModelState:
    """What the stage would return, with random weights in place of trained ones."""
    arch = stage.check(make_arch("resnet20_cifar", num_classes=10, image_size=32), data)
    state, draw = ModelState.initialised(arch, 5), torch.Generator().manual_seed(1)
    weights = {
        name: t + 0.1 * shaken * torch.randn(t.shape, generator=draw)
        for name, t in state.weights.items()
    }
    return replace(state, weights=weights)


def logits(state: ModelState, images: Tensor = IMAGES) -> Tensor:
    with torch.inference_mode():
        return state.build()(images)


@pytest.mark.parametrize(
    ("aux", "expand"),
    [
        (
            LetsAux(**LETS),
            LetsExpand(mapping_layer=range(5), mapping_layer_coeff=(0, 0, 2, 2, 4)),
        ),
        (LetsAux(**LETS), LetsExpand(depth=5)),
        (LetsAux(**LETS, residual=0.1), LetsExpand(depth=5)),
        (LetsAux(**LETS | {"gene_dim": 24}), LetsExpand(depth=5)),
        (SwsAux(**SWS), SwsExpand(layers_source=(0, 0, 1, 2))),
        (SwsAux(**SWS, norm_before_pool=True), SwsExpand(layers_source=(0, 0, 1, 2))),
        (SwsAux(**SWS, norm_eps=0.1), SwsExpand(depth=4)),
        (TlegAux(**TLEG), TlegExpand()),
        (WaveAux(**WAVE), WaveExpand(epochs=0)),
        (SweetAux(**SWEET), SweetExpand(epochs=0)),
    ],
    ids=[
        "lets-maps",
        "lets",
        "lets-residual",
        "lets-no-new-width",
        "sws",
        "sws-norm-first",
        "sws-eps",
        "tleg",
        "wave",
        "sweet",
    ],
)
def test_the_full_descendant_is_the_auxiliary_network(
    aux: Stage, expand: Stage, digits: Data, tmp_path: Path
) -> None:
    state = auxiliary(aux, digits.info)
    whole = expand.run(state, context(digits, tmp_path))
    assert whole.arch.builder == "timm"
    torch.testing.assert_close(logits(whole), logits(state), atol=1e-5, rtol=1e-5)


def test_the_order_of_norm_and_pooling_can_differ(digits: Data, tmp_path: Path) -> None:
    """The published SWS pools after the norm in its auxiliary network, before it in its
    descendants.
    """
    state = auxiliary(SwsAux(**SWS, norm_before_pool=True), digits.info)
    other = SwsExpand(depth=4, norm_before_pool=False).run(
        state, context(digits, tmp_path)
    )
    assert (logits(other) - logits(state)).abs().max() > 1e-3
    vit: Any = other.build()
    tokens = vit.forward_features(IMAGES)  # timm's own norm is idle here
    by_hand = vit.head(vit.fc_norm(tokens).mean(1))
    torch.testing.assert_close(by_hand, logits(state), atol=1e-5, rtol=1e-5)


def vit_logits(
    weights: dict[str, Tensor],
    blocks: list[int],
    heads: int,
    eps: float,
    *,
    norm_first: bool,
) -> Tensor:
    """A ViT without class token from its definition, in float64; `blocks[l]` is the parameter
    set of layer l, and the final norm comes before the mean over tokens or after it.
    """
    w = {name: value.double() for name, value in weights.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    kernel = w["patch_embed.proj.weight"]
    side, width = kernel.shape[-1], kernel.shape[0]
    patches = IMAGES.double().unfold(2, side, side).unfold(3, side, side)
    patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    x = patches @ kernel.flatten(1).T + w["patch_embed.proj.bias"] + w["pos_embed"]
    for block in blocks:
        name = f"blocks.{block}"
        q, k, v = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv").chunk(3, dim=-1)
        mixed = []
        for i in range(heads):
            part = slice(i * width // heads, (i + 1) * width // heads)
            scores = q[..., part] @ k[..., part].mT / (width / heads) ** 0.5
            mixed.append(scores.softmax(-1) @ v[..., part])
        x = x + linear(torch.cat(mixed, dim=-1), f"{name}.attn.proj")
        hidden = linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        x = x + linear(hidden, f"{name}.mlp.fc2")
    x = norm(x, "fc_norm").mean(1) if norm_first else norm(x.mean(1), "fc_norm")
    return linear(x, "head")


def test_the_published_sws_networks(digits: Data, tmp_path: Path) -> None:
    """Auxiliary network: eps 1e-5, norm then pool. Descendant: eps 1e-6, pool then norm, and
    other heads of the same channels.
    """
    aux = SwsAux(**SWS | {"num_heads": 4}, norm_eps=1e-5, norm_before_pool=True)
    state = auxiliary(aux, digits.info)
    # small tokens, so that an epsilon shows
    small = {n: t * 0.02 if "embed" in n else t for n, t in state.weights.items()}
    state = replace(state, weights=small)
    expected = vit_logits(small, [0, 0, 1, 2], 4, 1e-5, norm_first=True)
    torch.testing.assert_close(logits(state).double(), expected, atol=2e-6, rtol=1e-5)
    expand = SwsExpand(
        layers_source=(0, 1, 1, 2, 2),
        num_heads=2,
        regroup_heads=True,
        norm_eps=1e-6,
        norm_before_pool=False,
    )
    descendant = expand.run(state, context(digits, tmp_path))
    expected = vit_logits(small, [0, 1, 1, 2, 2], 2, 1e-6, norm_first=False)
    torch.testing.assert_close(
        logits(descendant).double(), expected, atol=2e-6, rtol=1e-5
    )
    for other in ({"norm_eps": None}, {"norm_before_pool": None}, {"num_heads": 4}):
        changed = expand.model_copy(update=other).run(state, context(digits, tmp_path))
        assert (logits(changed).double() - expected).abs().max() > 1e-4, other


def test_training_itself_then_expansion(digits: Data, tmp_path: Path) -> None:
    """Not only random weights: after an epoch the identity still holds, and the learngene
    has moved.
    """
    stage = LetsAux(**LETS, augment="none")
    start = ModelState.initialised(
        make_arch("resnet20_cifar", num_classes=10, image_size=32), 0
    )
    ctx = context(digits, tmp_path)
    trained = stage.run(start, ctx)
    fresh = ModelState.initialised(trained.arch, ctx.seed)
    assert all(
        not torch.equal(t, fresh.weights[name]) for name, t in trained.weights.items()
    )
    whole = LetsExpand(depth=5).run(trained, context(digits, tmp_path))
    torch.testing.assert_close(logits(whole), logits(trained), atol=1e-5, rtol=1e-5)
    assert ctx.reported["aux_params"] == sum(
        t.numel() for t in trained.weights.values()
    )


def sizes() -> list[tuple[Any, Any, int, int]]:
    found: list[tuple[Any, Any, int, int]] = []
    found += [
        (LetsAux(**LETS), LetsExpand(width=w, depth=m), w, m)
        for w in (8, 16, 24)
        for m in (1, 2, 3, 4, 5, 7)
    ]
    found += [(SwsAux(**SWS), SwsExpand(depth=m), 16, m) for m in (3, 6)]
    found += [(SwsAux(**SWS), SwsExpand(layers_source=(2,)), 16, 1)]
    found += [(TlegAux(**TLEG), TlegExpand(depth=m), 16, m) for m in (1, 5)]
    found += [
        (WaveAux(**WAVE), WaveExpand(epochs=0, width=w, depth=m), w, m)
        for w, m in ((8, 1), (24, 3))
    ]
    return found + [
        (SweetAux(**SWEET), SweetExpand(epochs=0, width=w, depth=m), w, m)
        for w, m in ((8, 1), (24, 3))
    ]


def test_every_size_builds_trains_saves_and_loads_as_a_timm_model(
    digits: Data, tmp_path: Path
) -> None:
    known: dict[str, ModelState] = {}
    for i, (aux, expand, width, depth) in enumerate(sizes()):
        state = known.setdefault(repr(aux), auxiliary(aux, digits.info))
        descendant = expand.run(state, context(digits, tmp_path))
        module: Any = descendant.build().train()
        loss = nn.functional.cross_entropy(module(IMAGES), torch.tensor([1, 2, 3]))
        loss.backward()
        assert all(
            p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters()
        )
        with torch.no_grad():
            for p in module.parameters():
                p -= 0.01 * p.grad
        trained = ModelState.from_module(descendant.arch, module, descendant.meta)
        trained.save(tmp_path / str(i))
        other = timm.create_model(
            "vit_base_patch16_224",
            img_size=32,
            patch_size=16,
            embed_dim=width,
            depth=depth,
            num_heads=width // 8,
            num_classes=10,
            class_token=False,
            global_pool="avg",
        ).eval()
        other.load_state_dict(load_file(tmp_path / str(i) / "model.safetensors"))
        with torch.inference_mode():
            assert torch.equal(other(IMAGES), module.eval()(IMAGES))


@pytest.mark.parametrize(
    ("aux", "expand", "source"),
    [
        (SwsAux(**SWS), SwsExpand(layers_source=(0, 2, 2)), [0, 2, 2]),
        (SwsAux(**SWS), SwsExpand(depth=5), [0, 0, 1, 1, 2]),
        (LetsAux(**LETS), LetsExpand(mapping_layer=(0, 4), width=8), [0, 4]),
        (LetsAux(**LETS), LetsExpand(depth=3), [0, 1, 3]),
        (TlegAux(**TLEG), TlegExpand(), []),
        (WaveAux(**WAVE), WaveExpand(epochs=0, depth=3), [0, 0, 1]),
        (SweetAux(**SWEET), SweetExpand(epochs=0, scalers="fresh"), []),
    ],
)
def test_layers_tell_where_they_come_from(
    aux: Any, expand: Any, source: list[int], digits: Data, tmp_path: Path
) -> None:
    descendant = expand.run(auxiliary(aux, digits.info), context(digits, tmp_path))
    rows = [row for row in measure_layers(descendant) if row["kind"] == "block"]
    assert [row.get("source_layer") for row in rows] == (source or [None] * len(rows))


def other_data(digits: Data, tmp_path: Path, **changes: Any) -> Context:
    return context(replace(digits, info=replace(digits.info, **changes)), tmp_path)


@pytest.mark.parametrize(
    ("aux", "expand"),
    [(SwsAux(**SWS), SwsExpand(depth=4)), (TlegAux(**TLEG), TlegExpand())],
)
def test_the_head_is_copied_for_the_same_classes_only(
    aux: Any, expand: Any, digits: Data, tmp_path: Path
) -> None:
    state = auxiliary(aux, digits.info)
    assert torch.equal(
        expand.run(state, context(digits, tmp_path)).weights["head.weight"],
        state.weights["head.weight"],
    )
    ctx = other_data(digits, tmp_path, num_classes=4)
    fewer = expand.run(state, ctx)
    assert torch.equal(
        fewer.weights["head.weight"],
        ModelState.initialised(fewer.arch, ctx.seed).weights["head.weight"],
    )
    fresh = type(expand)(**expand.model_dump(exclude={"head"}), head="fresh").run(
        state, context(digits, tmp_path)
    )
    assert not torch.equal(fresh.weights["head.weight"], state.weights["head.weight"])


def test_the_grown_head_is_cut_or_left(digits: Data, tmp_path: Path) -> None:
    state = auxiliary(LetsAux(**LETS), digits.info)
    whole = LetsExpand(depth=2).run(state, context(digits, tmp_path))
    cut = LetsExpand(depth=2).run(state, other_data(digits, tmp_path, num_classes=4))
    for part in ("weight", "bias"):
        assert torch.equal(
            cut.weights[f"head.{part}"], whole.weights[f"head.{part}"][:4]
        )
    more = replace(digits.info, num_classes=11)
    with pytest.raises(
        ValueError, match="the data has 11 classes, the grown head 10; set head: fresh"
    ):
        LetsExpand(depth=2).check(state.arch, more)
    fresh = LetsExpand(depth=2, head="fresh").run(
        state, other_data(digits, tmp_path, num_classes=11)
    )
    assert fresh.weights["head.weight"].shape == (11, 24)


def test_positions_are_resampled_to_another_image_size(
    digits: Data, tmp_path: Path
) -> None:
    state = auxiliary(SwsAux(**SWS), digits.info)
    larger = SwsExpand(depth=3).run(state, other_data(digits, tmp_path, image_size=64))
    grid = state.weights["pos_embed"].reshape(1, 2, 2, 16).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(
        grid, size=(4, 4), mode="bicubic", antialias=True, align_corners=False
    )
    found = larger.weights["pos_embed"].reshape(1, 4, 4, 16).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected)
    assert logits(larger, torch.zeros(1, 3, 64, 64)).shape == (1, 10)


@pytest.mark.parametrize(
    ("aux", "expand", "message"),
    [
        (
            SWS,
            {"layers_source": (0, 3)},
            "layers_source names 3, but the auxiliary network has stages 0 to 2",
        ),
        (SWS, {"layers_source": (0, -1)}, "names -1"),
        (
            SWS,
            {"layers_source": (0, 1, 2), "depth": 4},
            "depth is 4, layers_source has 3 layers: they must agree",
        ),
        (SWS, {}, "the descendant's depth is not known"),
        (
            SWS,
            {"depth": 2},
            "depth 2 is less than the 3 stages; say which it uses in layers_source",
        ),
        (
            SWS,
            {"depth": 3, "num_heads": 4},
            "num_heads: it is 4, but the auxiliary network has 2; leave it out, or",
        ),
        (
            LETS,
            {"mapping_layer": (0, 5)},
            "mapping_layer names 5, but the auxiliary network has layers 0 to 4",
        ),
        (LETS, {"mapping_layer_coeff": (0, 6)}, "mapping_layer_coeff names 6"),
        (
            LETS,
            {"mapping_layer_coeff": (0, 1)},
            "names 1, but coefficient groups begin at even layers",
        ),
        (
            LETS,
            {"mapping_layer": (0, 1), "mapping_layer_coeff": (0,)},
            "has 2 layers, mapping_layer_coeff has 1 layers",
        ),
        (
            LETS,
            {"width": 12, "depth": 2},
            "width 12 must be a multiple of a head's 8 from 8 to 24",
        ),
        (LETS, {"width": 32, "depth": 2}, "width 32 must be a multiple"),
        (LETS, {}, "the descendant's depth is not known"),
    ],
)
def test_what_does_not_fit_is_said(
    aux: Any, expand: dict[str, Any], message: str, digits: Data
) -> None:
    first, then = (LetsAux, LetsExpand) if aux is LETS else (SwsAux, SwsExpand)
    arch = first(**aux).check(
        make_arch("resnet20_cifar", num_classes=10, image_size=32), digits.info
    )
    with pytest.raises(ValueError, match=message):
        then(**expand).check(arch, digits.info)


def test_a_dimension_where_a_list_should_be_is_explained() -> None:
    with pytest.raises(
        ValueError,
        match=r"a list with one number for each layer; .* belongs in search.space",
    ):
        SwsExpand.model_validate(
            {"layers_source": {"layer_map": {"layers": 3, "stages": 2}}}
        )


def test_an_expansion_needs_its_own_auxiliary_network(digits: Data) -> None:
    source = make_arch("resnet20_cifar", num_classes=10, image_size=32)
    stages = (
        NamedStage("aux", "sws_aux", SwsAux(**SWS)),
        NamedStage("grow", "lets_expand", LetsExpand(depth=2)),
    )
    with pytest.raises(
        ValueError,
        match=r"stages.grow: .* needs the auxiliary network of lets_aux .*; it got sws_vit",
    ):
        check_pipeline(source, stages, digits.info)
    with pytest.raises(
        ValueError, match=r"got resnet20_cifar \(resnet_cifar\); put tleg_aux before it"
    ):
        TlegExpand().check(source, digits.info)
    with pytest.raises(
        ValueError, match="patch_size: 64 pixels are more than the image's 32"
    ):
        SwsAux(**SWS | {"patch_size": 64}).check(source, digits.info)


def test_the_papers_map_is_the_default_one() -> None:
    assert spread(12, 5) == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4]


def test_weights_can_be_selected_from_an_auxiliary_network(
    digits: Data, tmp_path: Path
) -> None:
    """Expanded whole it is a timm ViT, of which weight selection takes a part."""
    whole = LetsExpand(depth=5).run(
        auxiliary(LetsAux(**LETS), digits.info), context(digits, tmp_path)
    )
    stage = WeightSelection(args={"embed_dim": 16, "num_heads": 2, "depth": 3})
    part = stage.run(whole, context(digits, tmp_path))
    assert torch.equal(
        part.weights["blocks.2.norm1.weight"][0],
        whole.weights["blocks.2.norm1.weight"][0],
    )


TEMPLATES = [(WaveAux(**WAVE), WaveExpand), (SweetAux(**SWEET), SweetExpand)]


@pytest.mark.parametrize(("aux", "expand"), TEMPLATES, ids=["wave", "sweet"])
def test_inherited_scalers_give_the_first_channels_of_evenly_spaced_layers(
    aux: Any, expand: Any, digits: Data, tmp_path: Path
) -> None:
    state, ctx = auxiliary(aux, digits.info), context(digits, tmp_path)
    whole = expand(epochs=0).run(state, ctx).weights
    narrow = expand(epochs=0, width=8, depth=4).run(state, ctx).weights
    for layer, source in enumerate((0, 0, 1, 1)):
        own, given = f"blocks.{layer}", f"blocks.{source}"
        torch.testing.assert_close(
            narrow[f"{own}.attn.proj.weight"],
            whole[f"{given}.attn.proj.weight"][:8, :8],
        )
        torch.testing.assert_close(  # of k alone
            narrow[f"{own}.attn.qkv.bias"][8:16], whole[f"{given}.attn.qkv.bias"][16:24]
        )
    torch.testing.assert_close(narrow["head.weight"], whole["head.weight"][:, :8])
    wide = expand(epochs=0, width=24, depth=2).run(state, ctx).weights
    torch.testing.assert_close(wide["pos_embed"][..., :16], whole["pos_embed"])
    assert wide["pos_embed"][..., 16:].std() > 0
    fresh = expand(epochs=0, scalers="fresh").run(state, ctx).weights
    assert not torch.equal(fresh["pos_embed"], whole["pos_embed"])


def test_trained_scalers_of_wave_keep_to_the_templates(
    digits: Data, tmp_path: Path
) -> None:
    """Every block of a trained descendant is a sum of multiples of the auxiliary network's
    templates, which have not moved; with fewer templates it would be none.
    """
    state, ctx = auxiliary(WaveAux(**WAVE), digits.info), context(digits, tmp_path)
    found = WaveExpand(width=24, depth=3, **FIT).run(state, ctx)
    before = WaveExpand(epochs=0, width=24, depth=3).run(state, ctx)
    for name in ("attn.proj.weight", "mlp.fc2.weight", "norm1.bias"):
        value = found.weights[f"blocks.2.{name}"]
        assert (value - before.weights[f"blocks.2.{name}"]).abs().max() > 1e-3
        templates = state.weights[f"templates.{name.replace('.', '_')}"]
        tiles = value
        for dim, size in enumerate(templates.shape[1:]):
            tiles = tiles.unfold(dim, size, size)
        blocks = tiles.reshape(-1, templates[0].numel())
        for count, exact in ((3, True), (2, False)):
            basis = templates[:count].flatten(1)
            rest = blocks - blocks @ torch.linalg.pinv(basis) @ basis
            assert (rest.abs().max() < 1e-5) == exact, name
    # scalers of a width of 24: 3 templates times as many as a parameter has blocks
    matrices, vectors = 3 * 9 * 6, 3 * 3 * 10
    outer = 3 * (3 + 3 + 3 + 3 + 3 + 3 + 1)
    assert ctx.reported["scaler_params"] == 3 * (matrices + vectors) + outer


def test_trained_scalers_of_sweet_keep_to_the_core(
    digits: Data, tmp_path: Path
) -> None:
    """The matrices of a trained descendant have the core's ranks in all three ways."""
    state, ctx = auxiliary(SweetAux(**SWEET), digits.info), context(digits, tmp_path)
    found = SweetExpand(width=24, depth=3, **FIT).run(state, ctx)
    before = SweetExpand(epochs=0, width=24, depth=3).run(state, ctx)
    assert found.hash() != before.hash()
    layers: list[Tensor] = []
    for i in range(3):
        block = {
            name.removeprefix(f"blocks.{i}."): value.double()
            for name, value in found.weights.items()
        }
        layers += block["attn.qkv.weight"].chunk(3)
        layers += [block["attn.proj.weight"]]
        layers += block["mlp.fc1.weight"].chunk(4)
        layers += block["mlp.fc2.weight"].chunk(4, dim=1)
    tensor = torch.stack(layers)
    for mode, rank in enumerate(SWEET["ranks"]):
        unfolded = tensor.movedim(mode, 0).flatten(1)
        assert torch.linalg.matrix_rank(unfolded, rtol=1e-5) == rank
    assert ctx.reported["scaler_params"] == 3 * (12 + 13) * 4 + 24 * (9 + 10)


@pytest.mark.parametrize(("aux", "expand"), TEMPLATES, ids=["wave", "sweet"])
def test_other_classes_and_image_sizes_of_templates(
    aux: Any, expand: Any, digits: Data, tmp_path: Path
) -> None:
    """A new head is trained with the scalers; positions are resampled."""
    state = auxiliary(aux, digits.info)
    ctx = other_data(digits, tmp_path, image_size=64, num_classes=4)
    larger = expand(epochs=0).run(state, ctx)
    assert larger.weights["pos_embed"].shape == (1, 16, 16)
    assert logits(larger, torch.zeros(1, 3, 64, 64)).shape == (1, 4)
    same = expand(epochs=0).run(state, context(digits, tmp_path))
    grid = same.weights["pos_embed"].reshape(1, 2, 2, 16).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(
        grid, size=(4, 4), mode="bicubic", antialias=True, align_corners=False
    )
    found = larger.weights["pos_embed"].reshape(1, 4, 4, 16).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected)
    fresh = expand(head="fresh", **FIT)
    arch = fresh.network_arch(state.arch, digits.info)
    assert arch.args["learn"] == ["scalers", "head"]
    assert expand(**FIT).network_arch(state.arch, digits.info).args["learn"] == [
        "scalers"
    ]


@pytest.mark.parametrize(
    ("aux", "expand", "message"),
    [
        (
            WaveAux(**WAVE | {"template_dim": 16}),
            WaveExpand(width=24),
            "width 24 must be a multiple of the templates' 16",
        ),
        (
            SweetAux(**SWEET),
            SweetExpand(width=12),
            "width 12 must be a multiple of a head's 8",
        ),
        (
            WaveAux(**WAVE),
            WaveExpand(batch_size=10_000),
            "batch_size",
        ),
    ],
)
def test_sizes_that_templates_do_not_give(
    aux: Any, expand: Any, message: str, digits: Data
) -> None:
    state = auxiliary(aux, digits.info)
    with pytest.raises(ValueError, match=message):
        expand.check(state.arch, digits.info)


class Fixed(nn.Module):
    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, images: Tensor) -> Tensor:
        return self.output


@pytest.mark.parametrize(("alpha", "tau"), [(1.0, 1.0), (0.25, 3.0)])
def test_the_auxiliary_networks_loss_is_deits(
    alpha: float, tau: float, digits: Data, tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    z, t, labels = draw.normal(size=(6, 10)), draw.normal(size=(6, 10)), np.arange(6)
    stage = SwsAux(
        **SWS,
        label_smoothing=0,
        distill={"teacher": "source", "kind": "soft", "alpha": alpha, "tau": tau},
    )
    ctx = context(digits, tmp_path)
    ctx.teacher = lambda name, checkpoint=None: Fixed(torch.tensor(t))  # type: ignore[method-assign]
    objective = task_objective(stage, stage.distill, nn.Identity(), ctx)
    found = objective(
        Fixed(torch.tensor(z)), torch.zeros(6, 3, 4, 4), torch.tensor(labels)
    ).item()

    def softmax(x: np.ndarray) -> np.ndarray:
        return np.exp(x) / np.exp(x).sum(1, keepdims=True)

    p, q = softmax(t / tau), softmax(z / tau)
    divergence = sum(
        p[b, c] * np.log(p[b, c] / q[b, c]) for b in range(6) for c in range(10)
    ) / (6 * 10)
    labels_loss = -np.mean([np.log(softmax(z)[b, labels[b]]) for b in range(6)])
    assert found == pytest.approx(
        (1 - alpha) * labels_loss + alpha * tau**2 * divergence
    )


def test_killed_in_the_auxiliary_stage_it_goes_on(
    digits_config: DataConfig,
    data_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A real SIGKILL; the next run trains the epochs that are left, to the bits of an
    undisturbed run.
    """
    log, train_epoch = tmp_path / "log", fit_module._Fit.train_epoch

    def logged(self: Any) -> dict[str, Any]:
        with log.open("a") as file:
            file.write(f"{self.epoch} ")
        return train_epoch(self)

    monkeypatch.setattr(fit_module._Fit, "train_epoch", logged)
    distill = {"teacher": "source", "kind": "soft", "alpha": 1.0}
    aux = SwsAux(**SWS | {"epochs": 5, "augment": "none", "distill": distill})
    stages = (
        NamedStage("sws_aux", "sws_aux", aux),
        NamedStage("e", "sws_expand", SwsExpand(depth=4)),
    )
    pipeline = Pipeline(
        SourceConfig(model="resnet20_cifar", args={"width": 4}),
        digits_config,
        stages,
        0,
    )

    def go(folder: str) -> str:
        cache = StageCache(tmp_path / folder)
        return run_pipeline(
            pipeline, cache=cache, data_cache=data_cache, device=CPU
        ).model.hash()

    victim = multiprocessing.get_context("fork").Process(target=go, args=("killed",))
    victim.start()
    while not (log.exists() and "2" in log.read_text()):
        time.sleep(0.005)
    os.kill(victim.pid or 0, signal.SIGKILL)
    victim.join()
    assert log.read_text() == "0 1 2 "
    log.unlink()
    resumed = go("killed")
    assert log.read_text() == "2 3 4 "
    assert go("whole") == resumed


def test_arch_of_a_descendant_is_plain_timm(digits: Data) -> None:
    arch = LetsExpand(width=16, depth=3).check(
        auxiliary(LetsAux(**LETS), digits.info).arch, digits.info
    )
    assert arch == Arch(
        "timm",
        "vit_base_patch16_224",
        {
            "num_classes": 10,
            "img_size": 32,
            "patch_size": 16,
            "embed_dim": 16,
            "depth": 3,
            "num_heads": 2,
            "class_token": False,
            "global_pool": "avg",
        },
    )
