"""What growing its weights costs the LeTs auxiliary network, beside a plain ViT of the same size.

Run: python benchmarks/lets_forward.py [--batch 64] [--image-size 224] [--threads 2]
[--rounds 5] [--train] [--compile]

Prints the median seconds of a forward pass (with --train, forward and backward) of both,
alternating in one process (processor time, on a GPU the clock's), the ratios, and the
memory: parameters stored, and weights made on the fly. The default size is the paper's:
learngene 8 × 384, auxiliary network 16 × 768.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainers.models.arch import Arch
from trainers.models.lets_vit import LetsVit


def seconds(module: nn.Module, images: Tensor, train: bool) -> float:
    """Seconds of one pass: of processor time, so that other work does not count; on a GPU
    of the clock.
    """
    clock = time.perf_counter if images.is_cuda else time.process_time
    begun = clock()
    if train:
        module(images).sum().backward()
    else:
        with torch.inference_mode():
            module(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return clock() - begun


def megabytes(tensors: dict[int, Tensor]) -> float:
    return sum(t.numel() * t.element_size() for t in tensors.values()) / 2**20


def made_on_the_fly(lets: LetsVit) -> tuple[float, float]:
    """(grown, mixed) MB of one pass."""
    with torch.no_grad():
        grown = lets.grown(lets.embed_dim)
        layers = lets.weights()[1]
    mixed = {t.data_ptr(): t for layer in layers for t in layer.values()}
    return megabytes(dict(enumerate(grown.values()))), megabytes(mixed)


def told(times: list[float]) -> str:
    return f"{statistics.median(times):.3f} s ({min(times):.3f} to {max(times):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (
        ("batch", 64),
        ("image-size", 224),
        ("patch", 16),
        ("threads", 2),
        ("rounds", 5),
        ("gene-dim", 384),
        ("dim", 768),
        ("depth", 16),
        ("heads", 12),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--train", action="store_true", help="forward and backward")
    parser.add_argument(
        "--compile", action="store_true", help="both under torch.compile"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = {
        "num_classes": 1000,
        "img_size": options.image_size,
        "patch_size": options.patch,
        "embed_dim": options.dim,
        "depth": options.depth,
        "num_heads": options.heads,
    }
    plain = (
        Arch(
            "timm",
            "vit_base_patch16_224",
            size | {"class_token": False, "global_pool": "avg"},
        )
        .build()
        .to(device)
    )
    lets = (
        Arch("lets_vit", "lets_vit", size | {"gene_dim": options.gene_dim})
        .build()
        .to(device)
    )
    assert isinstance(lets, LetsVit)
    for name, module in (("plain ViT", plain), ("LeTs", lets)):
        print(
            f"{name:10s} {megabytes(dict(enumerate(module.parameters()))):7.1f} MB of"
            " parameters"
        )
    grown, mixed = made_on_the_fly(lets)
    print(
        f"LeTs makes {grown:.1f} MB of grown and {mixed:.1f} MB of mixed weights a pass"
    )
    images = torch.randn(
        options.batch, 3, options.image_size, options.image_size, device=device
    )
    run: dict[str, Callable[[], float]] = {}
    for name, module in (("plain ViT", plain), ("LeTs", lets)):
        timed = torch.compile(module) if options.compile else module
        run[name] = lambda timed=timed: seconds(timed, images, options.train)
    times: dict[str, list[float]] = {name: [] for name in run}
    for i in range(options.rounds + 1):
        for name, once in run.items():
            taken = once()
            if i:  # the first round warms up
                times[name].append(taken)
    what = "forward and backward" if options.train else "forward"
    print(
        f"{what}, batch {options.batch}, {options.image_size} px, {device},"
        f" {options.threads} threads"
    )
    for name, values in times.items():
        print(f"  {name:10s} {told(values)}")
    ratios = [a / b for a, b in zip(times["LeTs"], times["plain ViT"], strict=True)]
    print(
        f"  ratio      {statistics.median(ratios):.3f} ({min(ratios):.3f} to"
        f" {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
