"""Source of plugins: it is hashed, executed or imported, and its failures name file and line."""

import atexit
import hashlib
import importlib
import importlib.machinery
import importlib.util
import linecache
import os
import re
import shutil
import sys
import tempfile
import traceback
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from trainers.leftovers import is_of_gone_process, tag

_MODULES = "compression_sweeps_plugin"  # first part of a plugin file's module name
_CHILDREN = "compression-sweeps-plugins-"


def digest(text: str) -> str:
    """Hex SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def execute(file: str, text: str) -> ModuleType:
    """Run a plugin file's text, once, as a module whose name says the file and its hash.

    The module's name is the same in every process, so that its classes can be pickled; `inspect`
    and tracebacks show its source.

    Raises:
        ValueError: it does not load; names file, line and cause.
    """
    sha256 = digest(text)
    stem = re.sub(r"\W", "_", file.removesuffix(".py"))
    name = f"{_MODULES}_{stem}_{sha256[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    filename = f"<plugin {file} {sha256[:12]}>"
    lines = text.splitlines(keepends=True)
    # without a time of modification, linecache never looks for the file on disk
    linecache.cache[filename] = (len(text), None, lines, filename)
    module = ModuleType(name)
    module.__file__ = filename
    sys.modules[name] = module  # pydantic and pickle look up a class's module by name
    try:
        exec(compile(text, filename, "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(_failure(file, filename, error)) from error
    except BaseException:  # after an interrupt no half of a module stays
        del sys.modules[name]
        raise
    _show_to_children(name, text)
    return module


@lru_cache(maxsize=1)
def _children_folder() -> Path:
    """A private folder on `sys.path`, removed when this process ends; those of processes that were
    killed are removed here.
    """
    temporary = Path(tempfile.gettempdir())
    for path in temporary.glob(f"{_CHILDREN}*"):
        if is_of_gone_process(path.name):
            shutil.rmtree(path, ignore_errors=True)
    folder = temporary / f"{_CHILDREN}{tag()}"
    folder.mkdir(mode=0o700)
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not in a forked child
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    sys.path.append(str(folder))
    return folder


def _show_to_children(name: str, text: str) -> None:
    """Let processes that this one starts import the module: a loader process gets a data set's
    reader as a pickle, and takes over `sys.path` from its parent.
    """
    (_children_folder() / f"{name}.py").write_text(text, encoding="utf-8")


def import_module(plugin: str, module: str) -> ModuleType:
    """Import a plugin's module.

    Raises:
        ValueError: there is none, or its import fails; names plugin, line and cause.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:
        if _is_absent(error, module):
            raise ValueError(
                f"plugin {plugin}: there is no module {module} here; install the package"
                " that has it, or give the path of a .py file"
            ) from error
        raise ValueError(_failure(plugin, module, error)) from error


def hash_of_module(plugin: str, module: str) -> str:
    """Hash of a module's source and of all code in the package that holds it: what a stage
    imports from beside itself decides its result too. The module itself is not executed, its
    parents are.

    Raises:
        ValueError: there is no such module, or it has no file.
    """
    parent = module.rpartition(".")[0]
    if parent:
        import_module(plugin, parent)
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise ValueError(
            f"plugin {plugin}: there is no module {module} here; install the package"
            " that has it, or give the path of a .py file"
        )
    origin = Path(spec.origin)
    return _hash_of_code(origin.parent if parent or _is_package(origin) else origin)


def package_of(module: str) -> str:
    """The innermost package that holds a module (itself, if it is one); a module without a
    package stands for itself.
    """
    loaded = sys.modules.get(module)
    if loaded is not None and hasattr(loaded, "__path__"):
        return module
    return module.rpartition(".")[0] or module


def _is_package(origin: Path) -> bool:
    return origin.name == "__init__.py"


@lru_cache(maxsize=64)
def _hash_of_code(place: Path) -> str:
    """Hash of a source file, or of all source and compiled files under a folder."""
    if place.is_file():
        return hashlib.sha256(_content(place)).hexdigest()
    machinery = importlib.machinery
    suffixes = (*machinery.SOURCE_SUFFIXES, *machinery.EXTENSION_SUFFIXES)
    whole = hashlib.sha256()
    for path in sorted(p for p in place.rglob("*") if p.name.endswith(suffixes)):
        whole.update(path.relative_to(place).as_posix().encode() + b"\0")
        whole.update(hashlib.sha256(_content(path)).digest())
    return whole.hexdigest()


def _content(path: Path) -> bytes:
    """A file's bytes; source with the same line ends on every system."""
    content = path.read_bytes()
    is_source = path.suffix in importlib.machinery.SOURCE_SUFFIXES
    return content.replace(b"\r\n", b"\n") if is_source else content


def _is_absent(error: Exception, module: str) -> bool:
    """Whether an import failed because the module or a parent of it does not exist."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    return name is not None and f"{module}.".startswith(f"{name}.")


def _failure(plugin: str, source: str, error: Exception) -> str:
    """One line: plugin, line and cause of a failed import.

    Args:
        plugin: the plugin's name.
        source: file name of its code, or its dotted module.
        error: what its import raised.
    """
    is_file = source.startswith("<plugin")
    line: int | None = None
    where = plugin
    for frame, number in traceback.walk_tb(error.__traceback__):
        own = frame.f_code.co_filename == source
        if own or frame.f_globals.get("__name__") == source:
            line = number
            where = plugin if is_file else frame.f_code.co_filename
    cause = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename is not None:
        line, cause = error.lineno, error.msg
        where = plugin if is_file else error.filename
    remedy = "mend it"
    if is_file and isinstance(error, ModuleNotFoundError):
        remedy = (
            "install it, or put its code into the file (a plugin file stands alone)"
        )
    place = where if line is None else f"{where}, line {line}"
    intro = "plugin" if where == plugin else f"plugin {plugin}:"
    return f"{intro} {place}: it does not load: {cause}; {remedy}"
