"""Checkpoints as people have them: what is read, what is said about it, what is refused."""

import argparse
import collections
import datetime
import enum
import json
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from safetensors.torch import save_file
from torch import Tensor, nn

import trainers.models.make
import trainers.models.source
from trainers.config import SourceConfig
from trainers.models.arch import ModelState
from trainers.models.source import SourceFacts, load_source, source_facts
from trainers.timm_library import timm

ARGS = {"patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2}
NAME = "vit_tiny_patch16_224"
CLASSES, IMAGE_PX = 5, 16

Weights = dict[str, Tensor]


def vit(**changes: Any) -> nn.Module:
    """A small ViT of timm, at random but always the same."""
    torch.manual_seed(7)
    args = {"num_classes": CLASSES, "img_size": IMAGE_PX, **ARGS, **changes}
    return timm.create_model(args.pop("name", NAME), **args)


def weights(**changes: Any) -> Weights:
    return dict(vit(**changes).state_dict())


def facts(path: Path, trained: bool = True, **changes: Any) -> SourceFacts:
    config = SourceConfig(
        **{"model": NAME, "args": ARGS, "checkpoint": path, **changes}
    )
    return source_facts(config, CLASSES, IMAGE_PX, trained=trained)


def loaded(path: Path, **changes: Any) -> Weights:
    config = SourceConfig(
        **{"model": NAME, "args": ARGS, "checkpoint": path, **changes}
    )
    state = load_source(config, num_classes=CLASSES, image_size=IMAGE_PX, seed=0)
    return state.weights


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) for name, value in one.items()
    )


def saved(
    folder: Path, content: Any, name: str = "weights.pth", **options: Any
) -> Path:
    torch.save(content, folder / name, **options)
    return folder / name


# ------------------------------------------------------------------ what is read


class Mode(enum.Enum):
    """Training programs save options of their own classes."""

    FAST = "fast"


class Options:
    """A class that whoever reads the file does not have."""

    def __init__(self) -> None:
        self.lr, self.mode = 0.1, Mode.FAST


def of_timm_train() -> dict[str, Any]:
    """What timm's script writes, and what its users add."""
    optimizer = torch.optim.AdamW(vit().parameters())
    return {
        "epoch": 12,
        "arch": NAME,
        "state_dict": weights(),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(
            lr=0.1, out=pathlib.Path("out"), mode=Mode.FAST, dtype=torch.bfloat16
        ),
        "metric": np.float64(91.5),
        "best": np.int64(3),
        "curve": np.arange(3.0),
        "when": datetime.datetime(2024, 1, 1),
        "history": collections.defaultdict(list, {"loss": [1.0]}),
        "options": Options(),
        "amp_scaler": {"scale": 65536.0},
    }


def prefixed(prefix: str) -> Weights:
    return {f"{prefix}{name}": value for name, value in weights().items()}


def inside(prefix: str) -> Weights:
    """Compiled or checkpointed block by block: the prefix is in the middle of names."""
    return {
        re.sub(r"^(blocks\.\d+\.)", rf"\1{prefix}", name): value
        for name, value in weights().items()
    }


