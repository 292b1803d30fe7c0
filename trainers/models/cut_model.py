"""A model from which positions along the axes of its tensors were cut: dense, and only smaller.

It is built as the whole model, whose tensors and sizes are then replaced. Which positions were cut
is in the weights alone, so that a model that is cut again just has smaller sizes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainers.models.parameters import LINEAR_AND_CONV

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)


def is_plain_layer(layer: nn.Module) -> bool:
    """Whether the attributes of a layer that are sizes follow from its weight."""
    return isinstance(layer, LINEAR_AND_CONV + _NORMS)


@dataclass(frozen=True)
class Cut:
    """What differs from the whole model; JSON-able, the `dims` of its architecture.

    Attributes:
        shapes: parameter or buffer → its shape.
        sizes: path of a module → attribute → its value, an integer or several.
        dropped: paths of residual blocks that are left out: their output is their input.
    """

    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    sizes: Mapping[str, Mapping[str, int | list[int]]] = field(default_factory=dict)
    dropped: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them."""
        return {
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "sizes": {path: dict(own) for path, own in self.sizes.items()},
            "dropped": list(self.dropped),
        }

    @classmethod
    def from_json(cls, dims: Mapping[str, Any]) -> "Cut":
        """What `to_json` gave; entries that are missing are empty."""
        return cls(
            shapes={
                name: list(map(int, v)) for name, v in dims.get("shapes", {}).items()
            },
            sizes={path: dict(own) for path, own in dims.get("sizes", {}).items()},
            dropped=list(map(str, dims.get("dropped", []))),
        )

    def then(self, later: "Cut") -> "Cut":
        """Both cuts as one; the later one is of the model that this one leaves."""
        sizes = {path: dict(own) for path, own in self.sizes.items()}
        for path, own in later.sizes.items():
            sizes[path] = sizes.get(path, {}) | dict(own)
        gone = tuple(f"{path}." for path in later.dropped)
        shapes = {**self.shapes, **later.shapes}
        return Cut(
            {k: v for k, v in shapes.items() if not f"{k}.".startswith(gone or "/")},
            {k: v for k, v in sizes.items() if not f"{k}.".startswith(gone or "/")},
            (*self.dropped, *later.dropped),
        )

    def apply(self, module: nn.Module) -> nn.Module:
        """Make a whole model, freshly built, one of this cut, in place.

        Raises:
            ValueError: it has no such tensor, attribute or block, or only smaller ones.
        """
        for path in self.dropped:
            parent, _, name = path.rpartition(".")
            holder = _found(module, parent)
            if name not in dict(holder.named_children()):
                raise ValueError(
                    f"the model has no block {path!r} that could be dropped"
                )
            setattr(holder, name, nn.Identity())
        for name, shape in self.shapes.items():
            _shrink(module, name, tuple(shape))
        for path, sizes in self.sizes.items():
            for name, value in sizes.items():
                _set_size(_found(module, path), path, name, value)
        for each in module.modules():
            _follow_weight(each)
        return module


def _found(module: nn.Module, path: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"the model has no module {path!r}") from error


def _shrink(module: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    """Replace a tensor by its first positions along each axis."""
    path, _, leaf = name.rpartition(".")
    holder = _found(module, path)
    tensor = {**holder._parameters, **holder._buffers}.get(leaf)
    if tensor is None:
        raise ValueError(f"the model has no tensor {name!r}")
    fits = len(shape) == tensor.ndim and all(
        0 < n <= m for n, m in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"the tensor {name!r} has the shape {tuple(tensor.shape)}, from which {shape}"
            " cannot be cut"
        )
    part = tensor.detach()[tuple(slice(n) for n in shape)].clone()
    if isinstance(tensor, nn.Parameter):
        part = nn.Parameter(part, requires_grad=tensor.requires_grad)
    setattr(holder, leaf, part)


def _set_size(holder: nn.Module, path: str, name: str, value: Any) -> None:
    """Replace an integer, or several, that a module holds by smaller ones."""
    old: Any = vars(holder).get(name)
    many = isinstance(old, tuple | list) and isinstance(value, list)
    olds: list[Any] = list(old) if many else [old]
    news: list[Any] = value if many else [value]
    whole = all(type(n) is int for n in (*olds, *news))
    if (
        not whole
        or len(olds) != len(news)
        or not all(0 <= n <= m for n, m in zip(news, olds, strict=True))
    ):
        raise ValueError(
            f"the module {path!r} has no size {name!r} that could be {value}"
        )
    setattr(holder, name, type(old)(value) if many else value)


def _follow_weight(layer: Any) -> None:
    """Set a layer's own sizes by its weight."""
    weight: Any = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        return
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(layer, _CONVOLUTIONS):
        layer.out_channels = weight.shape[0]
        layer.in_channels = weight.shape[1] * layer.groups
    elif isinstance(layer, _TRANSPOSED):  # of one group
        layer.in_channels, layer.out_channels = weight.shape[:2]
    elif isinstance(layer, _BatchNorm):
        layer.num_features = len(weight)
    elif isinstance(layer, nn.GroupNorm):
        layer.num_channels = len(weight)
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = tuple(weight.shape)
