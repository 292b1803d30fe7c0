"""Checkpoint files as they are met: which tensors one holds, read without executing any of it.

A torch file is a pickle. torch's restricted reader builds tensors and plain containers from it;
every other class that the file names is replaced by a stand-in, which is neither imported nor
called, so that the options, paths and numbers that training programs save beside the weights do
no harm.
"""

import pickle
import pickletools
import struct
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trainers.files import parse_json, read_json
from trainers.models.file_kinds import TORCH_STREAM, TORCH_ZIP, kind_of_file, what_it_is

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")
"""Ends of the names of files with weights, looked for in a folder."""
_USUAL_NAMES = (
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_DEEPEST = 8
"""Levels of containers that are searched for tensors."""

_HARMLESS = frozenset(
    (
        "argparse.Namespace",
        "builtins.bool builtins.bytes builtins.dict builtins.float builtins.frozenset",
        "builtins.int builtins.list builtins.object builtins.range builtins.set",
        "builtins.slice builtins.str builtins.tuple builtins.bytearray builtins.complex",
        "_codecs.encode collections.Counter collections.OrderedDict",
        "collections.defaultdict collections.deque copyreg._reconstructor",
        "datetime.date datetime.datetime datetime.time datetime.timedelta",
        "datetime.timezone decimal.Decimal fractions.Fraction functools.partial",
        "pathlib.Path pathlib.PosixPath pathlib.PurePath pathlib.PurePosixPath",
        "pathlib.PureWindowsPath pathlib.WindowsPath pathlib._local.PosixPath",
        "pathlib._local.WindowsPath types.SimpleNamespace uuid.UUID",
    )
)
"""What of Python's own library checkpoints hold for good reasons. A file that names anything
else of it, such as `os.system`, is refused, although nothing would be called.
"""
_DICTIONARIES = frozenset(
    (
        "collections.defaultdict",
        "addict.addict.Dict",
        "detectron2.config.config.CfgNode",
        "easydict.EasyDict",
        "fvcore.common.config.CfgNode",
        "lightning.fabric.utilities.data.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
        "mmcv.utils.config.ConfigDict",
        "mmengine.config.config.ConfigDict",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "yacs.config.CfgNode",
    )
)
"""Subclasses of dict whose pickles set items; they are read as plain dictionaries."""

_DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)
"""What reading the pickle of a damaged file can raise."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file or folder holds.

    Attributes:
        path: the file with the weights, or the folder of several.
        tensors: by their dotted place in the file (`state_dict.blocks.0.norm1.weight`), mapped
            to memory: only what is used is read from the disk.
        keys: the keys of its outermost level.
        modules: places where the file holds a whole pickled module instead of its weights.
        model: name of the architecture, where the file or the folder's config.json says it.
        model_args: arguments of that architecture, from config.json.
    """

    path: Path
    tensors: dict[str, Tensor]
    keys: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    model: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file of safetensors or of `torch.save`, or a folder with one of them.

    Raises:
        ValueError: it is something else, which the message names, or it is damaged, or it
            cannot be read without executing its code.
    """
    found = _of_folder(path) if path.is_dir() else _of_file(path)
    if found.tensors:
        return found
    if found.modules:
        raise ValueError(
            f"{path}: holds a whole pickled module"
            f" ({', '.join(sorted(set(found.modules))[:3])}), which cannot be read without"
            " executing its code; where its program runs, load it and save the weights"
            " alone: torch.save(model.state_dict(), FILE), or as safetensors"
        )
    keys = f" (its keys: {', '.join(found.keys)[:120]})" if found.keys else ""
    raise ValueError(
        f"{path}: holds no tensors by name{keys}; save model.state_dict() alone"
    )


# ------------------------------------------------------------------ one file


def _of_file(path: Path) -> Checkpoint:
    kind = kind_of_file(path)
    if kind == "safetensors":
        tensors = _read_safetensors(path)
        return Checkpoint(path, tensors, tuple(tensors))
    if kind not in (TORCH_ZIP, TORCH_STREAM):
        raise ValueError(f"{path}: {what_it_is(path, kind)}")
    content = _read_torch(path, zipped=kind == TORCH_ZIP)
    tensors, modules = {}, []
    for place, value in _walk(content):
        if not isinstance(value, Tensor):
            modules.append(type(value).name)
        elif place:  # a tensor alone has no name
            tensors[place] = value.detach()
    keys = tuple(map(str, content)) if isinstance(content, dict) else ()
    return Checkpoint(path, tensors, keys, tuple(modules), _named_model(content))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path}: a safetensors file that is cut off or damaged ({error}); fetch or"
            " copy it again"
        ) from error


def _read_torch(path: Path, *, zipped: bool) -> Any:
    """The content of a file of `torch.save`, with stand-ins for all but tensors and containers."""
    try:
        names = _globals(path, zipped=zipped)
    except _DAMAGED as error:
        raise _unreadable(path) from error
    _refuse_programs(path, names)
    stand_ins: list[Any] = [(_stand_in(name), name) for name in names]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on the pickle's protocol
            return _load_torch(path, zipped=zipped)
    except _DAMAGED as error:
        known = ("torch.", "collections.", "builtins.", "_codecs.")
        others = sorted(name for name in names if not name.startswith(known))
        raise _unreadable(path, others) from error


def _load_torch(path: Path, *, zipped: bool) -> Any:
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    if zipped and path.suffix != ".safetensors":
        return torch.load(path, mmap=True, **options)
    with open(
        path, "rb"
    ) as file:  # by its name torch takes a file for one of safetensors
        return torch.load(file, **options)


def _unreadable(path: Path, others: Sequence[str] = ()) -> ValueError:
    held = f", among them {', '.join(others[:5])}" if others else ""
    return ValueError(
        f"{path}: a file of torch.save that is cut off or damaged, or that holds objects"
        f" which are not read without executing their code{held}; fetch it again, or save"
        " model.state_dict() alone with the program that wrote it, or as safetensors"
    )


def _refuse_programs(path: Path, names: set[str]) -> None:
    harmless = {name for line in _HARMLESS for name in line.split()}
    programs = sorted(
        name
        for name in names - harmless
        if name.split(".")[0] in sys.stdlib_module_names
    )
    if programs:
        raise ValueError(
            f"{path}: refused, because unpickling it would call {', '.join(programs[:4])},"
            " which no weights need; nothing was executed. Where you trust it, load it"
            " with the program that wrote it and save model.state_dict() alone, or as"
            " safetensors"
        )


def _globals(path: Path, *, zipped: bool) -> set[str]:
    """Full names of the classes and functions that a torch file's pickle names."""
    if not zipped:
        with open(path, "rb") as file:
            # magic number, protocol, system, content; the tensors' bytes come after
            return {name for _ in range(4) for name in _globals_in(file)}
    with zipfile.ZipFile(path) as archive:
        record = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
        with archive.open(record) as file:
            return set(_globals_in(file))