READ: dict[str, Callable[[], Any]] = {
    "plain": weights,
    "ordered": lambda: collections.OrderedDict(weights()),
    "parameters": lambda: {k: nn.Parameter(v) for k, v in weights().items()},
    "timm": of_timm_train,
    "model": lambda: {"model": weights(), "epoch": 3},
    "net": lambda: {"net": weights(), "acc": 91.0},
    "unusual key": lambda: {"student_network": weights()},
    "tuple": lambda: (weights(), {"step": 3}),
    "nested": lambda: {"checkpoint": {"model": {"state_dict": weights()}}},
    "ddp": lambda: prefixed("module."),
    "compiled": lambda: {"model": prefixed("_orig_mod.")},
    "compiled ddp": lambda: prefixed("_orig_mod.module."),
    "ddp compiled": lambda: prefixed("module._orig_mod."),
    "lightning": lambda: {
        "state_dict": prefixed("model.") | {"criterion.weight": torch.ones(2)},
        "pytorch-lightning_version": "2.1.0",
        "callbacks": {"ModelCheckpoint": {"best": torch.tensor(0.9)}},
    },
    "lightning compiled": lambda: {"state_dict": prefixed("net._orig_mod.")},
    "backbone": lambda: {"state_dict": prefixed("backbone.")},
    "encoder": lambda: {"state_dict": prefixed("module.encoder.")},
    "blocks compiled": lambda: inside("_orig_mod."),
    "blocks checkpointed": lambda: inside("_checkpoint_wrapped_module."),
    "averaged by torch": lambda: prefixed("module.") | {"n_averaged": torch.tensor(9)},
    "counted by thop": lambda: weights() | {"total_ops": torch.zeros(1)},
    "float64": lambda: {k: v.double() for k, v in weights().items()},
    "classifier beside": lambda: {
        "state_dict": {
            (k if k.startswith("head.") else f"backbone.{k}"): v
            for k, v in weights().items()
        }
    },
    "not contiguous": lambda: {
        k: v.t().contiguous().t() if v.ndim == 2 else v for k, v in weights().items()
    },
}


@pytest.mark.parametrize("kind", READ)
def test_read(kind: str, tmp_path: Path) -> None:
    """The weights are those that were saved, whatever lies around them."""
    file = saved(tmp_path, READ[kind]())
    assert same(loaded(file), weights())
    assert facts(file, trained=False).fresh == ()


@pytest.mark.parametrize(
    "suffix", [".pt", ".ckpt", ".bin", ".pth.tar", ".safetensors", ""]
)
def test_the_name_of_a_file_decides_nothing(suffix: str, tmp_path: Path) -> None:
    file = saved(tmp_path, weights(), f"weights{suffix}")
    assert same(loaded(file), weights())
    save_file(weights(), tmp_path / f"other{suffix}")
    assert same(loaded(tmp_path / f"other{suffix}"), weights())


def test_the_old_format_of_torch(tmp_path: Path) -> None:
    file = saved(tmp_path, of_timm_train(), _use_new_zipfile_serialization=False)
    assert same(loaded(file), weights())


def test_what_lies_beside_is_neither_imported_nor_executed(tmp_path: Path) -> None:
    """A class that cannot be imported is no obstacle; `os.system` is refused, uncalled."""
    content = {"state_dict": weights(), "options": Options()}
    Options.__module__ = "a_package_that_nobody_has"
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(
                __import__("sys").modules,
                "a_package_that_nobody_has",
                argparse.Namespace(Options=Options),
            )
            file = saved(tmp_path, content)
    finally:
        Options.__module__ = __name__
    assert same(loaded(file), weights())

    class Harmful:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'executed'}",)

    file = saved(tmp_path, {"state_dict": weights(), "x": Harmful()}, "harmful.pth")
    with pytest.raises(ValueError, match=r"harmful\.pth: refused.*\.system"):
        facts(file)
    assert not (tmp_path / "executed").exists()


def test_weights_are_copied(tmp_path: Path) -> None:
    """A file that is overwritten later does not change a model that was read from it."""
    file = saved(tmp_path, weights())
    first = loaded(file)
    content = bytearray(file.read_bytes())
    with open(file, "r+b") as open_file:
        open_file.write(bytes(len(content)))
    assert same(first, weights())


# ------------------------------------------------------------------ what is said


def said(path: Path, **changes: Any) -> str:
    return " ".join(facts(path, **changes).remarks)


