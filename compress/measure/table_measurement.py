"""Measuring a latency table on this device: random blocks of a model's kind at the points
of a grid.

Points are visited in several rounds, each in another random order. Every pass is followed
by one of the largest block, and a point's value is the median ratio of the two, times the
median of the largest block over the whole measurement: a device that slows down or is
disturbed for a while slows both, and what is left of it is noise, not structure.

A runtime that executes files takes some time for each call, whatever the file computes. A call that
computes nothing is measured too, and taken from blocks and head; the stem keeps it, once a model.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.measure.exported_blocks import ExportedBlocks, Job, Quantiser
from compress.measure.latency import settled
from compress.measure.latency_table import (
    Array,
    Fingerprint,
    LatencyTable,
    device_name,
    num_threads,
)
from compress.measure.options import Precision, RuntimeName, RuntimeOptions
from compress.runtimes.interface import INTEGERS, OnnxBased, Session
from compress.runtimes.passes import replayed_pass
from compress.runtimes.registry import runtime as runtime_of
from trainers import measuring
from trainers.models.arch import Arch, meta_device
from trainers.models.from_timm import dense_arch
from trainers.models.parameters import BLOCK_DIMS, DIMENSIONS
from trainers.models.pruned_vit import PrunedBlock, PrunedVit

GROUPS: Mapping[str, int] = MappingProxyType(
    {"embed": 16, "heads": 2, "qk": 8, "v": 8, "mlp": 16}
)
"""NViT's group sizes: the smallest that pruning leaves of each dimension."""
POINTS: Mapping[str, int] = MappingProxyType(
    {"embed": 4, "heads": 3, "qk": 3, "v": 3, "mlp": 4}
)
"""Grid points of each dimension by default."""
_WARM_SECONDS = 1.0
_ROUND_SECONDS = 60.0
"""How long other work on the node stands still for a round, at most."""


def default_grid(
    dims: Mapping[str, Any],
    *,
    points: Mapping[str, int] | None = None,
    groups: Mapping[str, int] | None = None,
) -> dict[str, list[int]]:
    """Evenly spaced grid points from one group to the model's largest block, multiples of
    the group in between.

    Args:
        dims: of the unpruned model, as in `Arch.dims`.
        points, groups: over `POINTS` and `GROUPS`.

    Raises:
        ValueError: an unknown dimension, fewer than 2 points or a group below 1.
    """
    counts = {**POINTS, **(points or {})}
    sizes = {**GROUPS, **(groups or {})}
    unknown = sorted({*counts, *sizes} - set(DIMENSIONS))
    if unknown:
        raise ValueError(
            f"no dimension {unknown[0]!r} in a latency table; valid:"
            f" {', '.join(DIMENSIONS)}"
        )
    grid = {}
    for name in DIMENSIONS:
        if counts[name] < 2 or sizes[name] < 1:
            raise ValueError(
                f"{name}: at least 2 points and groups of at least 1; got"
                f" {counts[name]}, {sizes[name]}"
            )
        largest = dims[name] if name == "embed" else max(dims[name])
        floor = min(sizes[name], largest)
        inner = (
            sizes[name] * round(x / sizes[name])
            for x in np.linspace(floor, largest, counts[name])[1:-1]
        )
        grid[name] = sorted(
            {floor, *(x for x in inner if floor < x < largest), largest}
        )
    return grid


