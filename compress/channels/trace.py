"""One forward pass that follows which positions of every tensor belong together.

The pass runs on the meta device, below torch's functions, where a model of any library is a
sequence of some sixty operations. An operation that is not known here keeps all positions of what
it is given, so that an unknown model is pruned less, not wrongly.

Forward passes write sizes as attributes of their modules (`num_heads`). They are passed in as
integers that remember where they came from, so that it is known which attribute belongs to
which axis.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from compress.channels.identities import Identities, Rows
from trainers.models.cut_model import is_plain_layer

Axes = list[Rows | None]
"""Rows of each axis of a tensor."""


@dataclass(frozen=True)
class Attribute:
    """An integer that a module holds; `item` is its place where the attribute is a tuple."""

    module: str
    name: str
    item: int | None = None


@dataclass(frozen=True)
class Use:
    """An axis whose size is `times` / `over` of an attribute; rows of its positions."""

    attribute: Attribute
    rows: Rows
    times: int = 1
    over: int = 1


@dataclass(frozen=True)
class Product:
    """Multiply-accumulates of one operation on one image: `times` those of all its axes.

    Attributes:
        rows: of the axes whose number of positions can change.
        weight: the parameter that takes part; None: there is none.
    """

    times: int
    rows: tuple[Rows, ...]
    weight: str | None = None


@dataclass
class Trace:
    """What one pass showed.

    Attributes:
        identities: of all atoms.
        axes: parameter or buffer → rows of its axes.
        sizes: every use of an attribute as the size of an axis.
        unknown: operations that made the positions of their arguments stay.
        products: convolutions and matrix products of the pass.
    """

    identities: Identities
    axes: dict[str, Axes]
    sizes: "list[Use]" = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)
    products: list[Product] = field(default_factory=list)


def trace(module: nn.Module, image_shape: Sequence[int]) -> Trace:
    """Follow a pass of images (B, C, H, W) through a module on the meta device, in eval mode.

    Raises:
        One of `compress.measure.model.PASS_ERRORS`: the model needs values, or another size.
    """
    follower = _Follower()
    names = _tensors(module)
    for name, tensor in names.items():
        follower.start(name, tensor)
    device = next(iter(names.values())).device
    images = torch.empty(tuple(image_shape), device=device)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_sized_attributes(module))
        stack.enter_context(_Sizes(follower))
        stack.enter_context(follower)
        outputs = module(images)
    for output in outputs if isinstance(outputs, tuple | list) else [outputs]:
        for rows in follower.axes(output):
            follower.ids.fix(rows)
    follower.fix_ratios()
    axes = {
        name: [
            None if rows is None else follower.ids.resolved(rows)
            for rows in follower.axes(tensor)
        ]
        for name, tensor in names.items()
    }
    return Trace(
        follower.ids, axes, follower.sizes, follower.unknown, follower.products
    )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of real numbers, those that are not saved included."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor for name, tensor in named if tensor.is_floating_point()}


# ------------------------------------------------------------------ sizes that remember


class _Sized(int):
    """A size: `times` / `over` of an attribute, or of the positions of an axis.

    Attributes:
        attribute: whose value it is.
        rows: whose number it is.
        others: attributes, or rows of axes, that it was computed with.
    """

    attribute: Attribute | None
    rows: Rows | None
    times: int
    over: int
    others: tuple[Any, ...]

    def __new__(
        cls,
        value: int,
        attribute: Attribute | None = None,
        rows: Rows | None = None,
        times: int = 1,
        over: int = 1,
        others: tuple[Any, ...] = (),
    ) -> "_Sized":
        made = super().__new__(cls, value)
        made.attribute, made.rows, made.others = attribute, rows, others
        made.times, made.over = times, over
        return made

    @property
    def attributes(self) -> list[Attribute]:
        """Attributes that it was computed with."""
        return [other for other in self.others if isinstance(other, Attribute)]

    @property
    def axes(self) -> list[Rows]:
        """Rows of other axes that it was computed with."""
        return [other for other in self.others if not isinstance(other, Attribute)]

    def _scaled(self, value: int, by: Any, times: int, over: int) -> int:
        if not isinstance(by, int):
            return NotImplemented
        others = self.others
        if isinstance(by, _Sized):
            others += (*by.others, by.attribute if by.rows is None else by.rows)
        return _Sized(
            value,
            self.attribute,
            self.rows,
            self.times * times,
            self.over * over,
            others,
        )

    def __mul__(self, by: Any) -> int:
        return (
            self._scaled(int(self) * int(by), by, int(by), 1)
            if _whole(by)
            else int(self) * by
        )

    __rmul__ = __mul__

    def __floordiv__(self, by: Any) -> int:
        if not _whole(by) or int(self) % int(by):
            return int(self) // by
        return self._scaled(int(self) // int(by), by, 1, int(by))

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)


def _whole(by: Any) -> bool:
    return isinstance(by, int) and not isinstance(by, bool)


@contextmanager
def _sized_attributes(module: nn.Module) -> Iterator[None]:
    """Let the integers of all modules remember whose they are, in this block."""
    before: list[tuple[nn.Module, str, Any]] = []
    for path, each in module.named_modules():
        if is_plain_layer(each):
            continue
        for name, value in list(vars(each).items()):
            if name.startswith("_") or name == "training":
                continue
            found = _sized(value, Attribute(path, name))
            if found is not value:
                before.append((each, name, value))
                vars(each)[name] = found
    try:
        yield
    finally:
        for each, name, value in before:
            vars(each)[name] = value


def _sized(value: Any, attribute: Attribute) -> Any:
    if type(value) is int and value > 0:
        return _Sized(value, attribute)
    if type(value) in (tuple, list) and all(type(x) is int for x in value):
        items = [
            _Sized(x, Attribute(attribute.module, attribute.name, i))
            for i, x in enumerate(value)
        ]
        return type(value)(items)
    return value


class _Sizes(TorchFunctionMode):
    """Notes which attribute gave the size of which axis."""

    def __init__(self, follower: "_Follower") -> None:
        super().__init__()
        self.follower = follower

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        follower = self.follower
        if name == "pad":
            pads = args[1] if len(args) > 1 else kwargs["pad"]
            follower.pad_is_sized = any(isinstance(p, _Sized) for p in pads)
        if name == "scaled_dot_product_attention" and kwargs.get("scale") is None:
            follower.ids.fix(follower.axes(args[0])[-1])  # the scale is its size
        result = func(*args, **kwargs)
        if name == "__get__" and isinstance(result, torch.Size):
            return _sized_shape(result, follower.axes(args[0]))
        if name == "size":
            axes = follower.axes(args[0])
            if isinstance(result, torch.Size):
                return _sized_shape(result, axes)
            dim = args[1] if len(args) > 1 else kwargs["dim"]
            rows = axes[dim]
            return result if rows is None else _Sized(result, rows=rows)
        if name in _SIZED_FUNCTIONS:
            sizes = [*_flat(args[1:]), *_flat(kwargs.values())]
            if any(isinstance(size, _Sized) for size in sizes):
                self._note(name, args, kwargs, result)
        return result

    def _note(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        follower = self.follower
        if name in ("view", "reshape", "expand"):
            sizes = list(_flat(args[1:])) or list(_flat(kwargs.values()))
            for size, rows in zip(sizes, follower.axes(result), strict=True):
                follower.note(size, rows, follower.axes(args[0]))
        elif name == "unflatten":
            dim = args[1] % args[0].ndim
            sizes = list(args[2])
            parts = follower.axes(result)[dim : dim + len(sizes)]
            for size, rows in zip(sizes, parts, strict=True):
                follower.note(size, rows)
        elif name in ("split", "split_with_sizes"):
            dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
            sizes = kwargs.get("split_size_or_sections", kwargs.get("split_size"))
            sizes = args[1] if sizes is None else sizes
            if isinstance(sizes, _Sized):
                sizes = [sizes] * len(result)
            for size, part in zip(sizes, result, strict=True):
                follower.note(size, follower.axes(part)[dim], follower.axes(args[0]))
        elif name == "__getitem__":
            key = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(part is None for part in key):
                return
            axes = follower.axes(args[0])
            start = len(axes) - len(key) + 1 if Ellipsis in key[:1] else 0
            for part, rows in zip(key[bool(start) :], axes[start:], strict=False):
                if isinstance(part, slice) and rows is not None:
                    for bound in (part.start, part.stop):
                        if isinstance(bound, _Sized):
                            follower.note(bound, rows[:bound])
        elif name == "pad":
            pads = list(args[1] if len(args) > 1 else kwargs["pad"])
            axes = follower.axes(result)
            for i, size in enumerate(pads):
                rows = axes[len(axes) - 1 - i // 2]
                if rows is not None and size:
                    follower.note(size, rows[:size] if i % 2 == 0 else rows[-size:])


_SIZED_FUNCTIONS = {
    "view",
    "reshape",
    "expand",
    "unflatten",
    "split",
    "split_with_sizes",
    "__getitem__",
    "pad",
}


def _sized_shape(shape: torch.Size, axes: Axes) -> torch.Size:
    if all(rows is None for rows in axes):
        return shape
    return torch.Size(
        [
            n if rows is None else _Sized(n, rows=rows)
            for n, rows in zip(shape, axes, strict=True)
        ]
    )


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
            yield from _flat(value)
        else:
            yield value


# ------------------------------------------------------------------ operations


class _Follower(TorchDispatchMode):
    """Follows rows through the operations below torch's functions."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = Identities()
        self.sizes: list[Use] = []
        self.products: list[Product] = []
        self.ratios: list[tuple[Any, Rows, Sequence[Rows | None]]] = []
        self.unknown: set[str] = set()
        self.pad_is_sized = False
        # tensors are held, so that no other gets the identity of one that is gone
        self._known: dict[int, tuple[Tensor, Axes]] = {}
        self._names: dict[int, str] = {}

    def start(self, name: str, tensor: Tensor) -> None:
        """All positions of a parameter or buffer are new."""
        if id(tensor) not in self._known:
            self._names[id(tensor)] = name
            self.set(
                tensor, [self.ids.fresh(n) if n > 1 else None for n in tensor.shape]
            )

    def axes(self, tensor: Any) -> Axes:
        known = self._known.get(id(tensor))
        return [None] * tensor.ndim if known is None else known[1]

    def set(self, tensor: Tensor, axes: Axes) -> None:
        self._known[id(tensor)] = (tensor, axes)

    def note(
        self, size: Any, rows: Rows | None, source: Sequence[Rows | None] = ()
    ) -> None:
        """Note that an axis has a size; `source` are the axes that were reshaped into it."""
        if not isinstance(size, _Sized) or rows is None:
            return
        if size.attribute is not None:
            self.sizes.append(Use(size.attribute, rows, size.times, size.over))
        if size.rows is not None and (size.times, size.over) != (1, 1):
            self.ratios.append((size, rows, source))

    def fix_ratios(self) -> None:
        """Keep axes whose size is computed from that of an axis which they are no part of."""
        for size, rows, source in self.ratios:
            own = self.ids.resolved(size.rows)
            parts = [self.ids.resolved(each) for each in source if each is not None]
            if any(part.shape == own.shape and (part == own).all() for part in parts):
                continue
            given = [use.rows for use in self.sizes if use.attribute in size.attributes]
            for each in (rows, size.rows, *size.axes, *given):
                self.ids.fix(each)

    def count(self, times: int, weight: Tensor, *axes: tuple[int, Rows | None]) -> None:
        """Note an operation whose work is `times` that of all its axes (size, rows)."""
        times *= math.prod(n for n, rows in axes if rows is None)
        rows = tuple(rows for _, rows in axes if rows is not None)
        self.products.append(Product(times, rows, self._names.get(id(weight))))

    def fix(self, *tensors: Any) -> None:
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                for rows in self.axes(tensor):
                    self.ids.fix(rows)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        rule = _RULES.get(name) or _RULES.get(name.rstrip("_"))
        inputs = [x for x in _flat([*args, *kwargs.values()]) if isinstance(x, Tensor)]
        if not any(id(x) in self._known for x in inputs):
            return out
        if name in ("t", "transpose", "view", "detach") and id(args[0]) in self._names:
            self._names[id(out)] = self._names[id(args[0])]
        if rule is not None:
            found = rule(self, out, *args, **kwargs)
            if isinstance(out, Tensor):
                self.set(out, found)
            else:
                for tensor, axes in zip(out, found, strict=False):
                    self.set(tensor, axes)
        elif torch.Tag.pointwise in func.tags or name.rstrip("_") in _ELEMENTWISE:
            self.set(out, self.elementwise(out, inputs))
        else:
            self.unknown.add(name)
            self.fix(*inputs)
        return out

    def elementwise(self, out: Tensor, inputs: Sequence[Tensor]) -> Axes:
        """Rows of a result whose elements come from those of the inputs at the same place."""
        axes: Axes = [None] * out.ndim
        for i in range(1, out.ndim + 1):
            if out.shape[-i] == 1:
                continue
            given = [
                self.axes(x)[-i]
                for x in inputs
                if x.ndim >= i and x.shape[-i] == out.shape[-i]
            ]
            for rows in given[1:]:
                self.ids.unify(given[0], rows)
            axes[-i] = given[0] if given else None
        return axes