def test_averaged_weights_are_preferred_and_a_key_chooses(tmp_path: Path) -> None:
    averaged = {k: v + 1 for k, v in weights().items()}
    file = saved(tmp_path, {"state_dict": weights(), "state_dict_ema": averaged})
    assert same(loaded(file), averaged)
    assert "under 'state_dict_ema'" in said(file)
    assert "Not used of the checkpoint: state_dict (" in said(file)
    assert same(loaded(file, checkpoint_key="state_dict"), weights())
    with pytest.raises(ValueError, match="no tensors under 'ema'; it has state_dict"):
        facts(file, checkpoint_key="ema")


def test_two_sets_of_weights_need_a_choice(tmp_path: Path) -> None:
    """Student and teacher of DINO: nothing says which is meant."""
    other = {k: v + 1 for k, v in weights().items()}
    file = saved(tmp_path, {"student": prefixed("module.backbone."), "teacher": other})
    with pytest.raises(
        ValueError, match=r"\(teacher, student.backbone\).*checkpoint_key"
    ):
        facts(file)
    assert same(loaded(file, checkpoint_key="student.backbone"), weights())


def test_a_classifier_of_other_classes(tmp_path: Path) -> None:
    file = saved(tmp_path, {"model": prefixed("module.") | weights(num_classes=9)})
    file = saved(tmp_path, weights(num_classes=9))
    found = facts(file)
    assert found.fresh == ("head.weight", "head.bias")
    assert "classifier (head) starts fresh" in said(file)
    assert "9 classes, the data has 5" in said(file)
    with pytest.raises(ValueError, match="No stage trains"):
        facts(file, trained=False)
    assert loaded(file)["head.weight"].shape == (CLASSES, 12)


def test_no_classifier(tmp_path: Path) -> None:
    body = {k: v for k, v in weights().items() if not k.startswith("head.")}
    file = saved(tmp_path, body)
    assert "weights come without one" in said(file)
    assert set(facts(file).fresh) == {"head.weight", "head.bias"}


def test_positions_of_another_image_size(tmp_path: Path) -> None:
    file = saved(tmp_path, weights(img_size=32))
    assert "resampled from 17 to 5 positions" in said(file, trained=False)


def test_distilled_and_plain(tmp_path: Path) -> None:
    args = {"name": "deit_tiny_distilled_patch16_224"}
    file = saved(tmp_path, weights(**args))
    assert "distilled model" in said(file, trained=False)
    plain = saved(tmp_path, weights(), "plain.pth")
    found = facts(plain, model=args["name"])
    assert set(found.fresh) == {"dist_token", "head_dist.weight", "head_dist.bias"}
    assert "plain model" in " ".join(found.remarks)
    larger = saved(tmp_path, weights(img_size=32, **args), "larger.pth")
    assert "resampled from 17 to 5 positions" in said(larger)


@pytest.mark.parametrize(("channels", "exact"), [(1, True), (4, False)])
def test_other_channels(channels: int, exact: bool, tmp_path: Path) -> None:
    """Grey weights see a grey image as before; a fourth channel cannot be left out."""
    file = saved(tmp_path, weights(in_chans=channels))
    if not exact:
        with pytest.raises(ValueError, match=r"patch_embed.proj.weight: file \(12, 4"):
            facts(file)
        return
    assert "images of 1 channels; it was adapted to 3" in said(file, trained=False)
    grey = torch.rand(1, 1, IMAGE_PX, IMAGE_PX)
    model = vit()
    model.load_state_dict(loaded(file))
    expected = vit(in_chans=1).eval()(grey)
    torch.testing.assert_close(model.eval()(grey.repeat(1, 3, 1, 1)), expected)


def test_pruning_masks_of_torch(tmp_path: Path) -> None:
    model = vit()
    fc1 = model.get_submodule("blocks.0.mlp.fc1")
    torch.nn.utils.prune.l1_unstructured(fc1, "weight", 0.5)
    file = saved(tmp_path, model.state_dict())
    assert torch.equal(loaded(file)["blocks.0.mlp.fc1.weight"], fc1.weight)
    assert "masks of torch.nn.utils.prune" in said(file)


