"""Plugins: stages, metrics, data sets, exporters and trackers that live outside this repository.

A plugin is found in one of two ways. An installed distribution names what it offers in entry
points (group `compression_sweeps.stages`, and so on: the entry point's name is the offered name,
its object the class or function). A spec names a `.py` file or an importable module, which offers
plain dicts by name, as ours do: `STAGES = {"halve": Halve}`.

Nothing is imported before its group is asked for, and nothing is loaded from a run folder: only
what the user named or installed. The text of a plugin file travels inside `PluginFile` to every
process that needs it; a module and a distribution must be installed on every node.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple, Self

from pydantic import model_validator

from trainers.config import Config
from trainers.files import expanded
from trainers.plugin_source import (
    digest,
    execute,
    hash_of_module,
    import_module,
    package_of,
)

STAGES: Final = "stages"
METRICS: Final = "metrics"
EPOCH_METRICS: Final = "epoch_metrics"
DATASETS: Final = "datasets"
EXPORTERS: Final = "exporters"
TRACKERS: Final = "trackers"
GROUPS: Final = (STAGES, METRICS, EPOCH_METRICS, DATASETS, EXPORTERS, TRACKERS)
"""What a plugin can offer. A plugin file's dict has the group's name in capitals."""

ENTRY_POINTS: Final = "compression_sweeps"


class Plugin(NamedTuple):
    """Where an object comes from.

    Attributes:
        name: a file's name, a dotted module, or a distribution's name.
        sha256: hex digest of the source: of a file its text, of a module or a distribution all
            the code in the package that holds it.
    """

    name: str
    sha256: str


class PluginFile(Config):
    """A plugin that a spec names; it travels as JSON to every process that needs it.

    Attributes:
        name: the file's name (`halve.py`) or the dotted module.
        sha256: hex digest of the source; see `Plugin`.
        text: source of a file; None of a module.
        module: dotted name of a module that every node can import; None of a file.
    """

    name: str
    sha256: str
    text: str | None = None
    module: str | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.text is None) == (self.module is None):
            raise ValueError(f"plugin {self.name}: give either `text` or `module`")
        if self.text is not None and digest(self.text) != self.sha256:
            raise ValueError(f"plugin {self.name}: its text does not have its hash")
        return self


class _Offer(NamedTuple):
    """An offered object and the name of the plugin that it comes from."""

    value: Any
    plugin: str


_loaded: dict[str, tuple[PluginFile, ModuleType]] = {}  # by the plugin's name


def is_path(entry: str) -> bool:
    """Whether an entry of `plugins` names a file; otherwise it names a module."""
    return entry.endswith(".py") or "/" in entry or "\\" in entry


def read(entry: str, folder: Path) -> PluginFile:
    """What a spec's entry of `plugins` means; the source is read and hashed, not executed.

    Args:
        entry: path of a `.py` file (relative to `folder`), or a dotted module.
        folder: of the spec.

    Raises:
        ValueError: no such file, or no such module in this environment.
    """
    if is_path(entry):
        return _read_file(entry, folder)
    return PluginFile(name=entry, sha256=hash_of_module(entry, entry), module=entry)


def load(files: Sequence[PluginFile]) -> None:
    """Execute these plugins, so that `offered` knows what they offer.

    A file that was loaded before with the same text is not executed again; a file of the same name
    with another text takes its place. Classes of a file can be pickled: every process that loads
    the same file has them in a module of the same name.

    Raises:
        ValueError: a plugin that cannot be imported, that offers nothing or things of the wrong
            kind, or a module whose source is not the one that was hashed.
    """
    by_name: dict[str, PluginFile] = {}
    for file in files:
        if by_name.setdefault(file.name, file) != file:
            raise ValueError(
                f"plugins: two different files have the name {file.name};"
                " rename one of them"
            )
    for file in files:
        if file.name in _loaded and _loaded[file.name][0] == file:
            continue
        module = (
            execute(file.name, file.text) if file.text is not None else _import(file)
        )
        _check_offers(file.name, module)
        _loaded[file.name] = (file, module)


def forget() -> None:
    """Forget all plugin files and modules that `load` was given; distributions stay."""
    _loaded.clear()


def offered(group: str) -> dict[str, Any]:
    """What plugins offer in a group of `GROUPS`, by name: installed distributions first.

    Raises:
        ValueError: a distribution's entry point cannot be imported, or two plugins offer
            different things under one name.
    """
    return {name: offer.value for name, offer in _offers(group).items()}


def merged(
    group: str,
    built_in: Mapping[str, Any],
    fits: Callable[[Any], bool] = lambda value: True,
    rule: str = "",
) -> dict[str, Any]:
    """The built-in things of a group and what plugins offer.

    Args:
        group: one of `GROUPS`.
        built_in: ours, by name.
        fits: whether an offered object is of the right kind.
        rule: what it must be, for the message: "a class derived from compress.stage.Stage".

    Raises:
        ValueError: a plugin takes a name that a built-in has, or offers the wrong kind of thing.
    """
    result = dict(built_in)
    for name, (value, plugin) in _offers(group).items():
        if name in built_in:
            raise ValueError(
                f"plugin {plugin}: the name {name!r} of {group} is a built-in's;"
                " give yours another name"
            )
        if not fits(value):
            raise ValueError(
                f"plugin {plugin}: {name!r} of {group} must be {rule}; it is {value!r}"
            )
        result[name] = value
    return result


def plugin_of(obj: Any) -> Plugin | None:
    """The plugin that an object comes from; None if it is no plugin's.

    Args:
        obj: an offered object, or any class or function of a plugin's module or package.
    """
    module = getattr(obj, "__module__", None)
    for file, loaded in _loaded.values():
        if module == loaded.__name__ or _is_offered_by(loaded, obj):
            return Plugin(file.name, file.sha256)
    for point in _entry_points():
        in_package = isinstance(module, str) and package_of(module) == package_of(
            point.module
        )
        if in_package or (point in _values and _values[point] is obj):
            return _distribution(_name_of(point))
    return None


def used_by(objects: Iterable[Any]) -> dict[str, str]:
    """Name → sha256 of the plugins that these objects come from, for a plan."""
    found = (plugin_of(value) for value in objects)
    return dict(sorted({plugin for plugin in found if plugin is not None}))


def require_unchanged(recorded: Mapping[str, str]) -> None:
    """Refuse to repeat what other plugins did than those that are here.

    Args:
        recorded: name → sha256, as `used_by` gave it when the plan was made.

    Raises:
        ValueError: a plugin that is not here, or whose source is not the recorded one.
    """
    here = {name: file.sha256 for name, (file, _) in _loaded.items()}
    for name, sha256 in recorded.items():
        if name not in here and name in {_name_of(p) for p in _entry_points()}:
            here[name] = _distribution(name).sha256
        if name not in here:
            raise ValueError(
                f"the run used the plugin {name}, which is not here; give it as"
                " --plugin FILE (a file or a dotted module) or install it"
            )
        if here[name] != sha256:
            raise ValueError(
                f"the plugin {name} has changed since the run (source {here[name][:12]},"
                f" recorded {sha256[:12]}); bring back the source that the run used,"
                " or start a new run"
            )


# --- files and modules that a spec names


def _read_file(entry: str, folder: Path) -> PluginFile:
    path = folder / expanded(entry)
    if path.suffix != ".py":
        raise ValueError(
            f"plugins: {entry}: a plugin is a .py file or a dotted module (lab.stages)"
        )
    if not path.is_file():
        raise ValueError(
            f"plugins: {entry}: there is no file {path}; paths are relative to the spec"
        )
    try:
        text = path.read_text(encoding="utf-8")  # line ends become \n everywhere
    except UnicodeDecodeError as error:
        raise ValueError(f"plugins: {entry}: the file is not UTF-8: {error}") from error
    return PluginFile(name=path.name, sha256=digest(text), text=text)


def _import(file: PluginFile) -> ModuleType:
    """Import the module of a `PluginFile`, if it is the one that was hashed."""
    assert file.module is not None, file.name
    here = hash_of_module(file.name, file.module)
    if here != file.sha256:
        raise ValueError(
            f"plugin {file.name}: the module's source here ({here[:12]}) is not the one"
            f" that the sweep was started with ({file.sha256[:12]}); install the same"
            " version on every node"
        )
    return import_module(file.name, file.module)


def _check_offers(plugin: str, module: ModuleType) -> None:
    """Refuse a module that offers nothing, or not in plain dicts by name."""
    attributes = [group.upper() for group in GROUPS]
    if not any(hasattr(module, attribute) for attribute in attributes):
        raise ValueError(
            f"plugin {plugin}: it offers nothing; define at least one dict of"
            f" {', '.join(attributes)}, as STAGES = {{'halve': Halve}}"
        )
    for group in GROUPS:
        offers = getattr(module, group.upper(), {})
        if not isinstance(offers, dict):
            raise ValueError(
                f"plugin {plugin}: {group.upper()} must be a dict from a name to what is"
                f" offered; it is a {type(offers).__name__}"
            )
        for name, value in offers.items():
            _check_offer(plugin, group, name, value)


def _check_offer(plugin: str, group: str, name: Any, value: Any) -> None:
    if not (isinstance(name, str) and name.isidentifier() and name.isascii()):
        raise ValueError(
            f"plugin {plugin}: {name!r} of {group} is no name; a name has letters, digits"
            " and _ and starts with a letter"
        )
    if group == STAGES and not _looks_like_a_stage(value):
        raise ValueError(
            f"plugin {plugin}: {name!r} of {group} must be a class derived from"
            f" compress.stage.Stage, with `phase`, `version` and `run`; it is {value!r}"
        )
    if value is None or isinstance(value, str | int | float | ModuleType):
        raise ValueError(
            f"plugin {plugin}: {name!r} of {group} must be a class, a function or an"
            f" object that has what docs/extending.md says; it is {value!r}"
        )


def _looks_like_a_stage(value: Any) -> bool:
    return (
        isinstance(value, type)
        and callable(getattr(value, "run", None))
        and isinstance(getattr(value, "phase", None), str)
        and isinstance(getattr(value, "version", None), int)
    )


# --- installed distributions


@lru_cache(maxsize=1)
def _entry_points() -> tuple[EntryPoint, ...]:
    """All entry points of ours, in a stable order; imports nothing."""
    found = [
        point
        for group in GROUPS
        for point in entry_points(group=f"{ENTRY_POINTS}.{group}")
    ]
    return tuple(sorted(found, key=lambda p: (_name_of(p), p.group, p.name)))


def _name_of(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.module.split(".")[0]


def _group_of(point: EntryPoint) -> str:
    return point.group.removeprefix(f"{ENTRY_POINTS}.")


_values: dict[EntryPoint, Any] = {}  # what entry points name, imported once


def _value(point: EntryPoint) -> Any:
    """Import what an entry point names."""
    if point not in _values:
        plugin = f"{_name_of(point)} (entry point {point.name} = {point.value})"
        value: Any = import_module(plugin, point.module)
        for attribute in point.attr.split(".") if point.attr else ():
            if not hasattr(value, attribute):
                raise ValueError(
                    f"plugin {plugin}: {point.module} has no {point.attr}; mend the"
                    " distribution's pyproject.toml, or uninstall it"
                )
            value = getattr(value, attribute)
        _check_offer(_name_of(point), _group_of(point), point.name, value)
        _values[point] = value
    return _values[point]


@lru_cache(maxsize=16)
def _distribution(name: str) -> Plugin:
    """A distribution as a plugin: the code of all packages that its entry points name."""
    modules = sorted({p.module for p in _entry_points() if _name_of(p) == name})
    hashes = sorted({hash_of_module(name, module) for module in modules})
    if len(hashes) == 1:
        return Plugin(name, hashes[0])
    return Plugin(name, digest("\n".join(hashes)))


# --- both


def _is_offered_by(module: ModuleType, obj: Any) -> bool:
    return any(
        value is obj
        for group in GROUPS
        for value in getattr(module, group.upper(), {}).values()
    )


def _offers(group: str) -> dict[str, _Offer]:
    """What all plugins offer in a group, by name."""
    assert group in GROUPS, group
    result: dict[str, _Offer] = {}
    for point in _entry_points():
        if _group_of(point) == group:
            _add(result, group, point.name, _Offer(_value(point), _name_of(point)))
    for file, module in _loaded.values():
        for name, value in getattr(module, group.upper(), {}).items():
            _add(result, group, name, _Offer(value, file.name))
    return result


def _add(result: dict[str, _Offer], group: str, name: str, offer: _Offer) -> None:
    other = result.setdefault(name, offer)
    if other.value is not offer.value:
        raise ValueError(
            f"plugins: {name!r} of {group} is offered by {other.plugin} and by"
            f" {offer.plugin}; rename one of the two"
        )