Rule = Callable[..., Any]


def _view(f: _Follower, out: Tensor, x: Tensor, *_: Any, **__: Any) -> Axes:
    return reshaped(f.ids, x.shape, f.axes(x), out.shape)


def reshaped(
    ids: Identities, old: Sequence[int], axes: Axes, new: Sequence[int]
) -> Axes:
    """Rows after a reshape from shape `old` to shape `new`."""
    found: Axes = []
    i = j = 0
    while i < len(old) or j < len(new):
        # the smallest blocks of axes of both shapes that hold as many elements
        first, last = i, j
        here, there = 1, 1
        while here != there or (i == first and j == last):
            if i < len(old) and (here <= there or j == len(new)):
                here *= old[i]
                i += 1
            else:
                there *= new[j]
                j += 1
        while i < len(old) and old[i] == 1 and j == len(new):
            i += 1
        old_sizes, new_sizes = old[first:i], list(new[last:j])
        block = axes[first:i]
        if list(old_sizes) == new_sizes:
            found += block
            continue
        merged = ids.merge(
            [(n, rows) for n, rows in zip(old_sizes, block, strict=True) if n > 1]
        )
        found += ids.split(merged, new_sizes) if new_sizes else []
    return found


def _permute(f: _Follower, out: Tensor, x: Tensor, dims: Sequence[int]) -> Axes:
    axes = f.axes(x)
    return [axes[dim] for dim in dims]


