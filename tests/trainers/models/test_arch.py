"""ModelState: saved and rebuilt exactly, damage noticed, hash over everything; make_arch
and its refusals.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers.config import SourceConfig
from trainers.models.arch import Arch, ModelState
from trainers.models.make import make_arch, own_image_size
from trainers.models.source import load_source


@pytest.fixture(scope="module")
def state() -> ModelState:
    arch = make_arch("resnet20_cifar", num_classes=3, image_size=16, args={"width": 2})
    return replace(
        ModelState.initialised(arch, 0),
        meta={"note": [1, 2.5, "x", None], "map": {"a": 1}},
    )


def equal(a: ModelState, b: ModelState) -> bool:
    same = a.weights.keys() == b.weights.keys() and all(
        torch.equal(a.weights[n], b.weights[n])
        and a.weights[n].dtype == b.weights[n].dtype
        for n in a.weights
    )
    return same and a.arch == b.arch and a.meta == b.meta


def test_round_trip(state: ModelState, tmp_path: Path) -> None:
    state.save(tmp_path / "new" / "folder")
    back = ModelState.load(tmp_path / "new" / "folder")
    assert equal(state, back)
    assert back.hash() == state.hash()
    assert {p.name for p in (tmp_path / "new" / "folder").iterdir()} == {
        "model.safetensors",
        "model.json",
    }


def test_round_trip_of_a_timm_model_with_odd_types(tmp_path: Path) -> None:
    args = {"embed_dim": 12, "num_heads": 2, "depth": 1}
    arch = make_arch("vit_tiny_patch16_224", num_classes=3, image_size=32, args=args)
    state = ModelState.initialised(arch, 0)
    weights = {n: t.bfloat16() if "fc" in n else t for n, t in state.weights.items()}
    weights["norm.bias"] = torch.arange(24.0)[::2].contiguous()
    state = replace(state, weights=weights)
    state.save(tmp_path)
    assert equal(state, ModelState.load(str(tmp_path)))


def test_saving_again_replaces(state: ModelState, tmp_path: Path) -> None:
    state.save(tmp_path)
    other = ModelState.initialised(state.arch, 1)
    other.save(tmp_path)
    assert equal(ModelState.load(tmp_path), other)


def test_build_gives_a_copy_in_eval_mode_and_leaves_the_generator_alone(
    state: ModelState,
) -> None:
    before = state.hash()
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    module = state.build()
    assert torch.equal(torch.rand(2), expected)
    assert not module.training
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.zero_()
    assert state.hash() == before


def test_initialised_is_seeded(state: ModelState) -> None:
    a, b, c = (ModelState.initialised(state.arch, seed) for seed in (7, 7, 8))
    assert a.hash() == b.hash() != c.hash()


def test_from_module_copies(state: ModelState) -> None:
    module = state.build()
    taken = ModelState.from_module(state.arch, module, {"k": 1})
    with torch.no_grad():
        next(module.parameters()).add_(1)
    assert taken.meta == {"k": 1}
    assert equal(replace(taken, meta=state.meta), state)


def test_hash_changes_with_any_change(state: ModelState) -> None:
    arch, weights = state.arch, state.weights
    first = weights["conv1.weight"].clone()
    first.view(-1)[5] = torch.nextafter(first.view(-1)[5], torch.tensor(9.0))
    zero, minus_zero = (
        {**weights, "bn1.bias": torch.full((2,), z)} for z in (0.0, -0.0)
    )
    variants = [
        state,
        replace(state, meta={}),
        replace(state, meta={**state.meta, "map": {"a": 2}}),
        replace(state, arch=replace(arch, name="resnet32_cifar")),
        replace(state, arch=replace(arch, builder="timm")),
        replace(state, arch=replace(arch, args={**arch.args, "width": 3})),
        replace(state, arch=replace(arch, dims={"layer1": 2})),
        replace(state, weights={**weights, "conv1.weight": first}),
        replace(
            state, weights={**weights, "conv1.weight": weights["conv1.weight"].double()}
        ),
        replace(
            state,
            weights={**weights, "conv1.weight": weights["conv1.weight"].reshape(-1)},
        ),
        replace(state, weights={**weights, "extra": torch.zeros(0)}),
        replace(state, weights={n: t for n, t in weights.items() if n != "bn1.bias"}),
        replace(
            state,
            weights={n.replace("bn1.bias", "bn9.bias"): t for n, t in weights.items()},
        ),
        replace(state, weights=minus_zero),
        replace(state, weights={**weights, "bn1.num_batches_tracked": torch.tensor(1)}),
    ]
    hashes = [v.hash() for v in variants]
    assert len(set(hashes)) == len(variants)
    assert replace(state, weights=zero).hash() == state.hash()


def test_hash_ignores_order_and_strides(state: ModelState) -> None:
    shuffled = dict(reversed(state.weights.items()))
    shuffled["conv1.weight"] = state.weights["conv1.weight"].to(
        memory_format=torch.channels_last
    )
    assert replace(state, weights=shuffled).hash() == state.hash()


def test_a_flipped_byte_is_noticed(state: ModelState, tmp_path: Path) -> None:
    state.save(tmp_path)
    path = tmp_path / "model.safetensors"
    good = path.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    values = range(header, len(good), max(1, (len(good) - header) // 40))
    for position in (0, 8, 30, *values, len(good) - 1):
        path.write_bytes(
            good[:position] + bytes([good[position] ^ 0x40]) + good[position + 1 :]
        )
        with pytest.raises(ValueError, match=str(tmp_path)):
            ModelState.load(tmp_path)
    path.write_bytes(good)
    assert equal(ModelState.load(tmp_path), state)


def test_truncated_missing_and_edited_files_are_noticed(
    state: ModelState, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="not a saved model: there is no such folder"):
        ModelState.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"it has no model\.json and no model\.saf"):
        ModelState.load(tmp_path)
    state.save(tmp_path)
    weights, note = tmp_path / "model.safetensors", tmp_path / "model.json"
    good_weights, good_note = weights.read_bytes(), note.read_text()

    weights.write_bytes(good_weights[:-5])
    with pytest.raises(ValueError, match="not a saved model"):
        ModelState.load(tmp_path)
    weights.write_bytes(good_weights)

    edited = json.loads(good_note)
    edited["meta"]["note"][0] = 2
    note.write_text(json.dumps(edited))
    with pytest.raises(ValueError, match="differs from its stored hash"):
        ModelState.load(tmp_path)

    for broken in (
        good_note[:-9],
        "[]",
        "{}",
        json.dumps({**json.loads(good_note), "arch": {"builder": "pickle"}}),
    ):
        note.write_text(broken)
        with pytest.raises(ValueError, match="not a saved model"):
            ModelState.load(tmp_path)


def test_arch_round_trip_and_unknown_builder(state: ModelState) -> None:
    value = json.loads(json.dumps(state.arch.to_json()))
    assert Arch.from_json(value) == state.arch
    with pytest.raises(
        ValueError, match="unknown model builder 'exec'; valid: timm, resnet_cifar"
    ):
        Arch.from_json({**value, "builder": "exec"})


def test_make_arch_fills_in_classes_and_image_size() -> None:
    assert make_arch("vit_tiny_patch16_224", num_classes=5, image_size=64).args == {
        "num_classes": 5,
        "img_size": 64,
    }
    assert make_arch("resnet18", num_classes=5, image_size=64).args == {
        "num_classes": 5
    }
    # its class takes any argument, its initialiser none of that name
    assert make_arch("hrnet_w18_small", num_classes=5, image_size=64).args == {
        "num_classes": 5
    }
    given = make_arch(
        "vit_tiny_patch16_224",
        num_classes=5,
        image_size=64,
        args={"img_size": 96, "drop_rate": 0.1},
    )
    assert given.args == {"num_classes": 5, "img_size": 96, "drop_rate": 0.1}
    arch = make_arch(
        "vit_tiny_patch16_224", num_classes=5, image_size=64, args={"depth": 1}
    )
    assert arch.build()(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "args", "match"),
    [
        (
            "vit_gigantic_nonsense",
            {},
            "unknown model 'vit_gigantic_nonsense'; valid: resnet20_cifar",
        ),
        ("resnet18", {"embed_dim": 3}, "resnet18.*embed_dim"),
        ("vit_tiny_patch16_224", {"widht": 3}, "vit_tiny_patch16_224.*widht"),
    ],
)
def test_make_arch_refuses(name: str, args: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make_arch(name, num_classes=5, image_size=32, args=args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "hf-hub:somebody/model"}, "model name 'hf-hub:somebody/model'"),
        ({"name": "local-dir:/etc"}, "model name"),
        ({"name": ""}, "model name"),
        ({"builder": "os.system"}, "unknown model builder"),
        ({"args": {"checkpoint_path": "x"}}, "'checkpoint_path' is not allowed"),
        ({"args": {"pretrained": True}}, "'pretrained' is not allowed"),
        ({"args": {"pretrained_cfg": {"url": "x"}}}, "'pretrained_cfg' is not allowed"),
        ({"args": {"a": [{"cache_dir": "x"}]}}, "'cache_dir' is not allowed"),
        ({"args": {"norm_layer": "../x.py"}}, "a path or an address is none"),
        ({"args": {"url": "https://example.com"}}, "a path or an address is none"),
        ({"args": {"depth": 10**9}}, "too large"),
        ({"dims": {"blocks": [10**9]}}, "too large"),
    ],
)
def test_a_description_from_a_file_reaches_nothing_else(change, message):
    whole = {"builder": "timm", "name": "vit_tiny_patch16_224", "args": {}, "dims": {}}
    with pytest.raises(ValueError, match=message):
        Arch.from_json(whole | change)


def test_whatever_a_constructor_raises_is_a_refusal() -> None:
    narrow = {"depths": [1, 1, 1, 1], "channels": [32, 64, 128, 128]}
    with pytest.raises(ValueError, match="'nfnet_l0' does not take") as caught:
        make_arch("nfnet_l0", num_classes=5, image_size=32, args=narrow)
    assert isinstance(caught.value.__cause__, IndexError)


def test_own_image_size_of_names_without_published_weights() -> None:
    assert own_image_size("vit_tiny_patch16_224.augreg_in21k") == 224
    assert own_image_size("vit_tiny_patch16_224.no_such_tag") == 224
    assert own_image_size("xception") == 224
    assert own_image_size("inception_v3") == 299
    assert own_image_size("resnet20_cifar") == 224


@pytest.mark.parametrize(
    "change",
    [
        lambda note: note.pop("hash"),
        lambda note: note["arch"].update(name="resnet_nothing"),
        lambda note: note["arch"]["args"].update(width=2.5),
        lambda note: note["arch"]["args"].update(num_classes=[3]),
    ],
)
def test_a_saved_model_with_another_description_is_refused(
    state: ModelState, tmp_path: Path, change: Any
) -> None:
    state.save(tmp_path)
    note = json.loads((tmp_path / "model.json").read_text())
    note["arch"] |= {
        "builder": "resnet_cifar",
        "name": "resnet20_cifar",
        "args": {"num_classes": 3},
    }
    change(note)
    (tmp_path / "model.json").write_text(json.dumps(note))
    config = SourceConfig(checkpoint=tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path.name}: (not a saved|the model)"):
        load_source(config, num_classes=3, image_size=32, seed=0)
