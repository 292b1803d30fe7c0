"""What is cut is replaced, in the least-squares sense, by what stays: no labels, no training.

A layer y = W x + b loses some of its inputs. Over the inputs of a few batches, the removed ones
are predicted linearly from those that stay, and the prediction is folded into weights and bias
(CORP, arXiv 2602.05243; for convolutions the inputs are patches). Only sums over the batches are
kept, never the activations.

Legend
    d           inputs of a layer: features, channels, or channels · kernel places (patches)
    x, S, P     an input (d,), the entries of it that stay, and those that are removed
    μ, Σ        mean (d,) and covariance (d, d) of x; the second moment instead of Σ where
                nothing can take a bias
    λ           ridge · mean of the diagonal of Σ_SS
    A           Σ_PS (Σ_SS + λ I)⁻¹, so that x_P ≈ A x_S + μ_P − A μ_S
    W', b'      W_S + W_P A, b + W_P (μ_P − A μ_S)

W', b' minimise E‖W x + b − W' x_S − b'‖² + λ ‖W' − W_S‖².
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainers.models.quantised import keep_products_apart

RIDGE = 1e-3
"""Default of `ridge`, a share of the mean variance of what stays."""
ROUNDING = 1e-6
"""What rounding may leave of a square in a variance: products are summed in float32 in a batch."""
COMPENSATE_IMAGES = 512
"""Default of the stages' `compensate_images`."""
_MOST_INPUTS = 4608
"""Patches of more values are looked at channel by channel: Σ would not fit into memory."""


class Moments:
    """Count, mean and second moment of vectors (d,), summed in float64 as they come."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self._sum = torch.zeros(size, dtype=torch.float64)
        self._products = torch.zeros(size, size, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Take vectors (n, d) in."""
        self.count += len(rows)
        self._sum += rows.sum(0, dtype=torch.float64).cpu()
        self._products += (rows.T @ rows).double().cpu()

    @property
    def nbytes(self) -> int:
        return self._sum.nbytes + self._products.nbytes

    @property
    def mean(self) -> Tensor:
        """μ (d,), float64."""
        return self._sum / max(1, self.count)

    def second(self, *, centred: bool = True) -> Tensor:
        """Σ (d, d), float64, or the second moment."""
        second = self._products / max(1, self.count)
        return second - torch.outer(self.mean, self.mean) if centred else second


class Prediction(NamedTuple):
    """Removed inputs predicted from those that stay: x_P ≈ matrix · x_S + offset.

    Attributes:
        matrix: (removed, kept), float64.
        offset: (removed,), float64; zeros where nothing can take a bias.
    """

    matrix: Tensor
    offset: Tensor


def predict(
    moments: Moments,
    removed: Tensor,
    kept: Tensor,
    *,
    ridge: float = RIDGE,
    centred: bool = True,
) -> Prediction:
    """The ridge regression of some entries of a vector on others.

    Args:
        moments: of the whole vector.
        removed, kept: indices (r,), (s,).
        ridge: λ over the mean diagonal of Σ_SS.
        centred: whether a constant may be part of the prediction.
    """
    second = moments.second(centred=centred)
    inner = second[kept][:, kept]
    # of a constant the variance is what rounding left of its square, which predicts nothing
    squares = moments.second(centred=False).diagonal()[kept].mean()
    added = torch.maximum(ridge * inner.diagonal().mean(), ROUNDING * squares)
    added = added.clamp_min(torch.finfo(torch.float64).tiny)
    inner = inner + added * torch.eye(len(kept), dtype=torch.float64)
    matrix = torch.linalg.solve(inner, second[kept][:, removed]).T
    offset = torch.zeros(len(removed), dtype=torch.float64)
    if centred:
        offset = moments.mean[removed] - matrix @ moments.mean[kept]
    return Prediction(matrix, offset)


class Correction(NamedTuple):
    """A layer that does without some of its inputs.

    Attributes:
        weight: all outputs, kept inputs only, in the layer's form and type.
        shift: (outputs,), what is to be added to the layer's output: to its bias, or, of a
            convolution without bias, to be taken from the running mean of the norm after it.
    """

    weight: Tensor
    shift: Tensor


