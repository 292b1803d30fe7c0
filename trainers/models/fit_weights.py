"""Which tensors of a checkpoint are an architecture's weights.

Training programs wrap models (`module.`, `_orig_mod.`, Lightning's `model.`), save several sets of
weights side by side, and name the classifier's shape after their own classes. The names and shapes
that fit the architecture decide which tensors are meant; what was changed or left out is said.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainers.models.arch import Arch, on_meta
from trainers.models.checkpoint_file import Checkpoint
from trainers.models.parameters import classifier_layers
from trainers.models.weight_forms import Table, adapted

_PREFERRED = (
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "model_ema_state_dict",
    "ema_model",
    "ema",
    "model",
    "module",
    "state_dict",
    "model_state_dict",
    "net",
    "",
)
"""Places of weights, in the order in which they are taken where several fit: averaged ones first,
as timm does.
"""
_WRAPPERS = (
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
)
"""Levels that data parallelism, torch.compile and checkpointed activations put into names."""
_BESIDE = ("criterion", "loss", "decoder", "mask_token", "n_averaged", "ema", "teacher")
"""Beginnings of the names of what training programs save among a model's own names."""
_COUNTERS = ("num_batches_tracked", "total_ops", "total_params")
"""Ends of the names of counters; a model works without them."""
_OF_TRAINING = ("optim", "lr_sched", "scaler", "amp", "callbacks", "loops")
"""Beginnings of the keys of a training's own state."""


Place = tuple[str, Tensor]
"""A tensor and its place in the file."""


@dataclass(frozen=True)
class Fit:
    """The tensors of a checkpoint that are an architecture's weights.

    Attributes:
        weights: by the architecture's names and in its shapes; still mapped to memory.
        fresh: names that the checkpoint does not give, in the architecture's order.
        unused: places of tensors that the architecture does not take.
        remarks: whole sentences about all that is not simply the same.
        classes: of the checkpoint's classifier, where it was left out; 0 if it has none.
    """

    weights: dict[str, Tensor]
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    classes: int = 0


def fit_weights(
    found: Checkpoint, arch: Arch, *, key: str | None = None, prefix: str = ""
) -> Fit:
    """Find the weights of `arch` in a checkpoint.

    Position embeddings are resampled, the first convolution is adapted to other channels,
    published names are converted as timm does, and a classifier of other classes is left out.

    Args:
        key: dotted place of the weights in the file; default: where most tensors fit.
        prefix: beginning of names that is removed.

    Raises:
        ValueError: another model's weights, values that are not finite, or several sets of
            weights between which nothing decides.
    """
    module = on_meta(arch)
    wanted = module.state_dict()
    table = _find_table(_named(found, key, prefix, wanted), wanted, found, module, arch)
    heads = classifier_layers(module)
    fit = _compared(table, wanted, heads, found, arch)
    _refuse_not_finite(fit.weights, wanted, found)
    return fit


# ------------------------------------------------------------------ where the weights are


def _named(
    found: Checkpoint, key: str | None, prefix: str, wanted: Iterable[str]
) -> dict[str, Place]:
    """The tensors under `key`, by names without `prefix` and without levels of wrappers."""
    own_levels = {level for name in wanted for level in name.split(".")}
    wrappers = set(_WRAPPERS) - own_levels

    def unwrapped(place: str) -> str:
        return ".".join(level for level in place.split(".") if level not in wrappers)

    start = f"{key}." if key else ""
    inside = {
        place: place.removeprefix(start)
        for place in found.tensors
        if place.startswith(start)
    } or {
        place: unwrapped(place).removeprefix(start)
        for place in found.tensors
        if unwrapped(place).startswith(start)
    }
    if not inside:
        have = ", ".join(found.keys)[:200]
        raise ValueError(f"{found.path}: no tensors under {key!r}; it has {have}")
    named: dict[str, Place] = {}
    for place, name in inside.items():
        inner = unwrapped(name.removeprefix(prefix))
        named[name if inner in named else inner] = (place, found.tensors[place])
    return named


def _find_table(
    named: dict[str, Place],
    wanted: Mapping[str, Tensor],
    found: Checkpoint,
    module: nn.Module,
    arch: Arch,
) -> Table:
    votes = _votes(named, wanted)
    fitting = _best(votes)
    if votes[fitting[0]] >= len(wanted) / 2 or arch.builder != "timm":
        _refuse_undecided(fitting, named, wanted, found)
        return adapted(_table_under(fitting[0], named, wanted), module, arch, wanted)
    tables = [
        adapted(_table_under(prefix, named, wanted), module, arch, wanted)
        for prefix in _places(named, fitting[0])
    ]
    return max(tables, key=lambda table: _number_that_fit(table.tensors, wanted))


