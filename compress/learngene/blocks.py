"""Stage-wise weight sharing (SWS) on the blocks of any module.

Xia et al., "Efficient Initialization of Variable-sized Transformer Models via Stage-wise
Weight Sharing", IJCAI 2024. The layers of one stage are one module while the auxiliary
network trains; a descendant of any depth gets, for each of its layers, a copy of one stage.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import TypeVar

from torch import nn

Blocks = TypeVar("Blocks", nn.Sequential, nn.ModuleList)


def share_stages(blocks: Blocks, repeats: Sequence[int]) -> Blocks:
    """The blocks of an auxiliary network: the first `len(repeats)` of the given ones, each
    used `repeats[stage]` times.

    Args:
        blocks: of one shape each, so that their order can be chosen; not copied.
        repeats: layers of each stage.

    Raises:
        ValueError: there are fewer blocks than stages, or a stage without layers.
    """
    if not 0 < len(repeats) <= len(blocks) or min(repeats) < 1:
        raise ValueError(
            f"repeats {list(repeats)}: at least one layer for each stage, and no more"
            f" stages than the {len(blocks)} blocks"
        )
    own = list(blocks)
    stages = (stage for stage, count in enumerate(repeats) for _ in range(count))
    return _like(blocks, (own[stage] for stage in stages))


def expand_stages(blocks: Blocks, layers_source: Sequence[int]) -> Blocks:
    """The blocks of a descendant, without sharing.

    Args:
        blocks: as `share_stages` gave them, trained; not changed.
        layers_source: for each layer of the descendant the stage that it copies.

    Raises:
        ValueError: no such stage.
    """
    stages = list(
        dict.fromkeys(blocks)
    )  # a module appears once, in the order of stages
    wrong = [stage for stage in layers_source if not 0 <= stage < len(stages)]
    if wrong or not layers_source:
        raise ValueError(
            f"layers_source {list(layers_source)}: one stage from 0 to {len(stages) - 1}"
            " for each layer"
        )
    return _like(blocks, (copy.deepcopy(stages[stage]) for stage in layers_source))


def _like(blocks: Blocks, modules: Iterable[nn.Module]) -> Blocks:
    if isinstance(blocks, nn.Sequential):
        return nn.Sequential(*modules)
    return nn.ModuleList(modules)
