"""Parts of `benchmarks/gpu_check.py` that train nothing: latency tables and kernels, WFN's
clustering, the coded file.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gpu_bench import Bench, allow_tf32, context, fixed_batch, loop_rate, synthetic_data
from torch import Tensor, nn

from compress.asp import Asp, has_sparse_kernels, with_sparse_kernels
from compress.codec.file import decode, encode
from compress.measure.model import alternating_latency, measure_latency, timed_pass
from compress.measure.table_measurement import default_grid, measure_table
from compress.wfn.clustering import cluster
from compress.wfn.fixing import fixable_parameters, flat
from compress.wfn.regulariser import PullTable, pull
from trainers.models.arch import ModelState
from trainers.models.from_timm import dense_arch


def latency(bench: Bench) -> None:
    """A latency table of DeiT-B in half precision, measured twice: seconds, and how well it
    repeats.
    """
    arch = dense_arch(bench.vit("deit_base_patch16_224"))
    dtype: Literal["float16", "float32"] = bench.size("float16", "float32")
    points = bench.size({}, {"embed": 2, "heads": 2, "qk": 2, "v": 2, "mlp": 2})
    grid = default_grid(arch.dims, points=points)
    shares: list[np.ndarray] = []
    for _ in range(2):
        bench.forget_peak()
        begin = bench.now()
        table = measure_table(
            arch,
            bench.device,
            batch_size=bench.size(256, 1),
            dtype=dtype,
            grid=grid,
            rounds=bench.size(5, 1),
        )
        seconds = bench.now() - begin
        block = table.block.ravel()
        shares.append(block / block[-1])
        bench.emit(
            {
                "what": "table",
                "points": block.size,
                "batch": bench.size(256, 1),
                "dtype": dtype,
                "seconds": round(seconds, 1),
                "largest_block_ms": round(float(block[-1]), 4),
                "smallest_block_ms": round(float(block.min()), 4),
                "violations": len(table.check_monotone()),
                "peak_gib": bench.peak_gib(),
            }
        )
    first, second = shares
    noise = {
        "rms_of_point": float(np.sqrt(np.mean(np.log(first / second) ** 2))),
        "rms_of_largest": float(np.sqrt(np.mean((first - second) ** 2))),
        "worst_of_point": float(np.abs(np.log(first / second)).max()),
    }
    bench.emit(
        {"what": "repeated", **{name: round(value, 5) for name, value in noise.items()}}
    )


def clustering(bench: Bench) -> None:
    """WFN's clustering, its pull and the coded file, for weights that are on the device."""
    state = ModelState.initialised(bench.vit("deit_small_patch16_224"), 0)
    module = state.build().to(bench.device)
    parameters = fixable_parameters(module, include_norm=False)
    weights = flat(parameters)
    begin = bench.now()
    here = cluster(weights, 1.0, 0.05)
    on_device_s = bench.now() - begin
    begin = bench.now()
    there = cluster(weights.cpu(), 1.0, 0.05)
    bench.emit(
        {
            "what": "clustering",
            "weights": len(weights),
            "values": len(here.codebook),
            "device_tensor_s": round(on_device_s, 2),
            "cpu_tensor_s": round(bench.now() - begin, 2),
            "same": torch.equal(here.values.cpu(), there.values)
            and torch.equal(here.assignments.cpu(), there.assignments),
        }
    )
    bench.forget_peak()
    begin = bench.now()
    table = PullTable.build(
        here.codebook, 1.5 * float(weights.abs().max()), "relative", 2**-7
    )
    table_s = bench.now() - begin
    rate = loop_rate(
        bench, lambda: _pull_once(weights, table), len(weights), bench.size(10, 1)
    )
    bench.emit(
        {
            "what": "pull",
            "weights": len(weights),
            "table_s": round(table_s, 3),
            "cells": table.cells,
            "forward_backward_ms": rate["ms_per_step"],
            "peak_gib": rate["peak_gib"],
        }
    )
    with torch.no_grad():
        sizes = [p.numel() for p in parameters.values()]
        for parameter, value in zip(
            parameters.values(), here.values.split(sizes), strict=True
        ):
            parameter.copy_(value.view_as(parameter))
    _coded(bench, ModelState.from_module(state.arch, module))