def _votes(named: Mapping[str, Place], wanted: Mapping[str, Tensor]) -> Counter[str]:
    """Beginning of a name → how many names and shapes fit once it is removed."""
    votes: Counter[str] = Counter({"": 0})
    for name, (_, tensor) in named.items():
        levels = name.split(".")
        for i in range(len(levels)):
            own = wanted.get(".".join(levels[i:]))
            if own is not None and own.shape == tensor.shape:
                votes["".join(f"{level}." for level in levels[:i])] += 1
    return votes


def _best(votes: Counter[str]) -> list[str]:
    """The prefixes with the most votes, the preferred one first."""
    most = max(votes.values())
    return sorted(
        (prefix for prefix, count in votes.items() if count == most), key=_rank
    )


def _rank(prefix: str) -> tuple[int, int, str]:
    first = prefix.split(".")[0]
    known = _PREFERRED.index(first) if first in _PREFERRED else len(_PREFERRED)
    return known, prefix.count("."), prefix


def _refuse_undecided(
    fitting: list[str],
    named: Mapping[str, Place],
    wanted: Mapping[str, Tensor],
    found: Checkpoint,
) -> None:
    """Refuse two sets of weights of which neither is usual, unless their values are the same."""
    first, *others = fitting
    if not others or first.split(".")[0] in _PREFERRED:
        return
    for other in others:
        if any(
            not torch.equal(named[first + name][1], named[other + name][1])
            for name in wanted
            if first + name in named and other + name in named
        ):
            places = ", ".join(prefix.removesuffix(".") for prefix in fitting)
            raise ValueError(
                f"{found.path}: several sets of weights fit ({places}); choose one by"
                f" source.checkpoint_key, for example {first.removesuffix('.')!r}"
            )


def _places(named: Iterable[str], fitting: str) -> list[str]:
    """Beginnings of names at which published weights may lie that have other names than timm's."""
    first = {name.split(".")[0] for name in named}
    keys = sorted((key for key in first if key in _PREFERRED), key=_rank)
    return list(dict.fromkeys([*(f"{key}." for key in keys), "", fitting]))


def _table_under(
    prefix: str,
    named: Mapping[str, Place],
    wanted: Mapping[str, Tensor],
) -> Table:
    """The tensors below a prefix; names of the model that lack there are looked for one or more
    levels higher, where some programs keep the classifier.
    """
    inside = {
        name.removeprefix(prefix): value
        for name, value in named.items()
        if name.startswith(prefix)
    }
    levels = prefix.split(".")[:-1]
    for name in wanted:
        for depth in range(len(levels) - 1, -1, -1):
            outside = ".".join([*levels[:depth], name])
            if name not in inside and outside in named:
                inside[name] = named[outside]
    taken = {place for place, _ in inside.values()}
    return Table(
        {name: tensor for name, (_, tensor) in inside.items()},
        {name: place for name, (place, _) in inside.items()},
        prefix,
        unused=[place for place, _ in named.values() if place not in taken],
    )


# ------------------------------------------------------------------ the comparison


def _fits(theirs: Tensor | None, own: Tensor) -> bool:
    """Whether a tensor can be a model's parameter or buffer."""
    return (
        theirs is not None
        and theirs.shape == own.shape
        and theirs.layout is torch.strided
        and not theirs.is_meta
        and not theirs.is_quantized
        and theirs.is_complex() == own.is_complex()
        and (theirs.is_floating_point() or not own.is_floating_point())
    )


def _number_that_fit(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> int:
    return sum(_fits(tensors.get(name), own) for name, own in wanted.items())


def _is_of(name: str, layers: Iterable[str]) -> bool:
    return any(name.startswith(f"{layer}.") for layer in layers)


def _compared(
    table: Table,
    wanted: Mapping[str, Tensor],
    heads: tuple[str, ...],
    found: Checkpoint,
    arch: Arch,
) -> Fit:
    """Every tensor of the model with that of the checkpoint.

    Raises:
        ValueError: another model's weights; the message says how many fit, and which not.
    """
    refreshed = {
        head
        for head in heads
        for name, own in wanted.items()
        if _is_of(name, (head,)) and not _fits(table.tensors.get(name), own)
    }
    weights, fresh, missing, misfits = _matched(table.tensors, wanted, refreshed)
    extra = [
        name for name in table.tensors if name not in wanted and not _is_of(name, heads)
    ]
    beside = [n for n in extra if n.startswith(_BESIDE) or n.endswith(_COUNTERS)]
    unexpected = [name for name in extra if name not in beside]
    if missing or misfits or unexpected or not weights:
        raise ValueError(
            _misfit_message(found, arch, table, wanted, (missing, unexpected, misfits))
        )
    head_names = [n for n in table.tensors if _is_of(n, refreshed)]
    unused = [*table.unused, *(table.places.get(n, n) for n in [*beside, *head_names])]
    classes = _classes_of(table, refreshed)
    remarks = [
        *_remark_on_place(table, found),
        *table.remarks,
        *fresh_classifier(refreshed, classes, arch.args.get("num_classes")),
        *_remark_on_unused(
            [place for place in unused if not _is_head(place, refreshed)]
        ),
    ]
    needed = tuple(name for name in fresh if not name.endswith(_COUNTERS))
    return Fit(weights, needed, tuple(unused), tuple(remarks), classes)


def _matched(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], refreshed: set[str]
) -> tuple[dict[str, Tensor], list[str], list[str], list[str]]:
    """What becomes of the model's tensors: name → the checkpoint's tensor that fits; names that
    begin anew; names that the checkpoint lacks; and what differs, in words.

    Args:
        refreshed: layers of which everything begins anew.
    """
    weights: dict[str, Tensor] = {}
    fresh: list[str] = []
    missing: list[str] = []
    misfits: list[str] = []
    for name, own in wanted.items():
        theirs = tensors.get(name)
        may_lack = name.endswith(_COUNTERS) or name == "dist_token"
        if _is_of(name, refreshed) or (theirs is None and may_lack):
            fresh.append(name)
        elif theirs is None:
            missing.append(name)
        elif _fits(theirs, own):
            weights[name] = theirs
        else:
            misfits.append(_difference(name, theirs, own))
    return weights, fresh, missing, misfits


