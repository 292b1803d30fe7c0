"""How each operation below torch's functions moves the positions of its arguments.

A rule gets what is known, the operation's result, and its arguments; it gives the rows of the
result's axes. `ELEMENTWISE` are operations that torch does not mark as such.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from compress.channels.followed import Followed
from compress.channels.identities import Identities
from compress.channels.sizes import Axes

Rule = Callable[..., Any]


def _view(f: Followed, out: Tensor, x: Tensor, *_: Any, **__: Any) -> Axes:
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


def _permute(f: Followed, out: Tensor, x: Tensor, dims: Sequence[int]) -> Axes:
    axes = f.axes(x)
    return [axes[dim] for dim in dims]


def _transpose(f: Followed, out: Tensor, x: Tensor, a: int, b: int) -> Axes:
    axes = list(f.axes(x))
    axes[a], axes[b] = axes[b], axes[a]
    return axes


def _t(f: Followed, out: Tensor, x: Tensor) -> Axes:
    return f.axes(x)[::-1]


def _unsqueeze(f: Followed, out: Tensor, x: Tensor, dim: int) -> Axes:
    axes = list(f.axes(x))
    axes.insert(dim % out.ndim, None)
    return axes


def _squeeze(f: Followed, out: Tensor, x: Tensor, dims: Any = None) -> Axes:
    chosen = range(x.ndim) if dims is None else dims
    chosen = [chosen] if isinstance(chosen, int) else chosen
    gone = {d % x.ndim for d in chosen if x.shape[d] == 1}
    return [rows for i, rows in enumerate(f.axes(x)) if i not in gone]


def _expand(f: Followed, out: Tensor, x: Tensor, *_: Any, **__: Any) -> Axes:
    axes = [None] * (out.ndim - x.ndim) + f.axes(x)
    old = [1] * (out.ndim - x.ndim) + list(x.shape)
    return [
        rows if n == m else None
        for rows, n, m in zip(axes, old, out.shape, strict=True)
    ]


def _repeat(f: Followed, out: Tensor, x: Tensor, repeats: Sequence[int]) -> Axes:
    axes = [None] * (out.ndim - x.ndim) + f.axes(x)
    return [
        None if rows is None else np.tile(rows, (times, 1))
        for rows, times in zip(axes, repeats, strict=True)
    ]


def _slice(
    f: Followed,
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
    f: Followed, out: Sequence[Tensor], x: Tensor, size: Any, dim: int = 0
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


def _unbind(f: Followed, out: Sequence[Tensor], x: Tensor, dim: int = 0) -> list[Axes]:
    axes = list(f.axes(x))
    f.ids.fix(axes.pop(dim))
    return [list(axes) for _ in out]


def _select(f: Followed, out: Tensor, x: Tensor, dim: int, index: int) -> Axes:
    axes = list(f.axes(x))
    f.ids.fix(axes.pop(dim))
    return axes


def _index(f: Followed, out: Tensor, x: Tensor, indices: Sequence[Any]) -> Axes:
    axes = f.axes(x)
    used = [i for i, index in enumerate(indices) if index is not None]
    for i in used:
        f.ids.fix(axes[i])
    if len(used) != 1:
        f.fix(x)
        return [None] * out.ndim
    (at,) = used
    return [*axes[:at], *[None] * indices[at].ndim, *axes[at + 1 :]]


def _cat(f: Followed, out: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> Axes:
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


def _stack(f: Followed, out: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> Axes:
    axes = f.elementwise(tensors[0], tensors)
    axes.insert(dim % out.ndim, None)
    return axes


def _reduce(
    f: Followed, out: Tensor, x: Tensor, dims: Any = None, *_: Any, **__: Any
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
    f: Followed, out: Sequence[Tensor], x: Tensor, dims: Any = None, *a: Any, **k: Any
) -> list[Axes]:
    return [_reduce(f, each, x, dims) for each in out]


def _vector_norm(
    f: Followed,
    out: Tensor,
    x: Tensor,
    order: Any = 2,
    dims: Any = None,
    *_: Any,
    **__: Any,
) -> Axes:
    return _reduce(f, out, x, dims)


def _softmax(f: Followed, out: Tensor, x: Tensor, dim: int, *_: Any) -> Axes:
    axes = list(f.axes(x))
    f.ids.fix(axes[dim])
    axes[dim] = None
    return axes


def _roll(f: Followed, out: Tensor, x: Tensor, shifts: Any, dims: Any = ()) -> Axes:
    axes = list(f.axes(x))
    for dim in dims or range(x.ndim):
        f.ids.fix(axes[dim])
        axes[dim] = None
    return axes


def _spatial(f: Followed, out: Any, x: Tensor, *_: Any, **__: Any) -> Any:
    """Channels stay; places do not."""
    axes = f.axes(x)
    places = 2 if x.ndim > 3 else 1
    for rows in axes[-places:]:
        f.ids.fix(rows)
    kept: Axes = [*axes[:-places], *[None] * places]
    return kept if isinstance(out, Tensor) else [kept for _ in out]


def _pad(f: Followed, out: Tensor, x: Tensor, pads: Sequence[int], *_: Any) -> Axes:
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
    f: Followed,
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


def _mm(f: Followed, out: Tensor, a: Tensor, b: Tensor) -> Axes:
    left, right = f.axes(a), f.axes(b)
    f.ids.unify(left[-1], right[-2])
    if a.ndim == 3:
        f.ids.unify(left[0], right[0])
    axes: Axes = [*left[:-1], right[-1]]
    f.count(1, b, *zip(out.shape, axes, strict=True), (a.shape[-1], left[-1]))
    return axes


def _addmm(
    f: Followed, out: Tensor, bias: Tensor, a: Tensor, b: Tensor, **_: Any
) -> Axes:
    axes = _mm(f, out, a, b)
    own = f.axes(bias)
    for rows, found in zip(own[::-1], axes[::-1], strict=False):
        if rows is not None or bias.ndim == out.ndim:
            f.ids.unify(rows, found)
    return axes


def _batch_norm(
    f: Followed,
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
    f: Followed, out: Any, x: Tensor, shape: Sequence[int], *parameters: Any
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
    f: Followed,
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


def _im2col(f: Followed, out: Tensor, x: Tensor, size: Sequence[int], *_: Any) -> Axes:
    rows = f.axes(x)[1]
    f.ids.fix(f.axes(x)[2])
    f.ids.fix(f.axes(x)[3])
    return [None, None if rows is None else np.repeat(rows, math.prod(size), 0), None]


def _copy(f: Followed, out: Tensor, into: Tensor, source: Tensor, *_: Any) -> Axes:
    return f.elementwise(into, [into, source] if id(into) in f.known else [source])


_SPATIAL = (
    "max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d"
    " upsample_bilinear2d upsample_nearest2d upsample_bicubic2d _upsample_bilinear2d_aa"
    " _upsample_bicubic2d_aa upsample_linear1d avg_pool1d adaptive_avg_pool1d max_pool2d"
    " reflection_pad2d replication_pad2d"
)
ELEMENTWISE = {
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
RULES: dict[str, Rule] = {
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