def _pull_once(weights: Tensor, table: PullTable) -> None:
    pull(weights.requires_grad_(), table).backward()
    weights.grad = None


def _coded(bench: Bench, state: ModelState) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.coded"
        begin = time.perf_counter()
        coded = encode(state, path)
        encoded = time.perf_counter()
        same = decode(path).hash() == state.hash()
        bench.emit(
            {
                "what": "coded file",
                "bytes": coded.size.total_bytes,
                "encode_s": round(encoded - begin, 2),
                "decode_s": round(time.perf_counter() - encoded, 2),
                "same": same,
            }
        )


def sparse(bench: Bench) -> None:
    """2:4 sparse kernels beside dense ones, whole models in float16: launched kernel by
    kernel, and replayed as a graph.
    """
    if not has_sparse_kernels(bench.device):
        bench.emit({"skipped": "no 2:4 kernels on this device"})
        return
    for name in ("deit_small_patch16_224", "deit_base_patch16_224"):
        state = ModelState.initialised(bench.vit(name), 0)
        data = synthetic_data(bench.classes, bench.image_px, 8)
        model = Asp(measure=False).run(state, context(bench, data))
        dense = model.build().to(bench.device, torch.float16)
        kernels = with_sparse_kernels(dense, model.meta["asp"]["layers"], torch.float16)
        for batch in bench.size((1, 64, 256), (4,)):
            images = fixed_batch(bench, batch)[0].half()
            with torch.inference_mode():
                a, b = dense(images).float(), kernels(images).float()
                difference = float((a - b).norm() / a.norm())
                launched = [_median_ms(module, images) for module in (dense, kernels)]
            line = {
                "model": name,
                "batch": batch,
                "relative_difference": round(difference, 5),
            }
            bench.emit(line | _speed("launched", *launched))
            bench.forget_peak()
            replayed = alternating_latency([dense, kernels], images, rounds=15)
            bench.emit(
                line | _speed("replayed", *replayed) | {"peak_gib": bench.peak_gib()}
            )


def _median_ms(module: nn.Module, images: Tensor) -> float:
    timed = timed_pass(module, images, images.device)
    return statistics.median([timed() for _ in range(12)][2:])


def _speed(how: str, dense_ms: float, sparse_ms: float) -> dict[str, Any]:
    return {
        "how": how,
        "dense_ms": round(dense_ms, 3),
        "sparse_ms": round(sparse_ms, 3),
        "speedup": round(dense_ms / sparse_ms, 3),
    }


def precision(bench: Bench) -> None:
    """Inference latency of whole models by precision and batch."""
    allow_tf32()
    models = {"DeiT-B": bench.vit("deit_base_patch16_224"), "ResNet-50": bench.resnet()}
    for name, arch in models.items():
        module = ModelState.initialised(arch, 0).build()
        for batch in bench.size((1, 256), (2,)):
            for dtype in ("float32", "bfloat16", "float16"):
                bench.forget_peak()
                found = measure_latency(
                    module,
                    bench.image_px,
                    bench.device,
                    batch_size=batch,
                    dtype=dtype,
                    repeats=bench.size(20, 2),
                    channels_last=name == "ResNet-50",
                    max_seconds=3,
                )
                bench.emit(
                    {
                        "model": name,
                        "batch": batch,
                        "dtype": dtype,
                        "tf32": dtype == "float32",
                        "median_ms": round(found.median_ms, 3),
                        "p25_ms": round(found.p25_ms, 3),
                        "p75_ms": round(found.p75_ms, 3),
                        "images_per_s": round(found.images_per_s),
                        "peak_gib": bench.peak_gib(),
                    }
                )
