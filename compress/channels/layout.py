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
Place = tuple[str, int]
"""A tensor's name and one of its axes."""


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
    axes: tuple[Place, ...]


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
    rows: Mapping[Place, Rows]
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
        """The units that a pass through `module` showed."""
        _fix_what_is_not_cut(found, module)
        axes = _removable(found)
        units = _Units(axes)
        tensors = dict([*module.named_parameters(), *module.named_buffers()])

        def numbered(rows: Rows) -> Rows:
            return units.numbered(found.identities.resolved(rows))

        return cls(
            num_units=units.count,
            groups=tuple(units.groups),
            rows={place: units.numbered(atoms) for place, atoms in axes.items()},
            aliases=_aliases(module, tensors),
            shapes={name: tuple(t.shape) for name, t in tensors.items()},
            sizes=tuple(replace(use, rows=numbered(use.rows)) for use in found.sizes),
            products=tuple(
                replace(each, rows=tuple(map(numbered, each.rows)))
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

    def channels_per_unit(self, group: Group) -> int:
        """Positions that a unit of a group takes of an axis of a weight, the fewest of all its
        axes: 1 for channels, a head's width for heads.
        """
        counts = [
            int(np.isin(self.rows[tensor, axis], group.units).any(axis=1).sum())
            for tensor, axis in group.axes
            if len(self.shapes[tensor]) > 1
        ]
        return max(1, min(counts, default=0) // len(group.units))

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


class _Units:
    """Atoms become units, numbered group by group.

    Args:
        axes: atoms of each axis, as `_removable` gives them.
    """

    def __init__(self, axes: Mapping[Place, Rows]) -> None:
        self.groups: list[Group] = []
        self._unit_of: dict[int, int] = {}
        order = {place: i for i, place in enumerate(axes)}
        alike = _atoms_by_places(axes)
        for places in sorted(alike, key=lambda each: min(order[p] for p in each)):
            atoms = alike[places]
            units = np.arange(self.count, self.count + len(atoms), dtype=np.int64)
            self._unit_of |= dict(zip(atoms, units.tolist(), strict=True))
            ordered = tuple(sorted(places, key=order.__getitem__))
            name, axis = ordered[0]
            self.groups.append(Group(f"{name}:{axis}", units, ordered))

    @property
    def count(self) -> int:
        return len(self._unit_of)

    def numbered(self, atoms: Rows) -> Rows:
        """Units in the place of atoms, and -1 in that of atoms that always stay (n, k)."""
        unique, at = np.unique(atoms, return_inverse=True)
        units = np.array([self._unit_of.get(int(atom), -1) for atom in unique])
        return units[at.reshape(-1)].reshape(atoms.shape)


def _removable(found: Trace) -> dict[Place, Rows]:
    """Atoms of each axis, of which at least one can go."""
    axes = {
        (name, i): found.identities.resolved(rows)
        for name, of_tensor in found.axes.items()
        for i, rows in enumerate(of_tensor)
        if rows is not None
    }
    return {place: atoms for place, atoms in axes.items() if atoms.any()}


def _atoms_by_places(axes: Mapping[Place, Rows]) -> dict[frozenset[Place], list[int]]:
    """Atoms, ascending, by all the axes in which each of them occurs."""
    places: dict[int, set[Place]] = defaultdict(set)
    for place, rows in axes.items():
        for atom in np.unique(rows).tolist():
            places[atom].add(place)
    places.pop(0, None)  # what always stays
    alike: dict[frozenset[Place], list[int]] = defaultdict(list)
    for atom in sorted(places):
        alike[frozenset(places[atom])].append(atom)
    return dict(alike)


def _aliases(module: nn.Module, tensors: Mapping[str, Any]) -> dict[str, str]:
    first = {id(tensor): name for name, tensor in tensors.items()}
    named = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    return {name: first[id(t)] for name, t in named if first[id(t)] != name}


def _fix_what_is_not_cut(found: Trace, module: nn.Module) -> None:
    """Keep what classifies, and buffers that are computed when a model is built."""
    saved = module.state_dict()
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