# ------------------------------------------------------------------ what is refused


def sparse() -> Weights:
    return weights() | {"head.weight": weights()["head.weight"].to_sparse()}


def integers() -> Weights:
    return weights() | {"norm.weight": torch.ones(12, dtype=torch.int8)}


NOT_FITTING: dict[str, tuple[Callable[[], Any], str]] = {
    "resnet": (
        lambda: timm.create_model("resnet10t").state_dict(),
        r"does not fit vit_tiny.*: 0 of the model's 32 tensors.*missing: cls_token.*"
        r"unexpected: conv1",
    ),
    "wider": (lambda: weights(embed_dim=24), r"shapes.*differ: .*file \(1, 1, 24\)"),
    "deeper": (lambda: weights(depth=3), "unexpected: blocks.2"),
    "shallower": (lambda: weights(depth=1), "20 of the model's 32.*missing: blocks.1"),
    "another program's note": (
        lambda: {
            "arch": "convnext_tiny",
            "state_dict": {"stem.0.weight": torch.ones(1)},
        },
        "the checkpoint says that it is of convnext_tiny",
    ),
    "registers": (lambda: weights(reg_tokens=2), "reg_token"),
    "int8": (integers, "norm.weight: file int8, model float32"),
    "nan": (
        lambda: weights() | {"norm.weight": torch.full((12,), torch.nan)},
        "norm.weight has 12 of 12 values that are not finite",
    ),
    "overflow": (
        lambda: (
            weights() | {"norm.bias": torch.full((12,), 1e300, dtype=torch.float64)}
        ),
        "norm.bias has 12 of 12 values that are not finite",
    ),
    "module": (vit, r"whole pickled module.*VisionTransformer.*model\.state_dict\(\)"),
    "module in a dict": (lambda: {"model": vit()}, r"model\.state_dict\(\)"),
    "module in ddp": (lambda: {"net": nn.DataParallel(vit())}, r"DataParallel"),
    "no tensors": (lambda: {"epoch": 3}, r"no tensors by name \(its keys: epoch\)"),
    "a tensor": (lambda: torch.ones(3), "holds no tensors by name;"),
    "optimiser alone": (
        lambda: torch.optim.SGD(vit().parameters(), 0.1).state_dict(),
        r"no tensors by name \(its keys: state, param_groups\)",
    ),
}


@pytest.mark.parametrize("kind", NOT_FITTING)
def test_not_fitting(kind: str, tmp_path: Path) -> None:
    content, message = NOT_FITTING[kind]
    file = saved(tmp_path, content(), "mine.pth")
    with pytest.raises(ValueError, match=message) as error:
        facts(file)
    assert "mine.pth" in str(error.value)
    assert "\n" not in str(error.value)


def torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)


def exported(path: Path) -> None:
    program = torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(program, path)


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photos/1.jpg", b"")


def cut(path: Path) -> None:
    torch.save(weights(), path)
    path.write_bytes(path.read_bytes()[:-9000])


def cut_old(path: Path) -> None:
    torch.save(weights(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-9000])


def cut_safetensors(path: Path) -> None:
    save_file(weights(), path)
    path.write_bytes(path.read_bytes()[:-9000])


