"""What a model costs: parameters, operations, bytes, entropy of its values, and measured latency.

Legend
    N        number of values in the parameters of linear and convolutional layers, biases included;
             those of norms too where a stage quantised them (`include_norm`)
    c_v      how often the value v occurs among them
    H        entropy of the histogram, -Σ (c_v/N) log2(c_v/N) = log2 N - (1/N) Σ c_v log2
             c_v, bits per value: the rate that no code of independent symbols beats
    MAC      one multiply-accumulate, two floating-point operations
"""

import contextlib
import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from compress.measure.latency import times_in_turns
from compress.measure.options import Precision
from compress.runtimes.passes import replayed_pass, timed_pass
from trainers.models.arch import Arch, ModelState, on_meta, shared_on_meta
from trainers.models.parameters import counts_norms, quantizable_parameters

_CHUNK = 1 << 22


def measure_static(state: ModelState, image_size: int) -> dict[str, float | int]:
    """Sizes and entropies that need no data and no accelerator.

    Args:
        state: the model.
        image_size: pixels of the square input image.

    Returns:
        num_params: parameters (no buffers).
        gmacs: 10^9 multiply-accumulates of one image's forward pass, matrix products and
            convolutions only.
        entropy_bits: bits per value of linear and convolutional parameters, zeros included.
        entropy_nonzero_bits: the same of the values that are not zero.
        unique_values: how many different values these parameters have.
        zero_fraction: share of zeros among them.
        model_bytes: parameters and buffers as stored, without any coding.
    """
    names = quantizable_parameters(
        shared_on_meta(state.arch), include_norm=counts_norms(state.meta)
    )
    return {
        **static_cost(state.arch, image_size),
        **asdict(value_statistics([state.weights[name] for name in names])),
        "model_bytes": sum(
            t.numel() * t.element_size() for t in state.weights.values()
        ),
    }


def static_cost(arch: Arch, image_size: int) -> dict[str, float | int]:
    """num_params and gmacs, as `measure_static` gives them; without weights."""
    found = _pass_of_one_image(json.dumps(arch.to_json(), sort_keys=True), image_size)
    return {"num_params": found.num_params, "gmacs": found.gmacs}


@lru_cache(maxsize=1024)
def _pass_of_one_image(arch_json: str, image_size: int) -> "ForwardPass":
    """Counted once for all trials of a process that end in the same architecture."""
    return forward_pass(Arch.from_json(json.loads(arch_json)), image_size)


def count_gmacs(arch: Arch, image_size: int) -> float:
    """10^9 multiply-accumulates of one image's forward pass."""
    return static_cost(arch, image_size)["gmacs"]


PASS_ERRORS = (
    RuntimeError,
    AssertionError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
)
"""What models raise where they cannot take an image."""


class ForwardPass(NamedTuple):
    """What a forward pass tells of a model.

    Attributes:
        num_params: parameters (no buffers).
        gmacs: 10^9 multiply-accumulates of the pass.
        outputs: shape of the logits.
    """

    num_params: int
    gmacs: float
    outputs: tuple[int, ...]


SMALL_PARAMS = 5_000_000
"""A model of fewer parameters is sooner built and run than walked through without values."""


def forward_pass(
    arch: Arch,
    image_size: int,
    *,
    images: int = 1,
    training: bool = False,
    quickly: bool = False,
) -> ForwardPass:
    """One forward pass, of random weights. The same one is not made twice in a process.

    It takes no memory, on the meta device; the few models that look at values run on the CPU.

    Args:
        images: of the batch.
        training: whether the model is in training mode.
        quickly: small models run on the CPU, which a fused operation may keep from counting all.

    Raises:
        One of `PASS_ERRORS`, by the model itself: it cannot take such images.
    """
    text = json.dumps(arch.to_json(), sort_keys=True)
    return _forward_pass(text, image_size, images, training, quickly)


