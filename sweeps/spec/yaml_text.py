"""YAML as people expect it: 1e-3 is a number, a key given twice is an error."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from trainers.words import did_you_mean as did_you_mean

Tree = dict[str, Any]
"""A mapping of YAML: text as keys, plain values, lists and further mappings as values.

A type checker is told `Any` for the values, since these trees are walked and changed before
anything has validated them. What is validated has a type of its own.
"""


class SpecError(ValueError):
    """A mistake of the user: place, rule, value and remedy in one message."""


class _Loader(yaml.SafeLoader):
    """Safe loader with YAML 1.2 floats and unique keys."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")
    ]  # dates stay text
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _unique_mapping(
    loader: yaml.SafeLoader, node: yaml.MappingNode, deep: bool = False
) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":  # <<: *other
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool | None):
            raise yaml.constructor.ConstructorError(
                None, None, "a key must be a plain value", key_node.start_mark
            )
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} is given twice", key_node.start_mark
            )
        seen.add(key)
    loader.flatten_mapping(node)
    return {
        loader.construct_object(k, deep=True): loader.construct_object(v, deep=True)
        for k, v in node.value
    }


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


MOST_VALUES = 100_000
"""Values that a document may have, each counted as often as aliases (`*name`) repeat it. A few
hundred bytes of aliases of aliases stand for more values than fit into memory.
"""
MOST_BYTES = 16 * 2**20


def _documents(text: str) -> Iterator[Any]:
    """The documents of a YAML text, each looked at before its aliases are written out."""
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            assert node is not None
            if _values(node, {}) > MOST_VALUES:
                raise yaml.YAMLError(
                    f"its aliases stand for more than {MOST_VALUES:,} values; write out what"
                    " is needed"
                )
            yield loader.construct_document(node)
    finally:
        loader.dispose()


def _values(node: yaml.Node, known: dict[int, float]) -> float:
    """Values below a node and itself, with aliases written out; infinite where one is part of
    itself.
    """
    if id(node) not in known:
        known[id(node)] = math.inf  # what an alias within the node itself finds
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        known[id(node)] = 1 + sum(_values(part, known) for part in inner)
    return known[id(node)]


def parse_yaml(text: str, origin: str) -> list[Any]:
    """The documents of a YAML text.

    Raises:
        SpecError: not YAML; names line and column.
    """
    try:
        return list(_documents(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SpecError(
            f"{origin}{where}: not valid YAML: {error.problem or error.context}"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SpecError(
            f"{origin}: not valid YAML:"
            f" {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error


def plain(value: Any, place: str) -> Any:
    """`value` if it is made of JSON's values only, text as keys and finite numbers.

    Raises:
        SpecError: names the place of what is not.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise SpecError(
                    f"{place or 'spec'}: keys must be text; got {key!r} (put it in"
                    " quotes)"
                )
            plain(inner, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            plain(inner, f"{place}.{i}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise SpecError(f"{place}: must be a finite number; got {value}")
    elif not isinstance(value, str | int | float | bool | None):
        raise SpecError(
            f"{place}: must be text, a number, true, false, null, a list or a mapping;"
            f" got {value!r}"
        )
    elif isinstance(value, int) and abs(value) > 2**63:
        raise SpecError(f"{place}: must be a number of at most 64 bits; got {value}")
    return value


def read_text(path: Path) -> str:
    """A spec file's text.

    Raises:
        SpecError: missing, unreadable, or not UTF-8.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise SpecError(
                f"{path}: {path.stat().st_size:,} bytes are no spec; at most {MOST_BYTES:,}"
            )
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not a text file (UTF-8)") from error
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