def _transpose(f: _Follower, out: Tensor, x: Tensor, a: int, b: int) -> Axes:
    axes = list(f.axes(x))
    axes[a], axes[b] = axes[b], axes[a]
    return axes


def _t(f: _Follower, out: Tensor, x: Tensor) -> Axes:
    return f.axes(x)[::-1]


def _unsqueeze(f: _Follower, out: Tensor, x: Tensor, dim: int) -> Axes:
    axes = list(f.axes(x))
    axes.insert(dim % out.ndim, None)
    return axes


def _squeeze(f: _Follower, out: Tensor, x: Tensor, dims: Any = None) -> Axes:
    chosen = range(x.ndim) if dims is None else dims
    chosen = [chosen] if isinstance(chosen, int) else chosen
    gone = {d % x.ndim for d in chosen if x.shape[d] == 1}
    return [rows for i, rows in enumerate(f.axes(x)) if i not in gone]


def _expand(f: _Follower, out: Tensor, x: Tensor, *_: Any, **__: Any) -> Axes:
    axes = [None] * (out.ndim - x.ndim) + f.axes(x)
    old = [1] * (out.ndim - x.ndim) + list(x.shape)
    return [
        rows if n == m else None
        for rows, n, m in zip(axes, old, out.shape, strict=True)
    ]


