"""Bytes of coded models against the order-0 entropy and float32, and coding speed in one thread.

    python benchmarks/codec.py --checkpoint resnet20.safetensors --model resnet20_cifar
    --num-classes 10

Quantises the checkpoint in several ways: `wfn a` is one clustering call at allowed distance
a, `uniform` one grid for the whole network, `per tensor` a grid of 16 levels for each
tensor. Without a checkpoint, and for speed, the weights are Laplace noise in ResNet-18's
shapes (11.7 M), every layer with a scale of its own.

With --nncodec-python (an interpreter that has PyPI's `nncodec`; it wants NumPy 1, so an
environment of its own) NNCodec codes the same indices losslessly, as integers around zero;
its bytes do not hold the codebook.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from compress.codec.arch import arch_tensors
from compress.codec.file import decode_bytes, encode
from compress.measure.model import value_statistics
from compress.wfn.clustering import cluster
from trainers.models.arch import ModelState
from trainers.models.make import make_arch

NNCODEC = """
import json, sys, time
import numpy as np
from nncodec import nnc
indices = dict(np.load(sys.argv[1]))
results = []
for unary in (10, 20):
    start = time.perf_counter()
    coded = nnc.compress(
        {k: v.copy() for k, v in indices.items()},
        bitstream_path=sys.argv[1] + ".nnc",
        use_dq=False,
        row_skipping=True,
        cabac_unary_length_minus1=unary,
        return_bitstream=True,
    )
    middle = time.perf_counter()
    decoded = nnc.decompress(coded)
    end = time.perf_counter()
    assert all((decoded[k] == v).all() for k, v in indices.items())
    results.append((len(coded), middle - start, end - middle))
print("RESULT " + json.dumps(min(results)))
"""


def main() -> None:
    """Print a line for each quantisation and mode."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, help="safetensors of --model")
    parser.add_argument("--model", default="resnet20_cifar")
    parser.add_argument("--num-classes", type=int, default=10)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument(
        "--distances", type=float, nargs="*", default=[0.03, 0.05, 0.1, 0.2]
    )
    parser.add_argument("--nncodec-python", type=Path, help="interpreter with nncodec")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.checkpoint:
        source = load(args.checkpoint, args.model, args.num_classes, args.image_size)
        quantisers: dict[str, Callable[[ModelState], ModelState]] = {
            **{f"wfn {a}": partial(clustered, distance=a) for a in args.distances},
            "uniform": partial(on_grids, together=True),
            "per tensor": partial(on_grids, together=False),
        }
        for name, quantise in quantisers.items():
            report(
                f"{args.model}, {name}",
                quantise(source),
                args.repeats,
                args.nncodec_python,
            )
    report("resnet18, Laplace", laplace("resnet18"), args.repeats, args.nncodec_python)


def load(path: Path, model: str, num_classes: int, image_size: int) -> ModelState:
    """The checkpoint; counters that it lacks are zero."""
    arch = make_arch(model, num_classes=num_classes, image_size=image_size)
    weights = load_file(path)
    shapes = ModelState.initialised(arch, 0).weights
    counters = {
        k: torch.zeros_like(v)
        for k, v in shapes.items()
        if k not in weights and not v.is_floating_point()
    }
    return ModelState(arch, weights | counters)


def indexable(state: ModelState) -> list[str]:
    """Names of linear and convolutional parameters, in order."""
    tensors = arch_tensors(state.arch, len(state.weights))
    return [name for name in tensors.shapes if name in tensors.indexable]


def clustered(state: ModelState, distance: float) -> ModelState:
    """All weights fixed by one clustering call."""
    names = indexable(state)
    values = cluster(
        torch.cat([state.weights[n].reshape(-1) for n in names]), 1.0, distance
    ).values
    parts = values.split([state.weights[n].numel() for n in names])
    fixed = {
        n: part.reshape(state.weights[n].shape)
        for n, part in zip(names, parts, strict=True)
    }
    return ModelState(state.arch, state.weights | fixed)


def on_grids(state: ModelState, *, together: bool) -> ModelState:
    """Rounded to multiples of a step: 0.4 standard deviations of all weights, or a 7th of
    each tensor's largest.
    """
    names = indexable(state)
    spread = 0.4 * torch.cat([state.weights[n].reshape(-1) for n in names]).std()
    fixed = {}
    for name in names:
        tensor = state.weights[name]
        step = spread if together else tensor.abs().max() / 7
        fixed[name] = torch.round(tensor / step) * step + 0.0
    return ModelState(state.arch, state.weights | fixed)


