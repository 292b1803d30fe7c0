"""Timed forward passes of torch modules."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def timed_pass(
    model: nn.Module, images: Tensor, device: torch.device
) -> Callable[[], float]:
    """A function that runs one pass, launched kernel by kernel, and returns its milliseconds."""
    return timed_call(lambda: model(images), device)


def timed_call(run: Callable[[], Any], device: torch.device) -> Callable[[], float]:
    """A function that runs `run` and returns its milliseconds, on CUDA those of the device."""
    if device.type == "cuda":
        return _by_events(run, device)

    def by_wall_clock() -> float:
        begin = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - begin)

    return by_wall_clock


def replayed_pass(
    model: nn.Module, images: Tensor, device: torch.device, pool: Any = None
) -> Callable[[], float]:
    """`timed_pass`, on CUDA the replay of a graph that was captured once.

    That is the time of the device alone, as of a deployed model. Launched from Python, the
    kernels of a small layer wait for their launches, and all small layers take equally long.

    Args:
        pool: a handle of `torch.cuda.graph_pool_handle`, for graphs that share memory.
    """
    if device.type != "cuda":
        return timed_pass(model, images, device)
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        model(
            images
        )  # libraries choose kernels and take their memory before the capture
        graph.capture_begin(pool=pool)
        model(images)
        graph.capture_end()
    torch.cuda.current_stream(device).wait_stream(stream)
    return _by_events(graph.replay, device)


def _by_events(run: Callable[[], Any], device: torch.device) -> Callable[[], float]:
    """A function that runs `run` and returns its milliseconds by CUDA events."""

    def timed() -> float:
        with torch.cuda.device(device):
            begin = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            begin.record()
            run()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end)

    return timed