@torch.no_grad()
def compensated(
    layer: nn.Module,
    moments: Moments,
    kept: Tensor,
    *,
    ridge: float = RIDGE,
    centred: bool = True,
) -> Correction:
    """The weights with which a Linear or Conv2d does best on the inputs that stay.

    Args:
        layer: before the cut; not changed. A convolution has one group.
        moments: of its inputs, as `input_moments` gives them.
        kept: indices of the input features or channels that stay (s,), ascending.
        ridge: see `predict`.
        centred: whether `shift` can be used: the layer has a bias, or a BatchNorm follows.
    """
    weight: Any = layer.weight
    inputs = weight.shape[1]
    kept = kept.cpu()
    removed = torch.ones(inputs, dtype=torch.bool)
    removed[kept] = False
    gone = removed.nonzero()[:, 0]
    flat = weight.detach().cpu().double().reshape(len(weight), inputs, -1)
    places = flat.shape[2]
    by_channel = len(moments.mean) == inputs
    if by_channel:  # the same prediction at every place of the kernel
        found = predict(moments, gone, kept, ridge=ridge, centred=centred)
        more = torch.einsum("opk,ps->osk", flat[:, gone], found.matrix)
        shift = torch.einsum("opk,p->o", flat[:, gone], found.offset)
    else:
        rows = [_patch_entries(channels, places) for channels in (gone, kept)]
        found = predict(moments, *rows, ridge=ridge, centred=centred)
        removed_weights = flat[:, gone].flatten(1)
        more = (removed_weights @ found.matrix).view(len(flat), len(kept), places)
        shift = removed_weights @ found.offset
    changed = (flat[:, kept] + more).view(len(flat), len(kept), *weight.shape[2:])
    return Correction(changed.to(weight.dtype), shift.to(weight.dtype))


def _patch_entries(channels: Tensor, places: int) -> Tensor:
    """Entries of a patch (channels · places) that belong to these channels."""
    return (channels[:, None] * places + torch.arange(places)).flatten()


class InputMoments(NamedTuple):
    """What the layers of a model get.

    Attributes:
        moments: path of a layer → moments of its inputs.
        norm_after: path of a layer → path of the BatchNorm that alone gets its output.
    """

    moments: dict[str, Moments]
    norm_after: dict[str, str]

    @property
    def nbytes(self) -> int:
        return sum(moments.nbytes for moments in self.moments.values())


@torch.inference_mode()
def input_moments(
    module: nn.Module,
    layers: Collection[str],
    batches: Iterable[Tensor],
    new: Callable[[nn.Module, int], Moments] = lambda layer, size: Moments(size),
) -> InputMoments:
    """Moments of the inputs of Linear layers and convolutions.

    Args:
        module: left in eval mode, not changed otherwise.
        layers: paths; each is called once in a pass or more often.
        batches: images (B, C, H, W) on the module's device; read once.
        new: what gathers vectors of a size that a layer gets.
    """
    found = InputMoments({}, {})
    module.eval()
    with _watching(module, layers, found, new):
        for images in batches:
            module(images)
    return found