def _globals_in(file: IO[bytes]) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            module, name = str(argument).split(" ", 1)
            module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(
                module, module
            )
            yield f"{module}.{name}"


class _StandIn:
    """In the place of an object whose class is not imported; it keeps the object's state."""

    name = ""

    def __new__(cls, *args: Any, **options: Any) -> "_StandIn":
        made = super().__new__(cls)
        made.state = {}
        return made

    def __init__(self, *args: Any, **options: Any) -> None:
        self.state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


class _Dictionary:
    """In the place of a subclass of dict: a plain one."""

    def __new__(cls, *args: Any) -> Any:
        return OrderedDict()


def _stand_in(name: str) -> Any:
    base = _Dictionary if name in _DICTIONARIES else _StandIn
    return type(base.__name__, (base,), {"name": name})


def _walk(content: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every tensor with its dotted place, and every whole module."""
    if isinstance(content, Tensor) or (
        isinstance(content, _StandIn) and "_modules" in content.state
    ):
        yield place, content
    elif depth < _DEEPEST and isinstance(content, dict | list | tuple):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in items:
            yield from _walk(value, f"{place}.{key}" if place else str(key), depth + 1)


def _named_model(content: Any) -> str | None:
    """The architecture that a training program noted beside the weights, as timm's does."""
    if not isinstance(content, dict):
        return None
    options = content.get("args")
    options = options.state if isinstance(options, _StandIn) else options
    places = (content, options, content.get("hyper_parameters"))
    found = [
        place[key]
        for place in places
        if isinstance(place, dict)
        for key in ("arch", "architecture", "model_name", "model")
        if isinstance(place.get(key), str)
    ]
    return found[0] if found else None


# ------------------------------------------------------------------ a folder


def _of_folder(folder: Path) -> Checkpoint:
    index = next(iter(sorted(folder.glob("*.index.json"))), None)
    if index is not None:
        tensors = _read_shards(index)
    else:
        file = _weights_in(folder)
        found = _of_file(file)
        tensors = found.tensors
    config = read_json(folder / "config.json") or {}
    model, args = _hub_model(config)
    if index is None:
        return Checkpoint(
            file, tensors, found.keys, found.modules, model or found.model, args
        )
    return Checkpoint(folder, tensors, tuple(tensors), (), model, args)


def _hub_model(config: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """(architecture, its arguments) from a config.json of timm or of transformers."""
    model = config.get("architecture")
    args = config.get("model_args") or {}
    if not isinstance(model, str):
        named = config.get("architectures")
        model = str(named[0]) if isinstance(named, list) and named else None
    return model, dict(args) if isinstance(args, dict) else {}


def _weights_in(folder: Path) -> Path:
    usual = [folder / name for name in _USUAL_NAMES if (folder / name).is_file()]
    if usual:
        return usual[0]
    files = sorted(p for p in folder.iterdir() if p.is_file())
    found = [p for p in files if p.suffix.lower() in SUFFIXES]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(p.name for p in found[:6])
        raise ValueError(
            f"{folder}: holds {len(found)} files that may be weights ({names}); name the"
            " file"
        )
    inside = ", ".join(sorted(p.name for p in folder.iterdir())[:4]) or "nothing"
    raise ValueError(
        f"{folder}: a folder without weights (it holds {inside}); give a file, or a folder"
        " that holds model.safetensors"
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of the files that a Hugging Face index names."""
    try:
        places = parse_json(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(places.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: not an index of weights ({error})") from error
    tensors: dict[str, Tensor] = {}
    for name in names:
        if not (index.parent / name).is_file():
            raise ValueError(
                f"{index}: names {name}, which is not there; fetch all {len(names)} files"
            )
        tensors |= _of_file(index.parent / name).tensors
    lacking = sorted(set(places) - set(tensors))
    if lacking:
        raise ValueError(
            f"{index}: its files lack {len(lacking)} tensors: {', '.join(lacking[:4])}"
        )
    return tensors
