"""Dotted overrides from the command line: `stages.finetune.lr=1e-3`.

What is fixed by an override is no longer searched; a slot set to the name of an alternative
takes it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from sweeps.space.slots import (
    chosen_stages,
    inside_alternative,
    is_slot,
    named_alternatives,
)
from sweeps.spec.yaml_text import SpecError, Tree, parse_yaml, plain


def apply_overrides(raw: Tree, overrides: Sequence[str]) -> Tree:
    """The raw spec with `key=value` texts applied, in order; values are YAML.

    Raises:
        SpecError: not of that form, a path through a plain value, or a spec whose keys are no text.
    """
    if overrides:
        plain(raw, "")
    for text in overrides:
        path, equals, value_text = text.partition("=")
        if not equals or not path.strip():
            raise SpecError(
                f"override {text!r}: write key=value, for example search.trials=24"
            )
        documents = parse_yaml(value_text, f"override {path}")
        set_override(raw, path.strip(), documents[0] if documents else None)
    return raw


def set_override(raw: Tree, path: str, value: Any) -> None:
    """Set one dotted path in place.

    Raises:
        SpecError: the path leads through a plain value or past a list's end, or the value is none
            of JSON's.
    """
    plain(value, path)
    search = raw.get("search")
    space = search.get("space") if isinstance(search, dict) else None
    if path.startswith("search.space."):
        if not isinstance(search, dict):
            search = raw["search"] = {}
        if not isinstance(space, dict):
            space = search["space"] = {}
        space[path.removeprefix("search.space.")] = value
        return
    if isinstance(space, dict):
        space.pop(path, None)
    parts = path.split(".")
    stages = raw.get("stages")
    if (
        parts[0] == "stages"
        and len(parts) >= 2
        and isinstance(stages, dict)
        and is_slot(stages.get(parts[1]))
    ):
        options = stages[parts[1]]["one_of"]
        if isinstance(options, dict):
            if len(parts) == 2:
                if isinstance(value, dict):
                    stages[parts[1]] = value
                else:
                    _choose(stages, space, parts[1], value)
                return
            if parts[2] != "one_of":
                for alternative in _alternatives(options, parts, path):
                    inner = inside_alternative(options[alternative], parts[3:])
                    _set(
                        raw,
                        ["stages", parts[1], "one_of", alternative, *inner],
                        value,
                        path,
                    )
                return
    _set(raw, parts, value, path)


def _alternatives(options: Tree, parts: Sequence[str], path: str) -> Iterator[str]:
    wanted = parts[2]
    if wanted == "*":
        yield from sorted(
            named_alternatives(options, wanted, parts[3] if len(parts) > 3 else None)
        )
    elif wanted in options:
        yield wanted
    else:
        raise SpecError(
            f"override {path}: no alternative {wanted!r}; valid:"
            f" {', '.join(map(str, options))}, or * for all"
        )


def _choose(stages: Tree, space: Any, slot: str, alternative: Any) -> None:
    options = stages[slot]["one_of"]
    name = "none" if alternative is None and "none" in options else alternative
    if not isinstance(name, str) or name not in options:
        raise SpecError(
            f"override stages.{slot}: no alternative {name!r}; valid:"
            f" {', '.join(map(str, options))}"
        )
    inner = chosen_stages(slot, stages[slot], name)
    in_place = {
        k: v
        for entry, config in stages.items()
        for k, v in (inner if entry == slot else {entry: config}).items()
    }
    stages.clear()
    stages.update(in_place)
    if not isinstance(space, dict):
        return
    for path in [
        p for p in space if isinstance(p, str) and p.startswith(f"stages.{slot}.")
    ]:
        given, parts = space.pop(path), path.split(".")
        if name in named_alternatives(
            options, parts[2], parts[3] if len(parts) > 3 else None
        ):
            kept = parts[3:] if slot not in inner else [slot, *parts[3:]]
            space[".".join(["stages", *kept])] = given


def _set(raw: Tree, parts: Sequence[str], value: Any, path: str) -> None:
    node: Any = raw
    for i, part in enumerate(parts[:-1]):
        key = _key(node, part, path)
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict | list):
            raise SpecError(
                f"override {path}: {'.'.join(parts[: i + 1])} is {node!r}, which has no"
                " parameters"
            )
    node[_key(node, parts[-1], path)] = value


def _key(node: Any, part: str, path: str) -> Any:
    if isinstance(node, dict):
        return part
    if not part.isdigit() or int(part) >= len(node):
        raise SpecError(
            f"override {path}: {part!r} is no item of a list of {len(node)} (0 is the"
            " first)"
        )
    return int(part)
