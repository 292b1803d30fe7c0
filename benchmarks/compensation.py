"""What compensation keeps of a model that was cut and not yet tuned.

    python benchmarks/compensation.py --data CIFAR10 --resnet FOLDER --vit FOLDER -o FILE.jsonl

The ResNet-56 loses inner channels of its residual blocks (the same share everywhere, those of
the smallest norm), the ViT units by NViT's Taylor importance in one decision (all but embedding
channels with `--keep-embed`), until the share of multiply-accumulates is met. Each is evaluated
before any tuning and after one short epoch of `--epoch` images: as it was cut; with BatchNorms
recalibrated on the same images; compensated; both. Seeds draw the images that importance and
compensation see, and the epoch. A line a result; what the file has already is left out.
"""

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.compensation import (
    corrected_tensors,
    input_moments,
    mendable,
    recalibrate,
)
from compress.nvit.cost import MacsModel
from compress.nvit.groups import GroupSizes, UnitLayout
from compress.nvit.masked_vit import MaskedVit
from compress.nvit.pruner import Pruner, PruneRules
from compress.stage import Context
from trainers.config import AugmentConfig, DataConfig, TrainConfig
from trainers.data.splits import Data, eval_batches, load_data
from trainers.models.arch import ModelState
from trainers.models.from_timm import from_timm
from trainers.training.evaluate import evaluate
from trainers.training.losses import TaskObjective

CPU = torch.device("cpu")
TARGETS = (0.7, 0.5, 0.35)
GROUPS = GroupSizes(embed=4, heads=1, qk=4, v=4, mlp=16)
TUNE = TrainConfig(
    epochs=1,
    batch_size=64,
    lr=5e-4,
    lr_scaling="unscaled",
    warmup=0,
    augment=AugmentConfig(preset="flip"),
)
Variants = dict[str, Callable[[], nn.Module]]


class Calibration:
    """Training images of one seed, with their labels for the importance alone."""

    def __init__(self, images: Tensor, labels: Tensor, seed: int, count: int) -> None:
        chosen = torch.randperm(
            len(images), generator=torch.Generator().manual_seed(seed)
        )[:count]
        self.images, self.labels = images[chosen], labels[chosen]

    def batches(self) -> Iterator[Tensor]:
        yield from self.images.split(64)


def cut_resnet(
    module: Any, share: float, seen: Calibration, compensate: bool
) -> nn.Module:
    """A CIFAR ResNet whose blocks keep a share of their inner channels."""
    module = copy.deepcopy(module)
    blocks = {
        path: block for path, block in module.named_modules() if hasattr(block, "conv2")
    }
    kept: dict[str, Tensor] = {}
    for path, block in blocks.items():
        sizes = block.conv1.weight.flatten(1).norm(dim=1) * block.bn1.weight.abs()
        count = max(1, round(share * len(sizes)))
        kept[f"{path}.conv2"] = sizes.topk(count).indices.sort().values
    found = {}
    if compensate:
        inputs = input_moments(module, mendable(module, kept), seen.batches())
        found = corrected_tensors(module, kept, inputs)
    for path, block in blocks.items():
        stays = kept[f"{path}.conv2"]
        weight = block.conv2.weight.detach()[:, stays]
        block.conv2.weight = nn.Parameter(found.get(f"{path}.conv2.weight", weight))
        mean = found.get(f"{path}.bn2.running_mean")
        if mean is not None:
            block.bn2.running_mean.copy_(mean)
        block.conv1.weight = nn.Parameter(block.conv1.weight.detach()[stays])
        norm = nn.BatchNorm2d(len(stays))
        norm.load_state_dict(
            {
                name: value[stays] if value.ndim else value
                for name, value in block.bn1.state_dict().items()
            }
        )
        block.bn1 = norm
    return module.eval()


def resnet_variants(state: ModelState, share: float, seen: Calibration) -> Variants:
    def made(compensate: bool, norms: bool) -> nn.Module:
        module = cut_resnet(state.build(), share, seen, compensate)
        if norms:
            recalibrate(module, seen.batches())
        return module

    return {
        "none": lambda: made(False, False),
        "norms": lambda: made(False, True),
        "compensated": lambda: made(True, False),
        "compensated, norms": lambda: made(True, True),
    }


