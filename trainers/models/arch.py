"""Descriptions from which a model can be rebuilt anywhere, and weights, stored without pickle."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trainers.files import parse_json, read_json, write_atomic
from trainers.models.resnet_cifar import resnet_cifar
from trainers.timm_library import timm


@dataclass(frozen=True)
class Arch:
    """A JSON-able model description.

    Attributes:
        builder: a key of `BUILDERS`.
        name: the model's name for that builder.
        args: keyword arguments, among them `num_classes`.
        dims: per-layer dimensions for builders whose layers differ; empty otherwise.
    """

    builder: str
    name: str
    args: dict[str, Any] = field(default_factory=dict)
    dims: dict[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """A freshly initialised module (torch's global generator decides the values)."""
        return BUILDERS[self.builder](self)

    def to_json(self) -> dict[str, Any]:
        return {
            "builder": self.builder,
            "name": self.name,
            "args": self.args,
            "dims": self.dims,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Arch":
        """What `to_json` gave, perhaps in somebody else's file: building it reads no other file
        and asks no network.

        Raises:
            ValueError: it names an unknown builder, a file or a place on a network, or has an
                argument too large to build.
            KeyError, TypeError: a part is missing or is not known.
        """
        if value["builder"] not in BUILDERS:
            raise ValueError(
                f"unknown model builder {value['builder']!r}; valid:"
                f" {', '.join(BUILDERS)}"
            )
        arch = cls(**value)
        if not _PLAIN_NAME.fullmatch(str(arch.name)):
            raise ValueError(
                f"model name {arch.name!r}: only letters, digits, '_', '.' and '-' are"
                " allowed"
            )
        _check_arguments({**arch.args, "": arch.dims})
        return arch


_PLAIN_NAME = re.compile(r"[\w.\-]+")
MAX_ARGUMENT = 1 << 20
"""Largest integer among the arguments of an architecture: some constructors allocate by
them, meta device or not.
"""
_FILE_ARGUMENTS = {
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
}


def _check_arguments(value: Any) -> None:
    """Refuse arguments of an architecture that reach a file or are too large to build."""
    if isinstance(value, dict):
        files = _FILE_ARGUMENTS & value.keys()
        if files:
            raise ValueError(
                f"model argument {sorted(files)[0]!r} is not allowed in a model's file: it names"
                " a file or a place on a network"
            )
        for item in value.values():
            _check_arguments(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_arguments(item)
    elif isinstance(value, str) and not _PLAIN_NAME.fullmatch(value):
        raise ValueError(
            f"model argument {value!r}: a text may have letters, digits, '_', '.' and '-'; a path"
            " or an address is none"
        )
    elif isinstance(value, int) and abs(value) > MAX_ARGUMENT:
        raise ValueError(f"model argument {value} is too large; at most {MAX_ARGUMENT}")


# ------------------------------------------------------------------ builders
# Each imports its model's file when it is called: most of them need timm, which takes seconds.


def _timm(arch: Arch) -> nn.Module:
    args = dict(arch.args)
    if "norm_eps" in args:  # timm takes it only as a class
        args["norm_layer"] = partial(timm.layers.LayerNorm, eps=args.pop("norm_eps"))
    return timm.create_model(arch.name, pretrained=False, **args)


def _resnet_cifar(arch: Arch) -> nn.Module:
    return resnet_cifar(arch.name, **arch.args)


def _pruned_vit(arch: Arch) -> nn.Module:
    from trainers.models.pruned_vit import PrunedVit

    return PrunedVit(dims=arch.dims, **arch.args)


def _sws_vit(arch: Arch) -> nn.Module:
    from trainers.models.shared_vit import SwsVit

    return SwsVit(**arch.args)


def _tleg_vit(arch: Arch) -> nn.Module:
    from trainers.models.shared_vit import TlegVit

    return TlegVit(**arch.args)


def _lets_vit(arch: Arch) -> nn.Module:
    from trainers.models.lets_vit import LetsVit

    return LetsVit(**arch.args)


def _wave_vit(arch: Arch) -> nn.Module:
    from trainers.models.template_vit import WaveVit

    return WaveVit(**arch.args)


def _sweet_vit(arch: Arch) -> nn.Module:
    from trainers.models.template_vit import SweetVit

    return SweetVit(**arch.args)


def _int8(arch: Arch) -> nn.Module:
    from trainers.models.quantised import QuantisedModel, QuantiserPlan

    inner = Arch.from_json(arch.dims["inner"])
    return QuantisedModel(inner.build(), QuantiserPlan.from_json(arch.dims))


def _low_rank(arch: Arch) -> nn.Module:
    from trainers.models.factored import factor

    inner = replace(Arch.from_json(arch.dims["inner"]), args=arch.args)
    return factor(inner.build(), arch.dims["ranks"])


def _cut(arch: Arch) -> nn.Module:
    from trainers.models.cut_model import Cut

    inner = Arch.from_json(arch.dims["inner"])
    return Cut.from_json(arch.dims).apply(
        Arch(inner.builder, inner.name, arch.args, inner.dims).build()
    )


BUILDERS: dict[str, Callable[[Arch], nn.Module]] = {
    "timm": _timm,
    "resnet_cifar": _resnet_cifar,
    "pruned_vit": _pruned_vit,
    "sws_vit": _sws_vit,
    "tleg_vit": _tleg_vit,
    "lets_vit": _lets_vit,
    "wave_vit": _wave_vit,
    "sweet_vit": _sweet_vit,
    "int8": _int8,
    "low_rank": _low_rank,
    "cut": _cut,
}
"""`Arch.builder` → the function that builds the module."""
DROP_RATE_BUILDERS = (
    "timm",
    "pruned_vit",
    "sws_vit",
    "tleg_vit",
    "lets_vit",
    "wave_vit",
    "sweet_vit",
    "cut",
)
"""Builders that take `drop_rate` and `drop_path_rate`."""


# ------------------------------------------------------------------ without memory


class _NoValues(TorchFunctionMode):
    """Skips the functions that initialise values. On the meta device there are none to set, and
    these functions take nearly all the time of a build.
    """

    _INITIALISE = frozenset(
        getattr(torch.Tensor, name)
        for name in (
            "clamp_",
            "copy_",
            "erfinv_",
            "fill_",
            "add_",
            "mul_",
            "normal_",
            "sub_",
            "uniform_",
            "zero_",
        )
    ) | {nn.init.constant_, nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if (
            func in self._INITIALISE
            and (tensor := args[0] if args else kwargs["tensor"]).is_meta
        ):
            return tensor
        return func(*args, **kwargs)


@contextmanager
def meta_device() -> Iterator[None]:
    """Modules built in this block have shapes but neither values nor memory."""
    with torch.device("meta"), _NoValues():
        yield


BUILD_ERRORS = (
    TypeError,
    ValueError,
    RuntimeError,
    AssertionError,
    LookupError,
    AttributeError,
    ArithmeticError,
    MemoryError,
)
"""What constructors of models raise for arguments that they do not take: they check few."""


def on_meta(arch: Arch) -> nn.Module:
    """The module of `arch` on the meta device: shapes, neither values nor memory. Takes
    milliseconds; no random number is drawn.
    """
    with meta_device():
        return arch.build()


def shared_on_meta(arch: Arch) -> nn.Module:
    """`on_meta`, but the same module for all who ask: they read it, and change nothing."""
    return _kept_on_meta(json.dumps(arch.to_json(), sort_keys=True))


@lru_cache(maxsize=64)
def _kept_on_meta(arch_json: str) -> nn.Module:
    return on_meta(Arch.from_json(json.loads(arch_json)))


def buildable(arch: Arch) -> Arch:
    """`arch`, once it has been built without memory.

    Raises:
        ValueError: arguments or dimensions that the model does not take.
    """
    _built_once(json.dumps(arch.to_json(), sort_keys=True))
    return arch


@lru_cache(maxsize=256)
def _built_once(arch_json: str) -> None:
    arch = Arch.from_json(json.loads(arch_json))
    try:
        module = shared_on_meta(arch)
        grid = getattr(getattr(module, "patch_embed", None), "grid_size", None)
        if grid is not None and 0 in tuple(grid):
            raise ValueError(
                "the patch is larger than the image; lower patch_size or raise"
                " data.image_size"
            )
    except BUILD_ERRORS as error:
        shown = {k: v for k, v in arch.args.items() if k != "num_classes"}
        reason = str(error) or f"{type(error).__name__} while building"
        raise ValueError(
            f"model {arch.name!r} does not take {shown}: {reason}"
        ) from error


# ------------------------------------------------------------------ a model between stages


@dataclass(frozen=True)
class ModelState:
    """A model between stages: description, weights on the CPU, and notes of the methods.

    Attributes:
        arch: how to build it.
        weights: parameters and buffers by name, contiguous CPU tensors. Never changed in place.
        meta: JSON-able notes (a codebook, a layer map, the label set).
    """

    arch: Arch
    weights: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_module(
        cls, arch: Arch, module: nn.Module, meta: dict[str, Any] | None = None
    ) -> "ModelState":
        """Copy a module's state dict to the CPU."""
        weights = {
            k: v.detach().cpu().clone().contiguous()
            for k, v in module.state_dict().items()
        }
        return cls(arch, weights, dict(meta or {}))

    @classmethod
    def initialised(cls, arch: Arch, seed: int) -> "ModelState":
        """Random weights by the model's own initialiser, from `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls.from_module(arch, arch.build())

    def build(self) -> nn.Module:
        """The module with these weights (a copy), in eval mode, on the CPU."""
        with torch.random.fork_rng(devices=[]):
            module = self.arch.build()
        module.load_state_dict(self.weights)
        return module.eval()

    def hash(self) -> str:
        """SHA-256 over description, names, shapes, types and bytes."""
        digest = hashlib.sha256(
            json.dumps([self.arch.to_json(), self.meta], sort_keys=True).encode()
        )
        for name in sorted(self.weights):
            tensor = self.weights[name].contiguous()
            digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}".encode())
            if tensor.numel():
                digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write `model.safetensors` and `model.json` into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # safetensors refuses tensors that share memory (tied weights): store independent copies
        save_file(
            {k: v.clone() for k, v in self.weights.items()},
            folder / "model.safetensors",
        )
        text = json.dumps(
            {"arch": self.arch.to_json(), "meta": self.meta, "hash": self.hash()},
            indent=1,
        )
        write_atomic(folder / "model.json", text.encode())

    @classmethod
    def load(cls, folder: str | Path) -> "ModelState":
        """Read what `save` wrote.

        Raises:
            ValueError: a file is missing, damaged, or its content differs from the stored hash.
        """
        folder = Path(folder)
        names = ("model.json", "model.safetensors")
        lacking = [name for name in names if not (folder / name).exists()]
        if lacking:
            why = "there is no such folder"
            if folder.exists():
                why = f"it has no {' and no '.join(lacking)}"
            raise ValueError(f"{folder}: not a saved model: {why}")
        try:
            note = parse_json((folder / "model.json").read_text())
            state = cls(
                Arch.from_json(note["arch"]),
                load_file(folder / "model.safetensors"),
                note["meta"],
            )
            stored = note["hash"]
        except (OSError, LookupError, TypeError, ValueError, SafetensorError) as error:
            raise ValueError(f"{folder}: not a saved model ({error})") from error
        if state.hash() != stored:
            raise ValueError(
                f"{folder}: the model's content differs from its stored hash; delete"
                " the folder"
            )
        return state


def read_arch(folder: Path) -> Arch:
    """The architecture of a folder that `ModelState.save` wrote; its weights are not read.

    Raises:
        ValueError: model.json is missing or damaged, or its model cannot be built.
    """
    note = read_json(folder / "model.json") or {}
    try:
        return buildable(Arch.from_json(note["arch"]))
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: not a saved model ({error})") from error