def _is_head(place: str, heads: Iterable[str]) -> bool:
    return any(f".{head}." in f".{place}" for head in heads)


def _difference(name: str, theirs: Tensor, own: Tensor) -> str:
    if theirs.shape != own.shape:
        return f"{name}: file {tuple(theirs.shape)}, model {tuple(own.shape)}"
    form = "meta" if theirs.is_meta else str(theirs.dtype).removeprefix("torch.")
    form = form if theirs.layout is torch.strided else f"sparse {form}"
    return f"{name}: file {form}, model {str(own.dtype).removeprefix('torch.')}"


def _misfit_message(
    found: Checkpoint,
    arch: Arch,
    table: Table,
    wanted: Mapping[str, Tensor],
    problems: tuple[list[str], list[str], list[str]],
) -> str:
    told = "; ".join(
        f"{what}: {', '.join(names[:4])}{' …' if len(names) > 4 else ''}"
        for what, names in zip(
            ("missing", "unexpected", "shapes or types differ"), problems, strict=True
        )
        if names
    )
    made_for = (
        f"; the checkpoint says that it is of {found.model}" if found.model else ""
    )
    return (
        f"{found.path} does not fit {arch.name}: {_number_that_fit(table.tensors, wanted)}"
        f" of the model's {len(wanted)} tensors are in it with their name and shape;"
        f" {told}{made_for}; give the model and the arguments that it was trained with, or"
        " another checkpoint"
    )


def _classes_of(table: Table, heads: Iterable[str]) -> int:
    sizes = [
        tensor.shape[0]
        for name, tensor in table.tensors.items()
        if _is_of(name, heads) and tensor.ndim > 0
    ]
    return sizes[0] if sizes else 0


def _remark_on_place(table: Table, found: Checkpoint) -> list[str]:
    sample = next((n for n in table.places if n in table.tensors), None)
    if sample is None or table.places[sample] == sample:
        return []
    place = table.places[sample].removesuffix(sample).removesuffix(".")
    return (
        [f"The weights are those under {place!r} of {found.path.name}."]
        if place
        else []
    )


def fresh_classifier(
    heads: Iterable[str], theirs: int, wanted: int | None
) -> tuple[str, ...]:
    """The remark that a classifier starts from random values; none where `heads` is empty.

    Args:
        theirs: number of classes of the file; 0 if it has no classifier.
        wanted: that of the data.
    """
    names = ", ".join(sorted(heads))
    if not names:
        return ()
    reason = (
        f"the weights are for {theirs} classes, the data has {wanted}"
        if theirs
        else "the weights come without one"
    )
    return (f"The classifier ({names}) starts fresh, from random values: {reason}.",)


def _remark_on_unused(unused: list[str]) -> list[str]:
    """What of the model's kind is left out; the state of an optimiser goes without saying."""
    groups: dict[str, list[str]] = {}
    for place in unused:
        groups.setdefault(place.split(".")[0], []).append(place)
    told = [
        places[0] if len(places) == 1 else f"{group} ({len(places)} tensors)"
        for group, places in groups.items()
        if not group.startswith(_OF_TRAINING)
    ]
    more = " …" if len(told) > 4 else ""
    return [f"Not used of the checkpoint: {', '.join(told[:4])}{more}."] if told else []


def _refuse_not_finite(
    weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], found: Checkpoint
) -> None:
    for name, tensor in weights.items():
        values = tensor.to(wanted[name].dtype)
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            bad = int((~torch.isfinite(values)).sum())
            raise ValueError(
                f"{found.path}: {name} has {bad} of {values.numel()} values that are not"
                " finite (NaN or infinite), as a training that diverged leaves them; give"
                " an earlier checkpoint"
            )
