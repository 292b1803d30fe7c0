"""Which axes a call of torch's functions gave the sizes that stand among its arguments.

A rule gets what is known, the call's result, and its arguments; it notes each size with the rows
of the axis that has it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from compress.channels.followed import Followed
from compress.channels.identities import Rows
from compress.channels.sizes import (
    Attribute,
    Axes,
    Sized,
    SizedSum,
    blocks,
    flat,
    is_sized,
    origins,
)

Rule = Callable[..., None]


def hold_attributes(f: Followed, given: Iterable[Any]) -> None:
    """What a function that has no rule makes of an attribute is not known: it stays."""
    for each in given:
        if is_sized(each) and all(isinstance(x, Attribute) for x in origins(each)):
            f.hold(each)


def _shape(f: Followed, out: Tensor, x: Tensor, *sizes: Any, **named: Any) -> None:
    wanted = list(flat([*sizes, *named.values()]))
    if not all(isinstance(size, int) for size in wanted):
        return  # a view of another type
    for size, rows in zip(wanted, f.axes(out), strict=True):
        if size >= 0:
            f.note(size, rows, f.axes(x))


def _expand(f: Followed, out: Tensor, x: Tensor, *sizes: Any, **named: Any) -> None:
    wanted = flat([*sizes, *named.values()])
    for size, rows in zip(wanted, f.axes(out), strict=True):
        # an axis of one position that is repeated has the size of what it meets
        if size >= 0 and rows is not None:
            f.note(size, rows, f.axes(x))


def _repeat(f: Followed, out: Tensor, x: Tensor, *times: Any, **named: Any) -> None:
    """How often positions are repeated is no size of an axis."""
    for each in flat([*times, *named.values()]):
        if is_sized(each):
            f.hold(each)


def _unflatten(f: Followed, out: Tensor, x: Tensor, dim: int, sizes: Any) -> None:
    first = dim % x.ndim
    parts = f.axes(out)[first : first + len(sizes)]
    for size, rows in zip(sizes, parts, strict=True):
        if size >= 0:
            f.note(size, rows, f.axes(x))


def _split(
    f: Followed,
    out: Sequence[Tensor],
    x: Tensor,
    sizes: Any = None,
    dim: int = 0,
    **named: Any,
) -> None:
    if sizes is None:
        (sizes,) = named.values()  # each function has a name of its own for it
    each = [sizes] * len(out) if isinstance(sizes, int) else sizes
    end = 0
    for size, part in zip(each, out, strict=True):
        end += size
        if isinstance(size, SizedSum) and min(size.terms) < 0:
            _bound(f, end, f.axes(x)[dim])
        else:
            f.note(size, f.axes(part)[dim], f.axes(x))


def _chunk(
    f: Followed, out: Sequence[Tensor], x: Tensor, chunks: int, dim: int = 0
) -> None:
    f.hold(chunks)


def _tensor_split(
    f: Followed,
    out: Sequence[Tensor],
    x: Tensor,
    places: Any = None,
    dim: int = 0,
    **named: Any,
) -> None:
    """A number of parts, or where each but the first begins."""
    if places is None:
        (places,) = named.values()
    rows = f.axes(x)[dim]
    if isinstance(places, int):
        f.hold(places)
        _equal_parts(f, rows, len(out))
    elif isinstance(places, Tensor):
        f.ids.fix(rows)
    else:
        for place in places:
            _bound(f, place, rows)


def _narrow(
    f: Followed, out: Tensor, x: Tensor, dim: int, start: Any, length: int
) -> None:
    rows = f.axes(x)[dim]
    if isinstance(start, Tensor):
        f.ids.fix(rows)
        f.hold(length)
        return
    _bound(f, start, rows)
    if not is_sized(length):
        f.note(length, f.axes(out)[dim])
    elif start >= 0 or start + length < 0:  # else it ends where the axis does
        _bound(f, start + length, rows)


def _getitem(f: Followed, out: Any, x: Tensor, key: Any) -> None:
    for part, rows in _parts_of_key(key, f.axes(x)):
        if isinstance(part, slice):
            for bound in (part.start, part.stop):
                if isinstance(bound, int):
                    _bound(f, bound, rows)
            if part.step not in (None, 1):
                f.hold(part.step)
                f.ids.fix(rows)
        elif isinstance(part, int):
            f.hold(part)


def _setitem(f: Followed, out: None, x: Tensor, key: Any, value: Any) -> None:
    _getitem(f, out, x, key)


def _parts_of_key(key: Any, axes: Axes) -> Iterator[tuple[Any, Rows | None]]:
    """Each entry of a subscript with the rows of the axis, or the first axis, that it is for."""
    key = key if isinstance(key, tuple) else (key,)
    counts = [_num_axes(part) for part in key]
    at = 0
    for part, count in zip(key, counts, strict=True):
        if part is Ellipsis:
            at += len(axes) - sum(counts)
        elif count:
            yield part, axes[at]
        at += count


def _num_axes(part: Any) -> int:
    """How many axes of a tensor an entry of a subscript is for."""
    if part is None or part is Ellipsis or isinstance(part, bool):
        return 0
    is_mask = isinstance(part, Tensor) and part.dtype == torch.bool
    return part.ndim if is_mask else 1


def _pad(f: Followed, out: Tensor, x: Tensor, pad: Any, *_: Any, **__: Any) -> None:
    if not f.pad_is_sized:
        return  # what is added stays
    axes = f.axes(out)
    for i, size in enumerate(pad):  # two for each axis, from the last axis on
        _bound(f, -size if i % 2 else size, axes[-1 - i // 2])


def _bound(f: Followed, bound: int, rows: Rows | None) -> None:
    """A place on an axis: as many positions are before it, or behind it where it is negative."""
    # what is not reached now is not reached by fewer positions either
    if rows is None or abs(bound) >= len(rows) + is_sized(bound):
        f.hold(bound)
        return
    parts = []
    at = len(rows) if bound < 0 else 0
    for block in blocks(bound):
        there = at + int(block)
        parts.append((-block if block < 0 else block, min(at, there), max(at, there)))
        at = there
    if any(low < 0 or high > len(rows) for _, low, high in parts):
        f.hold(bound)
        f.ids.fix(rows)
        return
    for size, low, high in parts:
        if isinstance(size, Sized) and _is_share_of(f, size, rows):
            _equal_parts(f, rows, size.over)
        else:
            f.note(size, rows[low:high])


def _is_share_of(f: Followed, size: Sized, rows: Rows) -> bool:
    """Whether a size was computed from that of this very axis, by numbers alone."""
    if size.rows is None or size.others:
        return False
    own, axis = f.ids.resolved(size.rows), f.ids.resolved(rows)
    return own.shape == axis.shape and bool((own == axis).all())


def _equal_parts(f: Followed, rows: Rows | None, count: int) -> None:
    """An axis stays one of so many parts of one size."""
    if rows is None:
        return
    if len(rows) % count:
        f.ids.fix(rows)
        return
    outer, _ = f.ids.split(rows, [count, len(rows) // count])
    f.ids.fix(outer)


RULES: dict[str, Rule] = {
    "view": _shape,
    "reshape": _shape,
    "expand": _expand,
    "repeat": _repeat,
    "tile": _repeat,
    "repeat_interleave": _repeat,
    "unflatten": _unflatten,
    "split": _split,
    "split_with_sizes": _split,
    "chunk": _chunk,
    "tensor_split": _tensor_split,
    "narrow": _narrow,
    "__getitem__": _getitem,
    "__setitem__": _setitem,
    "pad": _pad,
}