def _repeat(f: _Follower, out: Tensor, x: Tensor, repeats: Sequence[int]) -> Axes:
    axes = [None] * (out.ndim - x.ndim) + f.axes(x)
    return [
        None if rows is None else np.tile(rows, (times, 1))
        for rows, times in zip(axes, repeats, strict=True)
    ]


def _slice(
    f: _Follower,
    out: Tensor,
    x: Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Axes:
    axes = list(f.axes(x))
    rows = axes[dim]
    if rows is not None and out.shape[dim] != x.shape[dim]:
        axes[dim] = rows[slice(start, end, step)]
    return axes


def _split(
    f: _Follower, out: Sequence[Tensor], x: Tensor, size: Any, dim: int = 0
) -> list[Axes]:
    axes = f.axes(x)
    rows = axes[dim]
    if rows is not None and isinstance(size, int) and len(out) > 1:
        if len({part.shape[dim] for part in out}) == 1:
            # parts of one size stay parts of one size
            outer, inner = f.ids.split(rows, [len(out), size])
            f.ids.fix(outer)
            rows = None if inner is None else np.tile(inner, (len(out), 1))
        else:
            f.ids.fix(rows)
    found: list[Axes] = []
    start = 0
    for part in out:
        own = list(axes)
        own[dim] = None if rows is None else rows[start : start + part.shape[dim]]
        start += part.shape[dim]
        found.append(own)
    return found


def _unbind(f: _Follower, out: Sequence[Tensor], x: Tensor, dim: int = 0) -> list[Axes]:
    axes = list(f.axes(x))
    f.ids.fix(axes.pop(dim))
    return [list(axes) for _ in out]


def _select(f: _Follower, out: Tensor, x: Tensor, dim: int, index: int) -> Axes:
    axes = list(f.axes(x))
    f.ids.fix(axes.pop(dim))
    return axes


def _index(f: _Follower, out: Tensor, x: Tensor, indices: Sequence[Any]) -> Axes:
    axes = f.axes(x)
    used = [i for i, index in enumerate(indices) if index is not None]
    for i in used:
        f.ids.fix(axes[i])
    if len(used) != 1:
        f.fix(x)
        return [None] * out.ndim
    (at,) = used
    return [*axes[:at], *[None] * indices[at].ndim, *axes[at + 1 :]]


def _cat(f: _Follower, out: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> Axes:
    tensors = [x for x in tensors if x.numel()]
    dim %= out.ndim
    axes: Axes = []
    for i in range(out.ndim):
        each = [f.axes(x)[i] for x in tensors]
        if i != dim:
            for rows in each[1:]:
                f.ids.unify(each[0], rows)
            axes.append(each[0])
        elif all(rows is None for rows in each):
            axes.append(None)
        else:
            parts = [
                np.zeros((x.shape[i], 1), np.int64) if rows is None else rows
                for x, rows in zip(tensors, each, strict=True)
            ]
            width = max(part.shape[1] for part in parts)
            axes.append(
                np.concatenate(
                    [np.pad(p, ((0, 0), (0, width - p.shape[1]))) for p in parts]
                )
            )
    return axes


def _stack(f: _Follower, out: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> Axes:
    axes = f.elementwise(tensors[0], tensors)
    axes.insert(dim % out.ndim, None)
    return axes


def _reduce(
    f: _Follower, out: Tensor, x: Tensor, dims: Any = None, *_: Any, **__: Any
) -> Axes:
    if isinstance(dims, int):
        dims = [dims]
    gone = {d % x.ndim for d in dims} if dims else set(range(x.ndim))
    axes = f.axes(x)
    for dim in gone:
        f.ids.fix(axes[dim])
    if out.ndim == x.ndim:
        return [None if i in gone else rows for i, rows in enumerate(axes)]
    return [rows for i, rows in enumerate(axes) if i not in gone]


def _reduce_two(
    f: _Follower, out: Sequence[Tensor], x: Tensor, dims: Any = None, *a: Any, **k: Any
) -> list[Axes]:
    return [_reduce(f, each, x, dims) for each in out]


def _vector_norm(
    f: _Follower,
    out: Tensor,
    x: Tensor,
    order: Any = 2,
    dims: Any = None,
    *_: Any,
    **__: Any,
) -> Axes:
    return _reduce(f, out, x, dims)


def _softmax(f: _Follower, out: Tensor, x: Tensor, dim: int, *_: Any) -> Axes:
    axes = list(f.axes(x))
    f.ids.fix(axes[dim])
    axes[dim] = None
    return axes


def _roll(f: _Follower, out: Tensor, x: Tensor, shifts: Any, dims: Any = ()) -> Axes:
    axes = list(f.axes(x))
    for dim in dims or range(x.ndim):
        f.ids.fix(axes[dim])
        axes[dim] = None
    return axes


def _spatial(f: _Follower, out: Any, x: Tensor, *_: Any, **__: Any) -> Any:
    """Channels stay; places do not."""
    axes = f.axes(x)
    places = 2 if x.ndim > 3 else 1
    for rows in axes[-places:]:
        f.ids.fix(rows)
    kept: Axes = [*axes[:-places], *[None] * places]
    return kept if isinstance(out, Tensor) else [kept for _ in out]


def _pad(f: _Follower, out: Tensor, x: Tensor, pads: Sequence[int], *_: Any) -> Axes:
    axes = list(f.axes(x))
    for i in range(len(pads) // 2):
        rows = axes[-1 - i]
        low, high = pads[2 * i : 2 * i + 2]
        if rows is None or not (low or high):
            continue
        if min(low, high) < 0:
            f.ids.fix(rows)
            axes[-1 - i] = None
            continue
        # how many are added can change only where an attribute says it
        new = (
            f.ids.fresh(low + high)
            if f.pad_is_sized
            else np.zeros((low + high, 1), int)
        )
        new = np.pad(new, ((0, 0), (0, rows.shape[1] - 1)))
        axes[-1 - i] = np.concatenate([new[:low], rows, new[low:]])
    return axes


def _convolution(
    f: _Follower,
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Axes:
    given, own = f.axes(x), f.axes(weight)
    for rows in [*given[2:], *own[2:]]:
        f.ids.fix(rows)
    inputs, outputs = (own[0], own[1]) if transposed else (own[1], own[0])
    if groups == 1:
        f.ids.unify(inputs, given[1])
    elif transposed:
        f.fix(x, weight)
    else:
        inside, each = x.shape[1] // groups, weight.shape[0] // groups
        group, channel = f.ids.split(given[1], [groups, inside])
        out_group, _ = f.ids.split(outputs, [groups, each])
        f.ids.unify(group, out_group)
        if inside > 1:
            f.ids.unify(inputs, channel)
    if bias is not None:
        f.ids.unify(f.axes(bias)[0], outputs)
    places = out if not transposed else x
    f.count(
        math.prod(places.shape[2:]) * math.prod(weight.shape[2:]),
        weight,
        (weight.shape[0], own[0]),
        (weight.shape[1], own[1]),
    )
    return [given[0], outputs, *[None] * (out.ndim - 2)]


def _mm(f: _Follower, out: Tensor, a: Tensor, b: Tensor) -> Axes:
    left, right = f.axes(a), f.axes(b)
    f.ids.unify(left[-1], right[-2])
    if a.ndim == 3:
        f.ids.unify(left[0], right[0])
    axes: Axes = [*left[:-1], right[-1]]
    f.count(1, b, *zip(out.shape, axes, strict=True), (a.shape[-1], left[-1]))
    return axes


def _addmm(
    f: _Follower, out: Tensor, bias: Tensor, a: Tensor, b: Tensor, **_: Any
) -> Axes:
    axes = _mm(f, out, a, b)
    own = f.axes(bias)
    for rows, found in zip(own[::-1], axes[::-1], strict=False):
        if rows is not None or bias.ndim == out.ndim:
            f.ids.unify(rows, found)
    return axes


def _batch_norm(
    f: _Follower,
    out: Sequence[Tensor],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None = None,
    variance: Any = None,
    training: Any = False,
    *_: Any,
) -> list[Axes]:
    axes = list(f.axes(x))
    if training is True:  # weights that are standardised over their inputs
        for i, rows in enumerate(axes):
            if i != 1:
                f.ids.fix(rows)
    for tensor in (weight, bias, mean, variance):
        if isinstance(tensor, Tensor):
            f.ids.unify(axes[1], f.axes(tensor)[0])
    return [axes]


def _layer_norm(
    f: _Follower, out: Any, x: Tensor, shape: Sequence[int], *parameters: Any
) -> list[Axes]:
    axes = list(f.axes(x))
    tensors = [p for p in parameters if isinstance(p, Tensor)]
    for i in range(1, len(shape) + 1):
        if not tensors:  # nothing tells the norm's module
            f.ids.fix(axes[-i])
        for tensor in tensors:
            f.ids.unify(axes[-i], f.axes(tensor)[-i])
    return [axes]


def _group_norm(
    f: _Follower,
    out: Any,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    n: int,
    channels: int,
    places: int,
    groups: int,
    eps: float,
) -> list[Axes]:
    axes = list(f.axes(x))
    if weight is None:
        f.ids.fix(axes[1])
    elif groups > 1:
        group, _ = f.ids.split(axes[1], [groups, channels // groups])
        f.ids.fix(group)
    for rows in axes[2:]:
        f.ids.fix(rows)
    for tensor in (weight, bias):
        if tensor is not None:
            f.ids.unify(axes[1], f.axes(tensor)[0])
    return [axes]


def _im2col(f: _Follower, out: Tensor, x: Tensor, size: Sequence[int], *_: Any) -> Axes:
    rows = f.axes(x)[1]
    f.ids.fix(f.axes(x)[2])
    f.ids.fix(f.axes(x)[3])
    return [None, None if rows is None else np.repeat(rows, math.prod(size), 0), None]


def _copy(f: _Follower, out: Tensor, into: Tensor, source: Tensor, *_: Any) -> Axes:
    return f.elementwise(into, [into, source] if id(into) in f._known else [source])


_SPATIAL = (
    "max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d"
    " upsample_bilinear2d upsample_nearest2d upsample_bicubic2d _upsample_bilinear2d_aa"
    " _upsample_bicubic2d_aa upsample_linear1d avg_pool1d adaptive_avg_pool1d max_pool2d"
    " reflection_pad2d replication_pad2d"
)
_ELEMENTWISE = {
    "clone",
    "to_copy",
    "_to_copy",
    "alias",
    "detach",
    "lift_fresh",
    "contiguous",
    "_reshape_alias_copy",
    "native_dropout",
    "masked_fill",
    "hardswish",
    "hardsigmoid",
    "silu",
    "mish",
}
_RULES: dict[str, Rule] = {
    "view": _view,
    "_unsafe_view": _view,
    "reshape": _view,
    "permute": _permute,
    "transpose": _transpose,
    "t": _t,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "expand": _expand,
    "repeat": _repeat,
    "slice": _slice,
    "split": _split,
    "split_with_sizes": _split,
    "unbind": _unbind,
    "select": _select,
    "index": _index,
    "cat": _cat,
    "stack": _stack,
    "mean": _reduce,
    "sum": _reduce,
    "amax": _reduce,
    "amin": _reduce,
    "linalg_vector_norm": _vector_norm,
    "var_mean": _reduce_two,
    "_softmax": _softmax,
    "_safe_softmax": _softmax,
    "_log_softmax": _softmax,
    "roll": _roll,
    "constant_pad_nd": _pad,
    "convolution": _convolution,
    "mm": _mm,
    "bmm": _mm,
    "addmm": _addmm,
    "baddbmm": _addmm,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "im2col": _im2col,
    "copy": _copy,
    **dict.fromkeys(_SPATIAL.split(), _spatial),
}