def measure_table(
    arch: Arch,
    device: torch.device | str,
    *,
    batch_size: int,
    dtype: Precision = "float32",
    grid: Mapping[str, Sequence[int]] | None = None,
    rounds: int = 5,
    passes: int = 2,
    tf32: bool = True,
    seed: int = 0,
    runtime: RuntimeName = "torch",
    quantiser: Quantiser | None = None,
    on_point: Callable[[int, int], None] = lambda done, total: None,
) -> LatencyTable:
    """Measure block, stem and head latency of a model's kind over a grid.

    Args:
        arch: a timm ViT or DeiT, or a `pruned_vit`; its image and patch size decide the
            number of tokens.
        batch_size: images a pass.
        grid: ascending points of each dimension; default: `default_grid`.
        rounds, passes: timed passes of a point, each beside one of the largest block, are
            their product; each visit begins with passes that are not timed.
        tf32: allow TF32 in float32 products on CUDA, as `TrainConfig.tf32` does.
        seed: of order and weights.
        runtime: what executes the blocks.
        quantiser: makes integers of a block, for a table of int8; the runtime must be one that
            executes a file made of ONNX.
        on_point: called after each visit of a point with the visits done and in all.

    Raises:
        ValueError: not a ViT, a grid without points, a runtime that does not execute integers, or
            a device that runs out of memory.
    """
    arch = dense_arch(arch)
    device = torch.device(device)
    grid = grid or default_grid(arch.dims)
    axes = tuple(np.array(grid[name]) for name in DIMENSIONS)
    options = RuntimeOptions(
        runtime=runtime,
        batch_size=batch_size,
        precision=dtype,
        threads=num_threads(device) or None,
    )
    probe = _Probe(arch, device, options, [int(axis[-1]) for axis in axes], quantiser)
    points = list(itertools.product(*(axis.tolist() for axis in axes)))
    ends = ("stem", "head") if probe.exported is None else ("stem", "head", "nothing")
    jobs = [*points, *((end, e) for end in ends for e in grid["embed"])]
    with torch.inference_mode(), _tf32(tf32), _memory_hint(batch_size):
        times = _visit(probe, jobs, rounds, passes, seed, on_point)
    own, largest = np.array(times).transpose(2, 0, 1)  # (jobs, rounds × passes) each
    values = np.median(own / largest, axis=1) * np.median(largest)
    values[len(points) - 1] = np.median(largest)  # the same block twice
    block = values[: len(points)].reshape([len(axis) for axis in axes])
    stem, head, *nothing = values[len(points) :].reshape(len(ends), -1)
    for call in nothing:
        # a model is called once, and its blocks are not
        block, head = _without(block, call), _without(head, call)
    fingerprint = Fingerprint(
        device_name=device_name(device),
        driver=_driver(device),
        torch_version=torch.__version__,
        batch_size=batch_size,
        dtype=dtype if quantiser is None else INTEGERS,
        tf32=tf32,
        image_size=arch.args["img_size"],
        num_tokens=probe.num_tokens,
        num_threads=num_threads(device),
        runtime=runtime,
    )
    return LatencyTable(
        axes,
        block,
        stem,
        head,
        fingerprint,
    )


def _without(times: Array, call: Array) -> Array:
    """Times (widths, ...) less what a call takes that computes nothing (widths,)."""
    left = times - call.reshape(-1, *[1] * (times.ndim - 1))
    return np.maximum(left, 0.01 * times)


def _visit(
    probe: "_Probe",
    jobs: Sequence[Job],
    rounds: int,
    passes: int,
    seed: int,
    on_point: Callable[[int, int], None],
) -> list[list[tuple[float, float]]]:
    """Milliseconds of every pass of each job, and of the largest block beside it."""
    times: list[list[tuple[float, float]]] = [[] for _ in jobs]
    probe.warm_up()
    generator = np.random.default_rng(seed)
    visits = itertools.count(1)
    for _ in range(rounds):
        order = generator.permutation(len(jobs)).tolist()
        with measuring.alone(probe.device, _ROUND_SECONDS):
            for index in order:
                times[index] += probe.times_ms(jobs[index], passes)
                on_point(next(visits), rounds * len(jobs))
    return times