def image(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(path, "JPEG")


def text(content: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(content)


def binary(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


NO_CHECKPOINTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (binary(b""), r"empty \(0 bytes\).*fetch it again"),
    "lfs": (
        text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "Git LFS pointer.*git lfs pull",
    ),
    "yaml": (text("model: resnet18\nlr: 0.1\n"), "text file"),
    "json": (text('{"architecture": "resnet18"}'), "JSON file"),
    "html": (text("\n<!DOCTYPE html><html><body>Sign in"), "HTML page"),
    "xml": (text("<?xml version='1.0'?><Error>AccessDenied</Error>"), "XML file"),
    "zeros": (binary(bytes(5000)), "full of zeros"),
    "photo": (image, "JPEG image"),
    "gzip": (binary(b"\x1f\x8b\x08\x00"), "gzip archive.*unpack it"),
    "zip": (zipped, r"ZIP archive of other files \(photos/1.jpg\).*unpack"),
    "npz": (lambda path: np.savez(path.open("wb"), a=np.ones(2)), "NumPy archive"),
    "hdf5": (binary(b"\x89HDF\r\n\x1a\n"), "HDF5"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "plain pickle"),
    "noise": (binary(bytes(range(255, 0, -1))), "unknown kind"),
    "torchscript": (torchscript, r"TorchScript program.*state_dict\(\)"),
    "torch.export": (exported, "torch.export.*state_dict"),
    "cut off": (cut, "cut off or damaged.*its end is missing"),
    "cut off, old": (cut_old, "cut off or damaged"),
    "cut off, safetensors": (cut_safetensors, "safetensors file that is cut off"),
    "coded": (binary(b"\x89CODEDM\n\x01"), "coded file of ours.*sweeps unpack"),
}


@pytest.mark.parametrize("kind", NO_CHECKPOINTS)
def test_what_is_no_checkpoint(kind: str, tmp_path: Path) -> None:
    """Named as what it is, whatever its suffix."""
    write, message = NO_CHECKPOINTS[kind]
    for name in ("mine.pth", "mine.safetensors"):
        write(tmp_path / name)
        with pytest.raises(ValueError, match=message) as error:
            facts(tmp_path / name)
        assert name in str(error.value)
        assert "\n" not in str(error.value)


# ------------------------------------------------------------------ folders


def hub_folder(folder: Path, **config: Any) -> Path:
    """What timm's `save_for_hf` writes."""
    folder.mkdir()
    save_file(weights(), folder / "model.safetensors")
    content = {
        "architecture": NAME,
        "num_classes": CLASSES,
        "model_args": ARGS | {"img_size": 32, "num_classes": 3},
        "pretrained_cfg": {"tag": "mine"},
        **config,
    }
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_a_folder_of_the_hub(tmp_path: Path) -> None:
    """With its config.json no model needs to be given; `local-dir:` of timm is the same."""
    folder = hub_folder(tmp_path / "mine")
    assert same(loaded(folder, model=None, args={}), weights())
    assert same(loaded(folder), weights())
    local = SourceConfig(model=f"local-dir:{folder}", pretrained=True)
    state = load_source(local, num_classes=CLASSES, image_size=IMAGE_PX, seed=0)
    assert same(state.weights, weights())
    assert state.arch.name == NAME
    with pytest.raises(ValueError, match=r"says that it is of vit_tiny_patch16_224"):
        facts(folder, model="resnet18", args={})


def test_a_folder_in_parts(tmp_path: Path) -> None:
    names = list(weights())
    halves = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, part in halves.items():
        save_file({name: weights()[name] for name in part}, tmp_path / file)
    places = {name: file for file, part in halves.items() for name in part}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert same(loaded(tmp_path), weights())
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"names b\.safetensors, which is not there"):
        facts(tmp_path)


def test_a_folder_of_a_training(tmp_path: Path) -> None:
    saved(tmp_path, weights(), "last.pth")
    assert same(loaded(tmp_path), weights())
    saved(tmp_path, weights(), "best.pth")
    with pytest.raises(
        ValueError, match=r"2 files.*best\.pth, last\.pth.*name the file"
    ):
        facts(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"without weights \(it holds photo\.jpg\)"):
        facts(tmp_path)
    saved(tmp_path, weights())
    with pytest.raises(ValueError, match="which model"):
        facts(tmp_path, model=None, args={})


def test_our_own_folder(tmp_path: Path) -> None:
    """For other classes and another image size it is adapted, which is said."""
    arch = source_facts(SourceConfig(model=NAME, args=ARGS), 3, 32, trained=False).arch
    ModelState.initialised(arch, 1).save(tmp_path)
    found = facts(tmp_path, model=None, args={})
    assert found.arch.args["num_classes"] == CLASSES
    assert "3 classes, the data has 5" in " ".join(found.remarks)
    assert "resampled from 17 to 5" in " ".join(found.remarks)
    assert loaded(tmp_path, model=None, args={})["head.weight"].shape[0] == CLASSES


def test_facts_follow_the_file(tmp_path: Path) -> None:
    """A file that was replaced is read again."""
    file = saved(tmp_path, weights())
    assert facts(file).fresh == ()
    saved(tmp_path, weights(num_classes=8))
    assert facts(file).fresh != ()


def test_timm_has_no_such_weights() -> None:
    config = SourceConfig(model="vit_giant_patch14_224", pretrained=True)
    with pytest.raises(
        ValueError, match="no pretrained weights of 'vit_giant_patch14_224'"
    ):
        source_facts(config, 10, 224, trained=True)


def test_torchvision_names_its_resnets_as_timm_does(tmp_path: Path) -> None:
    """The same outputs, so also the same order of layers."""
    _ = timm.layers  # torchvision's operators are declared first
    import torchvision

    theirs = torchvision.models.resnet18(num_classes=CLASSES).eval()
    source = SourceConfig(
        model="resnet18", checkpoint=saved(tmp_path, theirs.state_dict())
    )
    state = load_source(source, num_classes=CLASSES, image_size=32, seed=0)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(state.build()(images), theirs(images))


@pytest.fixture
def hub_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked whether the Hub can be reached."""
    for module in (trainers.models.make, trainers.models.source):
        monkeypatch.setattr(module, "check_hub", lambda repository, files: None)


@pytest.mark.usefixtures("hub_answers")
def test_a_name_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The architecture and its arguments come from the repository's config.json."""
    told = ({}, NAME, ARGS | {"img_size": 224, "num_classes": 1000})
    monkeypatch.setattr(timm.models, "load_model_config_from_hf", lambda name: told)
    source = SourceConfig(model="hf-hub:somebody/some-vit")
    arch = source_facts(source, CLASSES, IMAGE_PX, trained=False).arch
    args = {"num_classes": CLASSES, "img_size": IMAGE_PX, **ARGS}
    assert (arch.name, arch.args) == (NAME, args)

    def unreachable(name: str) -> None:
        raise OSError("no connection")

    monkeypatch.setattr(timm.models, "load_model_config_from_hf", unreachable)
    with pytest.raises(ValueError, match=r"hf-hub:somebody/other: .*no connection"):
        source_facts(SourceConfig(model="hf-hub:somebody/other"), 5, 16, trained=True)


@pytest.mark.usefixtures("hub_answers")
def test_the_fresh_classifier_of_pretrained_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is said, refused where nobody trains it, and follows from the seed alone."""
    create = timm.create_model

    def pretrained_of_seven(name: str, pretrained: bool = False, **args: Any) -> Any:
        module = create(name, **args)
        module.pretrained_cfg = {**module.pretrained_cfg, "num_classes": 7}
        return module

    source = SourceConfig(model="resnet10t.c3_in1k", pretrained=True)
    monkeypatch.setattr(timm, "create_model", pretrained_of_seven, raising=False)
    found = source_facts(source, CLASSES, 32, trained=True)
    assert found.fresh == ("fc.weight", "fc.bias")
    assert "7 classes, the data has 5" in found.remarks[0]
    with pytest.raises(ValueError, match="No stage trains"):
        source_facts(source, CLASSES, 32, trained=False)
    first = load_source(source, num_classes=CLASSES, image_size=32, seed=3)
    torch.manual_seed(99)  # another image size, so that nothing comes from memory
    again = load_source(source, num_classes=CLASSES, image_size=33, seed=3)
    assert same(first.weights, again.weights)
