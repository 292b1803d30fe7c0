"""Which block of the teacher each block of the student takes."""

import re
from dataclasses import dataclass
from typing import Literal

from torch import nn

from compress.selection.elements import uniform_indices

LayerRule = Literal["first", "uniform"]


@dataclass
class LayerMap:
    """Student's module path → teacher's, and for each list of blocks the teacher's block
    numbers.
    """

    paths: dict[str, str]
    blocks: dict[str, list[int]]

    def teacher_name(self, name: str) -> str:
        """The teacher's name of a student's parameter or buffer."""
        path, _, leaf = name.rpartition(".")
        return f"{self.paths[path]}.{leaf}" if path else leaf


def map_layers(student: nn.Module, teacher: nn.Module, rule: LayerRule) -> LayerMap:
    """Which teacher block each student block takes. Where the teacher has too few, names
    stay as they are.
    """
    found = LayerMap({}, {})

    def walk(s: nn.Module, t: nn.Module, s_path: str, t_path: str) -> None:
        found.paths[s_path.rstrip(".")] = t_path.rstrip(".")
        renamed: dict[str, str] = {}
        t_lists = _block_lists(t)
        for prefix, numbers in _block_lists(s).items():
            available = t_lists.get(prefix, [])
            if len(available) < len(numbers):
                continue
            count = len(numbers)
            places = (
                uniform_indices(len(available), count).tolist()
                if rule == "uniform"
                else range(count)
            )
            chosen = [available[place] for place in places]
            renamed |= {
                f"{prefix}{n}": f"{prefix}{m}"
                for n, m in zip(numbers, chosen, strict=True)
            }
            if not prefix or len(available) != count:
                found.blocks[(s_path + prefix).rstrip(".")] = chosen
        children = dict(t.named_children())
        for name, child in s.named_children():
            other = renamed.get(name, name)
            walk(
                child,
                children.get(other, nn.Identity()),
                f"{s_path}{name}.",
                f"{t_path}{other}.",
            )

    walk(student, teacher, "", "")
    return found


def _block_lists(module: nn.Module) -> dict[str, list[int]]:
    """Numbered children that have children themselves: prefix (empty in a list) → numbers
    in order.
    """
    lists: dict[str, list[int]] = {}
    for name, child in module.named_children():
        numbered = re.fullmatch(r"(\D*)(\d+)", name)
        if numbered and any(True for _ in child.children()):
            lists.setdefault(numbered[1], []).append(int(numbered[2]))
    return lists
