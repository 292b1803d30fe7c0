"""ReViT: the shape that pruning DeiT to several latency targets has in common."""

from typing import Any

from trainers.models.arch import Arch
from trainers.models.pruned_vit import check_dims

REVIT_SCALE = 64**-0.5
_DEPTH = 12


def revit_arch(
    embed: int,
    *,
    heads: list[int] | None = None,
    qk: list[int] | None = None,
    v: list[int] | None = None,
    mlp: list[int] | None = None,
    num_classes: int,
    img_size: int,
    patch_size: int = 16,
    distilled: bool = False,
    scale: float = REVIT_SCALE,
    **args: Any,
) -> Arch:
    """A ReViT: the shape that pruning DeiT to several targets has in common (Yang et al.
    2023, section 5).

    From E alone, 12 blocks with a = 2·round(0.005·E) and b = 8·round(E/160), each at least
    one group (2 and 8): heads 10, a, a, 2a ×6, a, a, 10; qk 2b, b, b, 2b ×6, b, b, 2b; v
    64; mlp 3E in the outer six blocks, else 6E. E = 176 is ReViT-T, 384 is ReViT-S. A list
    given replaces the rule's; another depth needs all four.

    Args:
        args: further arguments of `PrunedVit` (drop_path_rate, …).

    Raises:
        ValueError: lists of different lengths or dimensions that are not positive integers.
    """
    if not isinstance(embed, int) or isinstance(embed, bool) or embed < 1:
        raise ValueError(f"embed is an integer of at least 1; got {embed!r}")
    a, b, e = 2 * max(1, round(0.005 * embed)), 8 * max(1, round(embed / 160)), embed
    rule = {
        "heads": [10, a, a, *[2 * a] * 6, a, a, 10],
        "qk": [2 * b, b, b, *[2 * b] * 6, b, b, 2 * b],
        "v": [64] * _DEPTH,
        "mlp": [3 * e] * 3 + [6 * e] * 6 + [3 * e] * 3,
    }
    given = {"heads": heads, "qk": qk, "v": v, "mlp": mlp}
    dims = {
        name: rule[name] if values is None else values for name, values in given.items()
    }
    check_dims({"embed": embed, **dims})
    return Arch(
        "pruned_vit",
        "revit",
        {
            "num_classes": num_classes,
            "img_size": img_size,
            "patch_size": patch_size,
            "distilled": distilled,
            "scale": scale,
            **args,
        },
        {"embed": embed, **dims},
    )