def laplace(model: str) -> ModelState:
    """Laplace weights of another scale in each layer, on 101 values about 9 % apart, small
    ones 0.
    """
    state = ModelState.initialised(
        make_arch(model, num_classes=1000, image_size=224), 0
    )
    rng = np.random.default_rng(0)
    positive = 2.0**-7 * 1.09 ** np.arange(50)
    values = np.concatenate([-positive[::-1], [0], positive])
    edges = (values[1:] + values[:-1]) / 2
    edges[49:51] = -(2.0**-7), 2.0**-7
    weights = dict(state.weights)
    for name in indexable(state):
        noise = rng.laplace(
            scale=0.02 * rng.uniform(0.5, 2), size=tuple(weights[name].shape)
        )
        weights[name] = torch.from_numpy(
            values[np.searchsorted(edges, noise)].astype(np.float32)
        )
    return ModelState(state.arch, weights)


def report(title: str, state: ModelState, repeats: int, nncodec: Path | None) -> None:
    """Sizes and speeds of one model in both modes, and NNCodec's."""
    tensors = [state.weights[name] for name in indexable(state)]
    count = sum(t.numel() for t in tensors)
    statistics = value_statistics(tensors)
    bound = count * statistics.entropy_bits / 8
    print(
        f"{title}: {count:,} weights, {statistics.unique_values} values,"
        f" {statistics.entropy_bits:.4f} bits; order-0 bound {bound:,.0f} bytes,"
        f" float32 {4 * count:,} bytes"
    )
    for mode in ("contexts", "order0"):
        encode_s, decode_s = [], []
        for _ in range(repeats):
            start = time.perf_counter()
            coded = encode(state, mode=mode)  # type: ignore[arg-type]
            middle = time.perf_counter()
            decoded = decode_bytes(coded.content)
            end = time.perf_counter()
            encode_s.append(middle - start)
            decode_s.append(end - middle)
        assert decoded.hash() == state.hash()
        size = coded.size
        coded_bytes = size.index_bytes + size.codebook_bytes
        print(
            f"  {mode:10} {size.index_bytes:>10,} bytes of indices"
            f" ({size.index_bytes / bound - 1:+.2%} of the bound),"
            f" {size.codebook_bytes} codebook, {size.header_bytes} header,"
            f" {size.tensor_bytes:,} other tensors; {4 * count / coded_bytes:.1f} times"
            f" smaller than float32; encode {count / min(encode_s) / 1e6:.1f}, decode"
            f" {count / min(decode_s) / 1e6:.1f} M weights/s"
        )
    if nncodec:
        with_nncodec(nncodec, tensors, count, bound)


def with_nncodec(
    python: Path, tensors: list[torch.Tensor], count: int, bound: float
) -> None:
    """NNCodec's line: it gets ranks of values (0 next to zero), of all or of each tensor,
    whichever is smaller.
    """
    whole = np.unique(torch.cat([t.reshape(-1) for t in tensors]).numpy())
    results = []
    for each in (False, True):
        arrays = {}
        for i, tensor in enumerate(tensors):
            values = np.unique(tensor.numpy()) if each else whole
            ranks = np.searchsorted(values, tensor.numpy()) - np.argmin(np.abs(values))
            arrays[f"t{i:04}"] = ranks.astype(np.int32)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "indices.npz"
            np.savez(path, **arrays)  # type: ignore[arg-type]
            done = subprocess.run(
                [python, "-c", NNCODEC, path],
                capture_output=True,
                text=True,
                cwd=folder,
                check=False,
            )
        found = [
            line for line in done.stdout.splitlines() if line.startswith("RESULT ")
        ]
        if not found:
            print(
                "  NNCodec failed:"
                f" {(done.stderr.strip().splitlines() or ['no output'])[-1]}"
            )
            return
        results.append(json.loads(found[0].removeprefix("RESULT ")))
    size, encode_s, decode_s = min(results)
    print(
        f"  {'NNCodec':10} {size:>10,} bytes of indices ({size / bound - 1:+.2%} of the"
        f" bound), lossless; encode {count / encode_s / 1e6:.1f}, decode"
        f" {count / decode_s / 1e6:.1f} M weights/s"
    )


if __name__ == "__main__":
    main()
