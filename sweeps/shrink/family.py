"""Smaller architectures of a model's family, which start from a part of its weights.

Plain ViTs become narrower or shallower. Of other models the family is told by the name: timm's
models, and the CIFAR ResNets, whose name differs in one word that is a size (`resnet34`,
`resnet18`; `convnext_tiny`, `convnext_nano`). Weight selection itself says which of them can take
weights; their own pretrained weights are not used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from compress.measure.model import PASS_ERRORS, count_gmacs
from sweeps.shrink.look import Look
from sweeps.spec.stages import build_stage
from sweeps.spec.yaml_text import Tree
from trainers.models.arch import shared_on_meta
from trainers.models.resnet_cifar import RESNET_CIFAR
from trainers.timm_library import timm

STAGE: Tree = {"stage": "weight_selection", "copy_head": True}
_MOST, _LEAST = 0.85, 0.1
"""Share of the source's operations that a smaller architecture has."""
_MANY = 3
"""Smaller architectures that are searched at most."""
_TRIED = 12
"""Members of a family that are looked at, the nearest names first."""
_SIZES = re.compile(
    "atto|femto|pico|nano|tiny|mini|small|little|medium|betwixt|base|large|huge|giant|x*s|m|l|ti|b"
)
_FROM_DATA = ("num_classes", "img_size")
_FRACTIONS = (("width", 0.75), ("depth", 0.5), ("width", 0.5))
"""Of a plain ViT: axis and what is left of it."""


def smaller(seen: Look) -> dict[str, Tree]:
    """Label → options of `weight_selection`, the largest first; empty where there is none."""
    size = seen.info.image_size
    whole = count_gmacs(seen.arch, size)
    found: dict[str, tuple[float, Tree]] = {}
    for label, options in _candidates(seen):
        try:
            stage = build_stage(
                "weight_selection", {"copy_head": True} | options, label
            )
            share = count_gmacs(stage.check(seen.arch, seen.info), size) / whole
        except PASS_ERRORS:  # another structure, or larger in some axis
            continue
        if _LEAST <= share <= _MOST:
            found[label] = share, options
    ordered = sorted(found.items(), key=lambda item: -item[1][0])
    step = max(1, -(-len(ordered) // _MANY))
    return {label: options for label, (_, options) in ordered[::-step][::-1]}


def _candidates(seen: Look) -> Iterator[tuple[str, Tree]]:
    if seen.arch.builder == "timm" and "img_size" in seen.arch.args:
        shape = _vit_shape(shared_on_meta(seen.arch))
        if shape is not None:
            yield from _of_vit(*shape)
            return
    kept = {k: v for k, v in seen.arch.args.items() if k not in _FROM_DATA}
    for name in relatives(seen.arch.name):
        yield name, {"model": name} | ({"args": kept} if kept else {})


def _vit_shape(module: Any) -> tuple[int, int, int] | None:
    """Width, heads and depth of a plain ViT; None of another model."""
    width, blocks = getattr(module, "embed_dim", None), getattr(module, "blocks", None)
    if not isinstance(width, int) or blocks is None or not len(blocks):
        return None
    heads = getattr(getattr(blocks[0], "attn", None), "num_heads", None)
    return (width, heads, len(blocks)) if isinstance(heads, int) else None


def _of_vit(width: int, heads: int, depth: int) -> Iterator[tuple[str, Tree]]:
    """Fewer heads of the same width, or fewer blocks."""
    for axis, share in _FRACTIONS:
        if axis == "depth":
            less = round(share * depth)
            if 0 < less < depth:
                yield f"{less} of {depth} blocks", {"args": {"depth": less}}
            continue
        fewer = round(share * heads)
        if 0 < fewer < heads:
            args = {"embed_dim": width // heads * fewer, "num_heads": fewer}
            yield f"{fewer} of {heads} heads", {"args": args}


def relatives(name: str) -> list[str]:
    """Names that differ from a model's in one word that is a size; the nearest first."""
    base = name.split(".")[0]
    if base in RESNET_CIFAR:
        return [other for other in RESNET_CIFAR if other != base][::-1]
    first = base.split("_")[0]
    stem = re.match(r"[a-z]*", first)
    others = timm.list_models(f"{stem[0] if stem else first}*")
    kin = [other for other in others if _differ_in_size(base, other)]
    return sorted(kin, key=lambda other: _distance(base, other))[:_TRIED]


def _differ_in_size(one: str, other: str) -> bool:
    words, others = one.split("_"), other.split("_")
    if len(words) != len(others):
        return False
    pairs = [(a, b) for a, b in zip(words, others, strict=True) if a != b]
    if len(pairs) != 1:
        return False
    first, second = pairs[0]
    if _SIZES.fullmatch(first) and _SIZES.fullmatch(second):
        return True
    return _without_digits(first) == _without_digits(second)


def _without_digits(word: str) -> str:
    return re.sub(r"\d+", "#", word)


def _distance(one: str, other: str) -> float:
    """How far two sizes are apart: of numbers the logarithm's, roughly."""
    mine, theirs = ([int(n) for n in re.findall(r"\d+", s)] for s in (one, other))
    if len(mine) != len(theirs):
        return 0.0
    return max(
        (abs(a - b) / max(a, b, 1) for a, b in zip(mine, theirs, strict=True)),
        default=0.0,
    )
