"""Do runtimes compute what the torch module of an int8 model computes? Six families on CIFAR-10.

    python benchmarks/int8_families.py CIFAR10 [--images 6400] [--test 2000]

CIFAR10 is a folder with Parquet shards. Each model is small, trained for one epoch of so many
images and made int8 with the stage's defaults; then the first test images pass through the
module, ONNX Runtime and OpenVINO. Beside the first choices that a runtime makes otherwise stand
those that the module itself makes otherwise when values are moved by up to a hundredth of a step
before they are rounded: so many are open. A network that has hardly been trained is the harder
case, since its logits lie close together. Trained models stay in the working folder. Time: 6
minutes of a core.
"""

import argparse
import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import compress
from compress.measure.options import RuntimeOptions
from compress.runtimes.registry import session
from trainers.config import DataConfig, SourceConfig
from trainers.data.splits import Data, eval_batches, load_data
from trainers.models.arch import ModelState
from trainers.models.quantised import computing_by, moved_slightly

STAGES = {"depths": [1, 1, 2, 1], "dims": [16, 32, 48, 64]}
LEVIT = {"embed_dim": [32, 48, 64], "depth": [1, 1, 1], "num_heads": [2, 3, 4]}
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "ResNet": ("resnet20_cifar", {"width": 8}, 32),
    "MobileNet V3": ("mobilenetv3_small_050", {}, 32),
    "ViT": (
        "vit_tiny_patch16_224",
        {"patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 2},
        32,
    ),
    "ConvNeXt": ("convnext_atto", STAGES, 32),
    "MobileViT (hybrid)": ("mobilevit_xxs", {}, 64),
    "LeViT (hybrid)": ("levit_128s", LEVIT, 64),
}
TRAIN = {
    "epochs": 1,
    "batch_size": 64,
    "lr": 1e-3,
    "lr_scaling": "unscaled",
    "warmup": "10%",
    "augment": "flip",
}
RUNTIMES = ("onnxruntime", "openvino")
BATCH = 50


def trained(
    name: str, given: argparse.Namespace
) -> tuple[ModelState, ModelState, Data]:
    """The float model, the same in integers, and the data."""
    model, args, size = FAMILIES[name]
    data = DataConfig(
        dataset="parquet", root=given.root, image_size=size, limit=10000, workers=0
    )
    stages: list[Any] = [("finetune", TRAIN | {"images_per_epoch": given.images})]
    folders = {"cache": given.work / "stages", "data_cache": given.work / "data"}
    source = SourceConfig(model=model, args=args)
    before = compress.run(source, data, stages, **folders).model
    after = compress.run(source, data, [*stages, "int8"], **folders).model
    return before, after, load_data(data, folders["data_cache"])


@torch.inference_mode()
def _logits(
    module: nn.Module, batches: list[tuple[Tensor, Tensor]]
) -> NDArray[np.float32]:
    found: list[Any] = [module(images).numpy() for images, _ in batches]
    return np.concatenate(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("root", type=Path, help="CIFAR-10 as Parquet")
    parser.add_argument("--images", type=int, default=6400, help="of the epoch")
    parser.add_argument("--test", type=int, default=2000, help="test images")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--work", type=Path, default=Path("int8_families"))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(
        "family | float % | simulated % | runtime | % | other choices | open | kernels"
    )
    for name in given.families:
        before, after, data = trained(name, given)
        found = list(
            itertools.islice(
                eval_batches(data, "test", BATCH, torch.device("cpu")),
                given.test // BATCH,
            )
        )
        labels = np.concatenate([labels.numpy() for _, labels in found])
        real, wanted = (_logits(state.build(), found) for state in (before, after))
        with computing_by(moved_slightly(0)):
            moved = _logits(after.build(), found)
        is_open = int((moved.argmax(1) != wanted.argmax(1)).sum())
        for runtime in RUNTIMES:
            options = RuntimeOptions(runtime=runtime, batch_size=BATCH, threads=1)
            deployed = session(after, data.info.image_size, options)
            got = np.concatenate([deployed.run(images.numpy()) for images, _ in found])
            right = [
                100 * float((logits.argmax(1) == labels).mean())
                for logits in (real, wanted, got)
            ]
            other = int((got.argmax(1) != wanted.argmax(1)).sum())
            print(
                f"{name} | {right[0]:.2f} | {right[1]:.2f} | {runtime} | {right[2]:.2f}"
                f" | {other} | {is_open} | {deployed.precision}",
                flush=True,
            )


if __name__ == "__main__":
    main()