def pruned_vit(
    state: ModelState, share: float, seen: Calibration, compensate: bool, embed: bool
) -> nn.Module:
    """A ViT after one decision of NViT's pruner, down to the target."""
    groups = GROUPS if embed else GROUPS.model_copy(update={"embed": 1 << 20})
    layout = UnitLayout.of(state.arch.dims, groups)
    rules = PruneRules(
        latency_target=share,
        prune_per_iter=1 << 20,
        importance_unit="share",
        latency_regularization=0.1,
    )
    pruner = Pruner(
        MaskedVit.from_state(state),
        layout,
        MacsModel.of(state.arch),
        rules,
        CPU,
        seen.batches if compensate else None,
    )
    for images, labels in zip(
        seen.images.split(64), seen.labels.split(64), strict=True
    ):
        pruner.vit.zero_grad()
        F.cross_entropy(pruner.vit.eval()(images), labels).backward()
        pruner.on_grads()
    pruner.decide()
    assert pruner.masks is not None
    pruner.masks.on_values()
    return pruner.dense(state.arch).build()


def vit_variants(
    state: ModelState, share: float, seen: Calibration, embed: bool
) -> Variants:
    return {
        "none": lambda: pruned_vit(state, share, seen, False, embed),
        "compensated": lambda: pruned_vit(state, share, seen, True, embed),
    }


def tuned(module: nn.Module, data: Data, seed: int, images: int) -> nn.Module:
    """After one epoch of so many images; as it is for none."""
    if images:
        with tempfile.TemporaryDirectory() as folder:
            ctx = Context(data, CPU, seed, Path(folder), _no_teacher)
            config = TUNE.model_copy(update={"images_per_epoch": images})
            ctx.fit(module, TaskObjective(0.1), config)
    return module.eval()


def _no_teacher(name: str, checkpoint: Path | None) -> ModelState:
    raise AssertionError("nothing asks for one")


def wanted(args: argparse.Namespace) -> Iterator[tuple[str, int, float, int]]:
    """(model, seed, target, images of the epoch), what is quick first."""
    for images in args.epoch:
        for seed in range(args.seeds):
            for model in ("vit", "vit, whole width", "resnet"):
                if getattr(args, model.split(",")[0]) is not None:
                    for target in TARGETS:
                        yield model, seed, target, images


def main() -> None:
    """Run what the file does not have yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder of CIFAR-10 as Parquet")
    parser.add_argument("--resnet", type=Path)
    parser.add_argument("--vit", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--epoch", type=int, nargs="+", default=[0, 2560])
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    data = load_data(
        DataConfig(dataset="parquet", root=args.data, limit_test=args.test),
        Path(tempfile.gettempdir()) / "compensation",
    )
    batches = list(eval_batches(data, "train", 128, CPU))
    training = [torch.cat(each) for each in zip(*batches, strict=True)]
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    keys = ("model", "seed", "target", "epoch_images", "variant")
    done = {tuple(json.loads(line)[key] for key in keys) for line in lines}
    states = {
        name: ModelState.load(folder)
        for name in ("resnet", "vit")
        if (folder := getattr(args, name)) is not None
    }
    for model, seed, target, images in wanted(args):
        seen = Calibration(*training, seed, args.images)
        if model == "resnet":
            variants = resnet_variants(states["resnet"], target, seen)
        else:
            state = from_timm(states["vit"])
            variants = vit_variants(state, target, seen, model == "vit")
        for variant, make in variants.items():
            values = (model, seed, target, images, variant)
            if values in done:
                continue
            begin = time.process_time()
            module = make()
            seconds = time.process_time() - begin
            module = tuned(module, data, seed, images)
            row = dict(zip(keys, values, strict=True)) | {
                "accuracy": evaluate(module, data, "test", CPU)["accuracy"],
                "cpu_seconds": round(seconds, 2),
            }
            with args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()
