"""2:4 structured sparsity (Mishra et al., Accelerating Sparse Deep Neural Networks, 2021):
of every four weights along a layer's input, the two of smaller magnitude become 0.

Training afterwards keeps the zeros: `meta["asp"]` names the layers, and `HoldZeros` acts in
`finetune`. Sparse kernels are torch's semi-structured tensors (half precision on CUDA
devices of compute capability 8.0 and up); elsewhere the model stays dense with zeros in it,
computes the same and is not faster.
"""

import copy
import logging
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.measure.model import alternating_latency
from compress.metrics import Metric
from compress.stage import Context, Phase, Stage
from trainers.data.splits import DataInfo
from trainers.models.arch import Arch, ModelState, shared_on_meta
from trainers.models.parameters import classifier_layers
from trainers.training import distributed
from trainers.training.fit import Hook
from trainers.training.sharding import placed_like

_log = logging.getLogger(__name__)
_ROWS = 32
_COLUMNS = 64
"""Shapes of half-precision matrices that torch's kernels take are multiples of these."""


def mask_2_of_4(weight: Tensor) -> Tensor:
    """Which weights of a matrix (rows, columns) stay: the 2 largest magnitudes of every 4
    in a row; bool, same shape.

    Of equal magnitudes the first stays.

    Raises:
        ValueError: the columns do not divide by 4.
    """
    if weight.ndim != 2 or weight.shape[1] % 4:
        raise ValueError(
            "2:4 sparsity needs a matrix whose columns divide by 4; got shape"
            f" {tuple(weight.shape)}"
        )
    fours = weight.abs().reshape(-1, 4)
    order = fours.argsort(dim=1, descending=True, stable=True)
    keep = torch.zeros_like(fours, dtype=torch.bool).scatter_(1, order[:, :2], True)
    return keep.view_as(weight)


def has_sparse_kernels(device: torch.device) -> bool:
    """Whether torch has kernels for 2:4 sparse matrices on this device. They need not be
    faster than dense ones: on an H100 whole models were slower (docs/benchmarks.md).
    """
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def with_sparse_kernels(
    module: nn.Module, layers: Iterable[str], dtype: torch.dtype
) -> nn.Module:
    """A copy in half precision whose 2:4 layers use torch's semi-structured kernels, for inference.

    Args:
        module: on a device with `has_sparse_kernels`.
        layers: paths of Linear layers that are 2:4 sparse; those of unsuitable shape stay dense.
        dtype: float16 or bfloat16.
    """
    from torch.sparse import to_sparse_semi_structured

    module = copy.deepcopy(module).to(dtype).eval().requires_grad_(False)
    for path in layers:
        layer: Any = module.get_submodule(path)
        rows, columns = layer.weight.shape
        if rows % _ROWS == 0 and columns % _COLUMNS == 0:
            layer.weight = nn.Parameter(
                to_sparse_semi_structured(layer.weight), requires_grad=False
            )
            layer.register_forward_hook(_in_order)
    return module


def _in_order(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Copies what sparse kernels leave transposed: all that follows is slow on that."""
    return output.contiguous()


class HoldZeros(Hook):
    """Keeps zero weights of the named layers at zero, to the bit."""

    def __init__(self, module: nn.Module, masks: dict[str, Tensor]) -> None:
        self.masks = masks
        self.held: list[tuple[nn.Parameter, Tensor]] = []
        self.on_begin(module)

    def on_begin(self, module: nn.Module) -> None:
        self.held = [
            (parameter, placed_like(self.masks[name], parameter))
            for name, parameter in module.named_parameters()
            if name in self.masks
        ]
        self.on_step(0)

    def on_grads(self, step: int) -> None:
        for parameter, keep in self.held:
            if parameter.grad is not None:
                parameter.grad.mul_(keep)

    @torch.no_grad()
    def on_step(self, step: int) -> bool | None:
        for parameter, keep in self.held:
            parameter.mul_(keep)
        return None


def asp_masks(model: ModelState) -> dict[str, Tensor]:
    """Weight name → its 2:4 mask, of a model that came through `asp`; empty for any other."""
    names = [f"{layer}.weight" for layer in model.meta.get("asp", {}).get("layers", [])]
    return {name: mask_2_of_4(model.weights[name]) for name in names}


class Asp(Stage):
    """Zero two of every four weights of all Linear layers but the classifier; a `finetune`
    after it keeps them zero.
    """

    phase: ClassVar[Phase] = "prune"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Mishra et al., Accelerating Sparse Deep Neural Networks, arXiv 2104.08378"
    )
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("sparse_layers", "layers with the 2:4 pattern", "1"),
        Metric(
            "sparse_kernels", "whether the device multiplies them faster (1 or 0)", "1"
        ),
        Metric(
            "sparse_speedup_measured",
            "latency in float16 with dense kernels over that with sparse ones, of the"
            " device alone",
            "1",
            is_time=True,
        ),
    )

    measure: bool = Field(
        True,
        description=(
            "measure the speed-up in float16 where the device has sparse kernels"
        ),
    )
    measure_batch: int = Field(64, ge=1, description="images in a batch")

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        if not _linear_layers(arch):
            raise ValueError(
                f"{arch.name} has no Linear layer whose inputs divide by 4, besides its"
                " classifier; 2:4 sparsity needs one (convolutions are left dense). Use"
                " wfn, uniform_quant or kmeans_quant, which take every layer"
            )
        return arch

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        layers = _linear_layers(model.arch)
        weights = {name: value.clone() for name, value in model.weights.items()}
        for layer in layers:
            weight = weights[f"{layer}.weight"]
            weights[f"{layer}.weight"] = weight * mask_2_of_4(weight)
        sparse = ModelState(
            model.arch,
            weights,
            model.meta | {"asp": {"pattern": "2:4", "layers": layers}},
        )
        kernels = has_sparse_kernels(ctx.device)
        ctx.report(sparse_layers=len(layers), sparse_kernels=int(kernels))
        if not kernels:
            _log.warning(
                "asp: %s has no kernels for 2:4 sparsity; the zeros are kept, but they"
                " make nothing faster here",
                ctx.device,
            )
        elif self.measure:
            measured = self._speedup(sparse, ctx) if distributed.rank() == 0 else None
            speedup = distributed.from_rank_0(measured)
            ctx.report(sparse_speedup_measured=speedup)
            if speedup <= 1:
                _log.warning(
                    "asp: the 2:4 kernels of %s are not faster: %.2f of the dense speed",
                    ctx.device,
                    speedup,
                )
        return sparse

    def _speedup(self, model: ModelState, ctx: Context) -> float:
        dense = model.build().to(ctx.device, torch.float16)
        sparse = with_sparse_kernels(dense, model.meta["asp"]["layers"], torch.float16)
        size = ctx.data.info.image_size
        images = torch.randn(
            self.measure_batch, 3, size, size, device=ctx.device, dtype=torch.float16
        )
        first, second = alternating_latency([dense, sparse], images)
        return first / second


def _linear_layers(arch: Arch) -> list[str]:
    """Paths of the Linear layers that 2:4 sparsity takes."""
    module = shared_on_meta(arch)
    heads = classifier_layers(module)
    return [
        path
        for path, layer in module.named_modules()
        if type(layer) is nn.Linear and layer.in_features % 4 == 0 and path not in heads
    ]
