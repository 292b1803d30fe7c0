"""The units of a model that can be removed, and where in its tensors each of them is.

Legend
    U       number of units of the model
    rows    int64 (n, k) of an axis of n positions: the units to which each position belongs, -1
            where there are fewer than k; the position goes where any of them goes
    keep    bool (U,): units that stay
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from compress.channels.followed import Product, Use
from compress.channels.sizes import Axes
from compress.channels.trace import Trace, trace
from trainers.models.arch import Arch, on_meta
from trainers.models.cut_model import Cut
from trainers.models.parameters import classifier_layers

Rows = npt.NDArray[np.int64]
Keep = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Group:
    """Units of the same kind: they sit in the same axes of the same tensors.

    Attributes:
        name: the tensor and axis that come first.
        units: their numbers in the model, ascending.
        axes: (tensor, axis) of all their positions.
    """

    name: str
    units: Rows
    axes: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Layout:
    """All units of a model.

    Attributes:
        num_units: U.
        groups: they hold each unit once.
        rows: (tensor, axis) → rows of its positions; axes without units are left out.
        shapes: tensor → its shape.
        aliases: a tensor's further names, where modules share it → the name that is used here.
        sizes: uses of attributes as sizes of axes.
        products: convolutions and matrix products of a pass of one image.
    """

    num_units: int
    groups: tuple[Group, ...]
    rows: Mapping[tuple[str, int], Rows]
    shapes: Mapping[str, tuple[int, ...]]
    aliases: Mapping[str, str]
    sizes: tuple[Use, ...]
    products: tuple[Product, ...]

    @classmethod
    def of(cls, arch: Arch, image_size: int) -> "Layout":
        """The units of an architecture."""
        module = on_meta(arch).eval()
        channels = arch.args.get("in_chans", 3)
        found = trace(module, (1, channels, image_size, image_size))
        return cls.of_trace(found, module)

    @classmethod
    def of_trace(cls, found: Trace, module: nn.Module) -> "Layout":
        saved = module.state_dict()
        resolved = found.identities.resolved
        tensors = dict([*module.named_parameters(), *module.named_buffers()])
        _fix_what_is_not_cut(found, module, saved)
        axes = {
            (name, i): found.identities.resolved(rows)
            for name, of_tensor in found.axes.items()
            for i, rows in enumerate(of_tensor)
            if rows is not None
        }
        axes = {place: rows for place, rows in axes.items() if rows.any()}
        where: dict[int, set[tuple[str, int]]] = defaultdict(set)
        for place, rows in axes.items():
            for atom in np.unique(rows).tolist():
                where[atom].add(place)
        where.pop(0, None)
        kinds: dict[frozenset[tuple[str, int]], list[int]] = defaultdict(list)
        for atom in sorted(where):
            kinds[frozenset(where[atom])].append(atom)
        order = {place: i for i, place in enumerate(axes)}
        groups: list[Group] = []
        number: dict[int, int] = {0: -1}
        for places, atoms in sorted(
            kinds.items(), key=lambda kind: min(order[place] for place in kind[0])
        ):
            units = np.arange(len(atoms), dtype=np.int64) + len(number) - 1
            number |= dict(zip(atoms, units.tolist(), strict=True))
            ordered = tuple(sorted(places, key=order.__getitem__))
            name, axis = ordered[0]
            groups.append(Group(f"{name}:{axis}", units, ordered))

        def numbered(rows: Rows) -> Rows:
            unique, at = np.unique(rows, return_inverse=True)
            known = np.array([number.get(int(atom), -1) for atom in unique])
            return known[at.reshape(-1)].reshape(rows.shape)

        return cls(
            num_units=len(number) - 1,
            groups=tuple(groups),
            rows={place: numbered(rows) for place, rows in axes.items()},
            aliases=_aliases(module, tensors),
            shapes={name: tuple(t.shape) for name, t in tensors.items()},
            sizes=tuple(
                replace(use, rows=numbered(found.identities.resolved(use.rows)))
                for use in found.sizes
            ),
            products=tuple(
                replace(
                    each, rows=tuple(numbered(resolved(rows)) for rows in each.rows)
                )
                for each in found.products
            ),
        )

    def kept(self, rows: Rows, keep: Keep) -> Keep:
        """Which positions of an axis stay (n,)."""
        padded = np.append(keep, True)
        return np.asarray(padded[rows].all(1))

    def axis_keeps(self, keep: Keep) -> dict[str, dict[int, Keep]]:
        """Tensor → axis → positions that stay, for the axes that lose some."""
        found: dict[str, dict[int, Keep]] = defaultdict(dict)
        for (name, axis), rows in self.rows.items():
            positions = self.kept(rows, keep)
            if not positions.all():
                found[name][axis] = positions
        return dict(found)

    def cut(self, keep: Keep, module: nn.Module) -> Cut:
        """The cut that leaves these units of `module`."""
        shapes = {
            name: [
                int(axes[i].sum()) if i in axes else n
                for i, n in enumerate(self.shapes[name])
            ]
            for name, axes in self.axis_keeps(keep).items()
        }
        sizes: dict[str, dict[str, Any]] = defaultdict(dict)
        for use in self.sizes:
            now = int(self.kept(use.rows, keep).sum())
            if now == len(use.rows):
                continue
            attribute, now = use.attribute, now * use.over // use.times
            own = sizes[attribute.module]
            if attribute.item is None:
                own[attribute.name] = now
            else:
                old = vars(module.get_submodule(attribute.module))[attribute.name]
                own.setdefault(attribute.name, list(old))[attribute.item] = now
        for path, layer in module.named_modules():
            groups = getattr(layer, "groups", 1)
            if isinstance(layer, nn.Conv2d | nn.Conv1d) and groups > 1:
                left = self._conv_groups(path, groups, keep)
                if left != groups:
                    sizes[path]["groups"] = left
        return Cut(shapes, dict(sizes))

    def _conv_groups(self, path: str, groups: int, keep: Keep) -> int:
        """How many groups of a convolution have outputs left."""
        rows = self.rows.get((f"{path}.weight", 0))
        if rows is None:
            return groups
        return int(self.kept(rows, keep).reshape(groups, -1).any(1).sum())


def _aliases(module: nn.Module, tensors: Mapping[str, Any]) -> dict[str, str]:
    first = {id(tensor): name for name, tensor in tensors.items()}
    named = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    return {name: first[id(t)] for name, t in named if first[id(t)] != name}


def _fix_what_is_not_cut(
    found: Trace, module: nn.Module, saved: Mapping[str, Any]
) -> None:
    """Keep what classifies, and buffers that are computed when a model is built."""
    for name, axes in found.axes.items():
        if name not in saved:
            _fix(found, axes)
    for path in classifier_layers(module):
        for leaf in ("weight", "bias"):
            if own := found.axes.get(f"{path}.{leaf}"):
                found.identities.fix(own[0])


def _fix(found: Trace, axes: Axes) -> None:
    for rows in axes:
        found.identities.fix(rows)
