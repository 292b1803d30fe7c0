"""The doors into timm and torchvision that no document promises: each test fails when one moves."""

import ast
import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from trainers.config import AugmentConfig, DataConfig
from trainers.data.open import open_dataset
from trainers.data.parts import FilePart
from trainers.models.make import make_arch
from trainers.timm_internals import (
    converted_checkpoint,
    eval_transform,
    middle_of_long,
    train_transform,
)
from trainers.timm_library import timm
from trainers.torchvision_internals import declare_missing_operators

ROOT = Path(__file__).parents[2]


def in_a_new_process(code: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- one place imports timm and torchvision


@pytest.mark.parametrize("package", ["trainers", "compress", "sweeps"])
def test_timm_is_imported_in_one_file(package: str) -> None:
    allowed = {
        "trainers/timm_library.py": {"timm"},
        "trainers/timm_internals.py": {"torchvision"},
        "trainers/data/torchvision_sets.py": {"torchvision"},
    }
    for path in (ROOT / package).rglob("*.py"):
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
        name = path.relative_to(ROOT).as_posix()
        assert found & {"timm", "torchvision"} == allowed.get(name, set()), name


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    code = """
import importlib, sys
heavy = {"timm", "torchvision", "sklearn", "scipy", "pyarrow", "torchmetrics", "PIL.PngImagePlugin"}
for name in ("config", "files", "remote", "data.splits", "models.arch", "models.make",
             "models.from_timm", "training.fit", "training.optim"):
    importlib.import_module(f"trainers.{name}")
    assert not heavy & set(sys.modules), (name, heavy & set(sys.modules))
from trainers.config import DataConfig
from trainers.data.splits import data_info
data_info(DataConfig())
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    in_a_new_process(code)


# --- torchvision's compiled operators

OF_ANOTHER_BUILD = """
import pickle, sys
import torch
from PIL import Image

def refuse(path):
    raise OSError("a library of another build")

torch.ops.load_library = refuse
chain = pickle.load(open(sys.argv[1], "rb"))
print(tuple(chain(Image.new("RGB", (80, 80))).shape))

from trainers.timm_library import timm
timm.create_model("resnet10t")
import torchvision.ops
try:
    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except (NotImplementedError, RuntimeError):
    print("no kernel")
"""


def test_imports_beside_another_build_of_torch(tmp_path: Path) -> None:
    """As a loader process that was not forked does it: first it gets its transforms. If torchvision
    asks for one more operator, its import fails here.
    """
    chain = tmp_path / "chain"
    chain.write_bytes(pickle.dumps(train_transform(AugmentConfig(), DataConfig(), 64)))
    output = in_a_new_process(OF_ANOTHER_BUILD, str(chain))
    assert output.splitlines() == ["(3, 64, 64)", "no kernel"]


def test_the_compiled_library_is_where_it_is_looked_for() -> None:
    found = importlib.util.find_spec("torchvision")
    assert found is not None
    assert found.origin is not None
    assert [p for p in Path(found.origin).parent.glob("_C*") if p.suffix != ".py"]


def test_declaring_again_does_nothing() -> None:
    declare_missing_operators()
    declare_missing_operators()


# --- torchvision's data sets


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value, 0, 0)).save(path)


def flowers102(root: Path) -> None:
    from scipy.io import savemat

    base = root / "flowers-102"
    for number in range(1, 7):
        picture(base / "jpg" / f"image_{number:05d}.jpg", number)
    savemat(base / "imagelabels.mat", {"labels": [1, 2, 1, 2, 1, 2]})
    ids = {"trnid": [1, 2], "valid": [3, 4], "tstid": [5, 6]}
    savemat(base / "setid.mat", ids)


def pets(root: Path) -> None:
    base = root / "oxford-iiit-pet"
    for part, number in (("trainval", 1), ("test", 2)):
        lines = [f"{kind}_{number} {label} 1 1" for label, kind in enumerate("ab", 1)]
        for line in lines:
            picture(base / "images" / f"{line.split()[0]}.jpg", number)
        (base / "annotations").mkdir(exist_ok=True)
        (base / "annotations" / f"{part}.txt").write_text("\n".join(lines))


def food101(root: Path) -> None:
    base = root / "food-101"
    (base / "meta").mkdir(parents=True)
    for part in ("train", "test"):
        names = {kind: [f"{kind}/{part}"] for kind in ("pie", "rice")}
        (base / "meta" / f"{part}.json").write_text(json.dumps(names))
        for kind in names:
            picture(base / "images" / kind / f"{part}.jpg", 3)


@pytest.mark.parametrize("write", [flowers102, pets, food101])
def test_labels_and_files_of_torchvisions_sets(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare_missing_operators()
    import torchvision

    write(tmp_path)
    monkeypatch.setattr(
        torchvision.datasets.flowers102, "check_integrity", lambda *_: True
    )
    dataset = open_dataset(DataConfig(dataset=write.__name__, root=tmp_path))
    for part in (dataset.train, dataset.test):
        assert isinstance(part, FilePart)
        assert part.labels.tolist() == [0, 1] * (len(part.labels) // 2)
        assert part.read(0).size == (4, 4)
    assert len(dataset.test.labels) == 2


# --- timm's transforms


def test_the_random_crop_comes_first() -> None:
    for augment, first in (
        (AugmentConfig(), "RandomResizedCropAndInterpolation"),
        (AugmentConfig(crop="none"), "Resize"),
        (AugmentConfig(crop="padded"), "Resize"),
    ):
        chain = train_transform(augment, DataConfig(), 64).transforms
        names = [type(t).__name__ for t in chain if t is not middle_of_long]
        assert names[0] == first
        assert sum("Crop" in name for name in names) == 1
        assert names.index("RandomHorizontalFlip") < names.index("RandAugment")


def test_an_image_becomes_bytes() -> None:
    image = Image.new("RGB", (80, 60), (1, 2, 3))
    for transform in (
        eval_transform(DataConfig(), 48),
        train_transform(AugmentConfig(preset="none"), DataConfig(), 48),
        train_transform(AugmentConfig(), DataConfig(), 48),
    ):
        pixels = torch.as_tensor(transform(image))
        assert pixels.dtype == torch.uint8
        assert pixels.shape == (3, 48, 48)


def test_posterising_to_black_is_let_through() -> None:
    """timm's operations are found, and its own posterise is none of them any more."""
    for policy in ("rand-m10-mstd0.5", "original", "augmix-m3"):
        chain = train_transform(AugmentConfig(auto_augment=policy), DataConfig(), 64)
        [augment] = [
            t
            for t in chain.transforms
            if type(t).__module__ == "timm.data.auto_augment"
        ]
        kept: Any = augment
        policies = getattr(kept, "policy", None) or [kept.ops]
        functions = [op.aug_fn for operations in policies for op in operations]
        assert functions
        assert timm.data.auto_augment.posterize not in functions
        assert any(f.__module__ == "trainers.timm_internals" for f in functions)


def test_a_published_checkpoint_is_converted() -> None:
    arch = make_arch(
        "vit_tiny_patch16_224", num_classes=3, image_size=32, args={"depth": 1}
    )
    module = arch.build()
    weights = module.state_dict()
    # the first published ViTs kept the patch embedding as a matrix
    kernel = weights["patch_embed.proj.weight"]
    old = {**weights, "patch_embed.proj.weight": kernel.flatten(1)}
    converted = converted_checkpoint(old, module)["patch_embed.proj.weight"]
    assert torch.equal(converted, kernel)
    plain = {"weight": torch.zeros(2, 2)}
    assert converted_checkpoint(plain, torch.nn.Linear(2, 2)) is plain