@contextmanager
def _watching(
    module: nn.Module,
    layers: Collection[str],
    found: InputMoments,
    new: Callable[[nn.Module, int], Moments],
) -> Iterator[None]:
    """Within this block, passes of the module add to what is found."""
    outputs: dict[int, tuple[str, Tensor]] = {}

    def before(path: str, layer: nn.Module, args: Any) -> None:
        rows = input_rows(layer, args[0])
        if path not in found.moments:
            found.moments[path] = new(layer, rows.shape[1])
        found.moments[path].add(rows)

    def after(path: str, layer: nn.Module, args: Any, output: Tensor) -> None:
        outputs[id(output)] = (path, output)

    def norm(path: str, layer: nn.Module, args: Any) -> None:
        before_it = outputs.get(id(args[0]))
        if before_it is not None and before_it[1] is args[0]:
            found.norm_after[before_it[0]] = path

    def bound(function: Any, path: str) -> Any:
        return lambda *args: function(path, *args)

    handles = []
    together = [m for m in module.modules() if getattr(m, "one_product", False)]
    keep_products_apart(module)  # layers that are not called are not watched
    for path, layer in module.named_modules():
        if path in layers:
            handles.append(layer.register_forward_pre_hook(bound(before, path)))
            handles.append(layer.register_forward_hook(bound(after, path)))
        elif isinstance(layer, _BatchNorm):
            handles.append(layer.register_forward_pre_hook(bound(norm, path)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for fast in together:
            fast.one_product = True  # type: ignore[assignment]


def input_rows(layer: nn.Module, x: Tensor) -> Tensor:
    """The input of a Linear (…, d) or a Conv2d (B, C, H, W) as vectors (n, d), float32."""
    x = x.detach().float()
    if not isinstance(layer, nn.Conv2d):
        return x.reshape(-1, x.shape[-1])
    if not _has_patches(layer):
        return x.movedim(1, -1).reshape(-1, x.shape[1])
    kernel: Any = layer.kernel_size
    padding: Any = layer.padding
    dilation: Any = layer.dilation
    stride: Any = layer.stride
    patches = F.unfold(x, kernel, dilation, padding, stride)
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def _has_patches(layer: nn.Conv2d) -> bool:
    """Whether the vectors of a convolution are its patches; else they are single pixels."""
    is_padded_by_zeros = (
        isinstance(layer.padding, tuple) and layer.padding_mode == "zeros"
    )
    return is_padded_by_zeros and layer.weight[0].numel() <= _MOST_INPUTS


def moments_bytes(module: nn.Module, layers: Iterable[str]) -> int:
    """What `input_moments` of these layers take, about."""
    sizes = []
    for path in layers:
        layer = module.get_submodule(path)
        weight = layer.get_parameter("weight")
        has_pixels = isinstance(layer, nn.Conv2d) and not _has_patches(layer)
        sizes.append(weight.shape[1] if has_pixels else weight[0].numel())
    return 8 * sum(size**2 for size in sizes)


def mendable(module: nn.Module, paths: Iterable[str]) -> list[str]:
    """Those of some layers that can make up for lost inputs: of convolutions with groups nothing
    else reads the inputs.
    """
    return [p for p in paths if getattr(module.get_submodule(p), "groups", 1) == 1]


@torch.no_grad()
def corrected_tensors(
    module: nn.Module,
    kept: Mapping[str, Tensor],
    found: InputMoments,
    *,
    ridge: float = RIDGE,
) -> dict[str, Tensor]:
    """All that a cut of inputs changes in a model, by name in the state dict.

    Args:
        module: before the cut; its tensors are not changed.
        kept: path of a Linear or Conv2d → indices of the inputs that stay; of those that are
            `mendable`, the others are left out of the result.
        found: of these layers, and perhaps of others.
        ridge: see `predict`.

    Returns:
        Weights with all outputs and the kept inputs only, biases, and running means of
        BatchNorms after layers without bias; on the CPU. Other tensors stay as they are.
    """
    state = module.state_dict()
    result: dict[str, Tensor] = {}
    for path in mendable(module, kept):
        layer, indices = module.get_submodule(path), kept[path]
        bias, norm = f"{path}.bias", found.norm_after.get(path)
        mean = f"{norm}.running_mean"
        has_bias = bias in state
        weight, shift = compensated(
            layer,
            found.moments[path],
            indices,
            ridge=ridge,
            centred=has_bias or mean in state,
        )
        result[f"{path}.weight"] = weight
        if has_bias:
            result[bias] = state[bias].cpu() + shift
        elif mean in state:
            result[mean] = state[mean].cpu() - shift
    return result


@torch.no_grad()
def recalibrate(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running means and variances of all BatchNorms to those of these batches, in place.

    Args:
        module: left in eval mode.
        batches: images without labels; read once. None at all leave the norms as they are.
    """
    norms: list[Any] = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    before = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.train()
    for number, images in enumerate(batches, 1):
        for norm in norms:
            norm.momentum = 1 / number  # a mean over the batches
        module(images)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    module.eval()