class _Probe:
    """Builds blocks, stems and heads of any dimensions from one pool of random numbers and
    times them.
    """

    def __init__(
        self,
        arch: Arch,
        device: torch.device,
        options: RuntimeOptions,
        largest: list[int],
        quantiser: Quantiser | None,
    ) -> None:
        self.arch = arch
        self.device = device
        self.options = options
        self.passes: dict[Job, Callable[[], float]] = {}
        batch_size = self.batch_size = options.batch_size
        # a runtime that executes a file casts by itself
        dtype = options.precision if options.runtime == "torch" else "float32"
        self.kind = {
            name: arch.args[name]
            for name in ("scale", "qkv_bias", "norm_eps")
            if name in arch.args
        }
        self.largest = tuple(largest)
        whole = self._vit(largest[0])
        self.num_tokens = whole.patch_embed.num_patches + whole.num_prefix_tokens
        patches = whole.patch_embed
        self.image_shape = (batch_size, patches.proj.in_channels, *patches.img_size)
        sizes = [
            sum(p.numel() for p in m.parameters())
            for m in (whole, self._block(self.largest))
        ]
        inputs = max(
            math.prod(self.image_shape), batch_size * self.num_tokens * largest[0]
        )
        generator = torch.Generator().manual_seed(0)
        # real values: zeros and denormals run at another speed
        self.weights = (
            torch.randn(max(sizes), generator=generator)
            .mul_(0.02)
            .to(device, getattr(torch, dtype))
        )
        self.inputs = torch.randn(inputs, generator=generator).to(
            device, getattr(torch, dtype)
        )
        self.exported = self._exported(quantiser)
        # graphs share their memory: no two run at once
        self.pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        with torch.inference_mode():
            self.reference = self._timed(self.largest)

    def _block(self, dims: tuple[int, ...]) -> nn.Module:
        with meta_device():
            return PrunedBlock(*dims, **self.kind).eval()

    def _vit(self, embed: int) -> PrunedVit:
        dims = {"embed": embed, **{name: [1] for name in BLOCK_DIMS}}
        with meta_device():
            return PrunedVit(dims=dims, **self.arch.args).eval()

    def _filled(self, module: nn.Module) -> nn.Module:
        """The module with weights from the pool, each its own part of it, without copying."""
        state = {}
        start = 0
        for name, parameter in module.named_parameters():
            state[name] = self.weights[start : start + parameter.numel()].view(
                parameter.shape
            )
            start += parameter.numel()
        module.load_state_dict(state, assign=True)
        return module

    def _module(self, job: Job) -> nn.Module:
        """Without values, on the meta device."""
        if job[0] == "nothing":
            return _Nothing()
        if isinstance(job[0], str):
            return _Part(self._vit(job[1]), job[0])
        return self._block(job)

    def _shape(self, job: Job) -> tuple[int, ...]:
        """Of a job's input."""
        if job[0] == "stem":
            return self.image_shape
        return (
            self.batch_size,
            self.num_tokens,
            job[1 if isinstance(job[0], str) else 0],
        )

    def _job(self, job: Job) -> tuple[nn.Module, Tensor]:
        shape = self._shape(job)
        inputs = self.inputs[: math.prod(shape)].view(shape)
        return self._filled(self._module(job)), inputs

    def _example(self, job: Job) -> tuple[nn.Module, Tensor]:
        """A job of any size, with values of its own, to be exported."""
        generator = torch.Generator().manual_seed(0)
        module = self._module(job).to_empty(device="cpu")
        for parameter in module.parameters():
            parameter.normal_(std=0.02, generator=generator)
        return module.eval(), torch.randn(self._shape(job), generator=generator)

    def times_ms(self, job: Job, passes: int) -> list[tuple[float, float]]:
        """Milliseconds of each pass and of the largest block beside it, in turns: in a model, too,
        a block follows another one. Before that both run in turns until they have settled.
        """
        timed = self._timed(job)
        settled(lambda: timed() + self.reference())
        return [(timed(), self.reference()) for _ in range(passes)]

    def _timed(self, job: Job) -> Callable[[], float]:
        if self.options.runtime == "torch":
            return replayed_pass(*self._job(job), self.device, self.pool)
        if job not in self.passes:
            inputs = self._job(job)[1].cpu().numpy()
            self.passes[job] = self._session(job).timed_pass(inputs)
        return self.passes[job]

    def _session(self, job: Job) -> Session:
        if self.exported is not None:
            return self.exported.session(job)
        chosen = runtime_of(self.options.runtime)
        module, inputs = self._job(job)
        # compilers trace, which inference mode does not allow
        with torch.inference_mode(False), torch.no_grad():
            module = copy.deepcopy(module)
            return chosen.session_of(module, inputs, self.options, self.device.type)

    def _exported(self, quantiser: Quantiser | None) -> ExportedBlocks | None:
        """Raises ValueError where the runtime cannot do what is asked of it here."""
        chosen = runtime_of(self.options.runtime)
        chosen.check(self.options, self.device.type)
        if not isinstance(chosen, OnnxBased):
            if quantiser is not None:
                raise ValueError(
                    f"runtime {chosen.name} does not execute integers; valid:"
                    " onnxruntime, openvino"
                )
            return None
        patches = self._vit(self.largest[0]).patch_embed
        taken = {
            *self.image_shape,
            *patches.patch_size,
            *patches.grid_size,
            patches.num_patches,
            self.num_tokens,
            self.arch.args["num_classes"],
        }
        return ExportedBlocks(chosen, self.options, self._example, taken, quantiser)

    def warm_up(self) -> None:
        """Run the largest block until clocks and allocator have settled."""
        spent_ms = 0.0
        while spent_ms < 1000 * _WARM_SECONDS:
            spent_ms += self.reference()


class _Nothing(nn.Module):
    """The least that a runtime can be asked to compute of tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return -x


class _Part(nn.Module):
    """What a model does before its blocks (images → tokens), or after them (tokens → logits)."""

    def __init__(self, vit: nn.Module, part: str) -> None:
        super().__init__()
        self.vit = vit
        self.part = part

    def forward(self, x: Tensor) -> Any:
        vit: Any = self.vit
        return vit.embed(x) if self.part == "stem" else vit.classify(vit.norm(x))


@contextmanager
def _tf32(allow: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextmanager
def _memory_hint(batch_size: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"the device has too little memory for a batch of {batch_size}; lower the"
            " batch"
        ) from error


def _driver(device: torch.device) -> str:
    """Version of the accelerator's kernel driver where Linux tells it, else of CUDA; "" on
    the CPU.
    """
    if device.type != "cuda":
        return ""
    file = Path("/proc/driver/nvidia/version")
    found = (
        [
            word
            for word in file.read_text().split()
            if word[:1].isdigit() and "." in word
        ]
        if file.exists()
        else []
    )
    return found[0] if found else f"CUDA {torch.version.cuda}"
