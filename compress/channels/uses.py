"""Which axes a call of torch's functions gave the sizes that stand among its arguments.

A rule gets what is known, the call's result, and its arguments; it notes each size with the rows
of the axis that has it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from compress.channels.followed import Followed
from compress.channels.sizes import Sized, flat

Rule = Callable[..., None]


def _shape(f: Followed, out: Tensor, x: Tensor, *sizes: Any, **named: Any) -> None:
    wanted = flat([*sizes, *named.values()])
    for size, rows in zip(wanted, f.axes(out), strict=True):
        f.note(size, rows, f.axes(x))


def _unflatten(f: Followed, out: Tensor, x: Tensor, dim: int, sizes: Any) -> None:
    first = dim % x.ndim
    parts = f.axes(out)[first : first + len(sizes)]
    for size, rows in zip(sizes, parts, strict=True):
        f.note(size, rows)


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
    for size, part in zip(each, out, strict=True):
        f.note(size, f.axes(part)[dim], f.axes(x))


def _getitem(f: Followed, out: Tensor, x: Tensor, key: Any) -> None:
    """Bounds of slices, as far as the key tells to which axis each of its entries belongs."""
    key = key if isinstance(key, tuple) else (key,)
    if any(part is None for part in key):
        return
    axes = f.axes(x)
    if Ellipsis in key[:1]:
        key = key[1:]
        axes = axes[len(axes) - len(key) :]
    for part, rows in zip(key, axes, strict=False):
        if rows is None or not isinstance(part, slice):
            continue
        for bound in (part.start, part.stop):
            if isinstance(bound, Sized):
                f.note(bound, rows[:bound])


def _pad(f: Followed, out: Tensor, x: Tensor, pad: Any, *_: Any, **__: Any) -> None:
    axes = f.axes(out)
    for i, size in enumerate(pad):  # two for each axis, from the last axis on
        rows = axes[-1 - i // 2]
        if rows is not None and size:
            is_before = i % 2 == 0
            f.note(size, rows[:size] if is_before else rows[-size:])


RULES: dict[str, Rule] = {
    "view": _shape,
    "reshape": _shape,
    "expand": _shape,
    "unflatten": _unflatten,
    "split": _split,
    "split_with_sizes": _split,
    "__getitem__": _getitem,
    "pad": _pad,
}