@lru_cache(maxsize=512)
def _forward_pass(
    arch_json: str, image_size: int, images: int, training: bool, quickly: bool
) -> ForwardPass:
    arch = Arch(**json.loads(arch_json))
    shape = (images, arch.args.get("in_chans", 3), image_size, image_size)
    module = on_meta(arch).train(training)
    if not quickly or sum(p.numel() for p in module.parameters()) > SMALL_PARAMS:
        # where it fails, the CPU tells whether the model or the device is to blame
        with contextlib.suppress(*PASS_ERRORS):
            return _counted(module, torch.empty(shape, device="meta"))
    with torch.random.fork_rng(devices=[]):
        return _counted(arch.build().train(training), torch.zeros(shape))


def _counted(module: nn.Module, images: Tensor) -> ForwardPass:
    # without gradients: the counter looks for the history of what parameters alone produce
    module.requires_grad_(False)
    with (
        torch.inference_mode(),
        sdpa_kernel(SDPBackend.MATH),  # on the CPU fused attention escapes the counter
        FlopCounterMode(display=False) as counter,
    ):
        output = module(images)
    logits = output[0] if isinstance(output, tuple) else output
    return ForwardPass(
        sum(p.numel() for p in module.parameters()),
        counter.get_total_flops() / 2 / 1e9,
        tuple(logits.shape),
    )


@dataclass(frozen=True)
class ValueStatistics:
    """Which values some tensors hold, over all of them together.

    Attributes:
        entropy_bits: entropy of the histogram of values, bits per value.
        entropy_nonzero_bits: the same of the values that are not zero.
        unique_values: number of different values.
        zero_fraction: share of zeros.
    """

    entropy_bits: float
    entropy_nonzero_bits: float
    unique_values: int
    zero_fraction: float


def value_statistics(tensors: Sequence[Tensor]) -> ValueStatistics:
    """Statistics of the values of all tensors together.

    Values are compared as float32; -0.0 is 0.0. Of no values at all, every figure is 0.
    """
    total = sum(t.numel() for t in tensors)
    values = np.empty(total, np.float32)
    start = 0
    for tensor in tensors:
        values[start : start + tensor.numel()] = (
            tensor.detach().float().reshape(-1).numpy()
        )
        start += tensor.numel()
    values.sort()
    zeros = int(
        np.searchsorted(values, 0.0, "right") - np.searchsorted(values, 0.0, "left")
    )
    unique, sum_c_log_c = _run_lengths(values)
    nonzero = total - zeros
    zeros_c_log_c = zeros * np.log2(zeros) if zeros else 0.0
    return ValueStatistics(
        entropy_bits=_entropy(total, sum_c_log_c),
        entropy_nonzero_bits=_entropy(nonzero, sum_c_log_c - zeros_c_log_c),
        unique_values=unique,
        zero_fraction=zeros / total if total else 0.0,
    )


def _entropy(total: int, sum_c_log_c: float) -> float:
    # one value only: the difference of two equal logarithms may come out as -1e-16
    return max(0.0, float(np.log2(total) - sum_c_log_c / total)) if total else 0.0


