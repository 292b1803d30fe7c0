"""Which models of timm does torch-pruning's DepGraph cut, and which `prune_channels`?

    python benchmarks/channels_depgraph.py [MODEL[:SIZE] ...]

torch-pruning: its MetaPruner at a ratio of 0.3, classifiers left out, heads of attention given,
attention not fused, and no attribute of the model corrected by hand; a cut model must run.
`prune_channels`: half of each group is cut, and the model must run. Random weights; nothing is
trained.
"""

import argparse
from typing import Any

import torch
from torch import nn

from compress.channels.decide import layout_of
from compress.measure.model import PASS_ERRORS
from trainers.models.make import make_arch

MODELS = [
    "resnet50",
    "resnext50_32x4d",
    "seresnet50",
    "res2net50_26w_4s",
    "regnety_004",
    "densenet121",
    "vgg11_bn",
    "inception_v3:299",
    "efficientnet_b0",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "mnasnet_100",
    "ghostnet_100",
    "convnext_atto",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "cait_xxs24_224",
    "levit_128s",
]


def by_torch_pruning(module: Any, images: torch.Tensor) -> None:
    """Cut and run a model, in place."""
    import torch_pruning

    heads = {}
    for layer in module.modules():
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = False
        if hasattr(layer, "num_heads") and hasattr(layer, "qkv"):
            heads[layer.qkv] = layer.num_heads
    torch_pruning.pruner.MetaPruner(
        module,
        images,
        importance=torch_pruning.importance.MagnitudeImportance(),
        pruning_ratio=0.3,
        ignored_layers=[
            layer
            for layer in module.modules()
            if isinstance(layer, nn.Linear) and layer.out_features == 1000
        ],
        num_heads=heads,
    ).step()
    module(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    for entry in parser.parse_args().models:
        name, _, pixels = entry.partition(":")
        size = int(pixels or 224)
        arch = make_arch(name, num_classes=1000, image_size=size)
        found = {}
        try:
            by_torch_pruning(arch.build().eval(), torch.randn(1, 3, size, size))
            found["torch-pruning"] = "runs"
        except PASS_ERRORS as error:
            found["torch-pruning"] = f"{type(error).__name__}: {str(error)[:80]}"
        try:
            layout_of(arch, size)
            found["prune_channels"] = "runs"
        except ValueError as error:
            found["prune_channels"] = f"refused: {str(error)[:80]}"
        print(f"{name:34s} {found}", flush=True)


if __name__ == "__main__":
    main()