def _run_lengths(values: np.ndarray) -> tuple[int, float]:
    """Number of runs of equal values in a sorted array, and Σ c log2 c over their lengths c."""
    unique = 0
    sum_c_log_c = 0.0
    run_start = 0
    for low in range(
        1, len(values), _CHUNK
    ):  # in chunks: an index array of all runs is twice the values' size
        high = min(low + _CHUNK, len(values))
        starts = np.flatnonzero(values[low:high] != values[low - 1 : high - 1]) + low
        if len(starts):
            counts = np.diff(starts, prepend=run_start).astype(np.float64)
            unique = unique + len(starts)
            run_start = int(starts[-1])
            sum_c_log_c += float((counts * np.log2(counts)).sum())
    if len(values):
        count = len(values) - run_start
        unique = unique + 1
        sum_c_log_c = sum_c_log_c + float(count * np.log2(count))
    return unique, sum_c_log_c


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass of one batch, and what it was measured with.

    Attributes:
        median_ms, p25_ms, p75_ms: median and quartiles over `repeats` passes, milliseconds a batch.
        batch_size, image_size: images a batch, pixels.
        dtype: of weights and images.
        channels_last: memory format.
        num_threads: threads of the CPU's operators.
        repeats: timed passes.
        device_name: the accelerator's name, or "cpu".
    """

    median_ms: float
    p25_ms: float
    p75_ms: float
    batch_size: int
    image_size: int
    dtype: Precision
    channels_last: bool
    num_threads: int
    repeats: int
    device_name: str

    @property
    def images_per_s(self) -> float:
        """Throughput at the median."""
        return 1000 * self.batch_size / self.median_ms


def measure_latency(
    module: nn.Module,
    image_size: int,
    device: torch.device | str,
    *,
    batch_size: int = 1,
    dtype: Precision = "float32",
    warmup: int = 10,
    repeats: int = 50,
    min_repeats: int = 5,
    max_seconds: float = 30.0,
    channels_last: bool = False,
    in_chans: int = 3,
) -> Latency:
    """Time forward passes in inference mode, by CUDA events on an accelerator, else by the
    wall clock.

    A copy of `module` in eval mode is measured, cast to `dtype`; `module` is not changed.

    Args:
        warmup: passes before timing (fewer where they exceed half of `max_seconds`, at least one).
        repeats: timed passes, fewer where `max_seconds` is over, but at least `min_repeats`.
    """
    device = torch.device(device)
    timed = pass_of(
        module,
        image_size,
        device,
        batch_size=batch_size,
        dtype=dtype,
        channels_last=channels_last,
        in_chans=in_chans,
    )
    with torch.inference_mode():
        _repeat(timed, warmup, 1, max_seconds / 2)
        times_ms = _repeat(timed, repeats, min(repeats, min_repeats), max_seconds)
    p25, median, p75 = np.percentile(times_ms, (25, 50, 75))
    return Latency(
        median_ms=float(median),
        p25_ms=float(p25),
        p75_ms=float(p75),
        batch_size=batch_size,
        image_size=image_size,
        dtype=dtype,
        channels_last=channels_last,
        num_threads=torch.get_num_threads(),
        repeats=len(times_ms),
        device_name=(
            torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        ),
    )


def alternating_latency(
    modules: Sequence[nn.Module],
    images: Tensor,
    *,
    warmup: int = 2,
    rounds: int = 25,
    max_seconds: float = 60.0,
) -> list[float]:
    """Median milliseconds of one forward pass of each module, taken in turns, so that their
    ratios hold on a busy machine. On CUDA it is the device's own time (`replayed_pass`).

    Args:
        modules: in eval mode, on the device and in the precision of `images`; not copied.
        images: one batch (B, C, H, W).
        warmup, rounds, max_seconds: see `times_in_turns`.
    """
    with torch.inference_mode():
        passes = [replayed_pass(module, images, images.device) for module in modules]
        times = times_in_turns(
            passes, warmup=warmup, rounds=rounds, max_seconds=max_seconds
        )
    return [float(ms) for ms in np.median(times, axis=1)]


def _repeat(
    timed: Callable[[], float], most: int, least: int, max_seconds: float
) -> list[float]:
    """Milliseconds of each of `most` passes, or of at least `least` within `max_seconds`."""
    begin = time.perf_counter()
    times: list[float] = []
    while len(times) < least or (
        len(times) < most and time.perf_counter() - begin < max_seconds
    ):
        times.append(timed())
    return times


def pass_of(
    module: nn.Module,
    image_size: int,
    device: torch.device,
    *,
    batch_size: int,
    dtype: Precision = "float32",
    channels_last: bool = False,
    in_chans: int = 3,
) -> Callable[[], float]:
    """A function that runs one pass of a copy of `module`, in eval mode and cast to `dtype`, and
    returns its milliseconds. It is to be called in inference mode.
    """
    images = torch.randn(
        batch_size,
        in_chans,
        image_size,
        image_size,
        generator=torch.Generator().manual_seed(0),
    )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    kind: torch.dtype = getattr(torch, dtype)
    model = copy.deepcopy(module).eval().to(device, kind)
    model = model.to(memory_format=layout)  # type: ignore[call-overload]
    return timed_pass(
        model, images.to(device, kind).contiguous(memory_format=layout), device
    )
