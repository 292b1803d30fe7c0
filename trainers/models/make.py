"""The `Arch` of a model by its name: timm's models, CIFAR ResNets, ReViT."""

import difflib
import inspect
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from trainers.files import read_json
from trainers.models.arch import Arch, buildable, on_meta
from trainers.models.hub import check_hub
from trainers.models.resnet_cifar import RESNET_CIFAR
from trainers.option_types import LOCAL_FOLDER
from trainers.timm_library import timm

_FROM_DATA = ("num_classes", "img_size", "pretrained")
"""Arguments of a saved model that the data decides, or that build nothing."""
_MOST_COMPARED = 100
"""Characters of an unknown name by which similar ones are sought, in time of their square."""


def make_arch(
    name: str, *, num_classes: int, image_size: int, args: dict[str, Any] | None = None
) -> Arch:
    """The `Arch` of a timm model, a CIFAR ResNet or a ReViT ("revit":
    `trainers.models.revit.revit_arch`) for this data. timm's names of models elsewhere
    (`hf-hub:OWNER/NAME`, `local-dir:FOLDER`) are those that their config.json tells.

    `img_size` is filled in for models that take it (ViTs), unless `args` gives it.

    Raises:
        ValueError: no such model, or arguments that it does not take.
    """
    given = dict(args or {})
    if "num_classes" in given:
        raise ValueError(
            f"model {name!r}: num_classes comes from the data; remove it from args"
        )
    args = {"num_classes": num_classes, **given}
    if name in RESNET_CIFAR:
        return buildable(Arch("resnet_cifar", name, args))
    if name == "revit":
        return _revit({"img_size": image_size, **args})
    if is_hub_name(name):
        return saved_arch(*_of_hub(name), given, num_classes, image_size)
    base = name.split(".")[0]
    if not timm.is_model(base):
        wanted = base[:_MOST_COMPARED]
        near = sorted(
            timm.list_models(),
            key=lambda n: (
                -difflib.SequenceMatcher(None, wanted, n[: len(wanted)]).ratio()
            ),
        )
        raise ValueError(
            f"unknown model {name!r}; valid: {', '.join(RESNET_CIFAR)}, revit or any"
            f" name of timm.list_models(); similar: {', '.join(near[:5])}"
        )
    if "img_size" not in given and _takes(_class_of(name), "img_size"):
        args["img_size"] = image_size
    return buildable(Arch("timm", name, args))


def is_hub_name(name: str) -> bool:
    """Whether timm reads the model's name from a config.json at the Hub or in a folder."""
    return name.startswith(("hf-hub:", "hf_hub:", LOCAL_FOLDER))


def saved_arch(
    name: str,
    saved_args: Mapping[str, Any],
    args: Mapping[str, Any],
    num_classes: int,
    image_size: int,
) -> Arch:
    """The `Arch` that a config.json of timm describes, for this data.

    Args:
        saved_args: its `model_args`.
        args: of the user, who overrides them.

    Raises:
        ValueError: as `make_arch`.
    """
    theirs = {k: v for k, v in saved_args.items() if k not in _FROM_DATA}
    return make_arch(
        name, num_classes=num_classes, image_size=image_size, args=theirs | dict(args)
    )


@lru_cache(maxsize=16)
def _of_hub(name: str) -> tuple[str, Mapping[str, Any]]:
    """(architecture, its arguments) from the config.json that a name means."""
    if name.startswith(LOCAL_FOLDER):
        folder = Path(name.removeprefix(LOCAL_FOLDER))
        config = read_json(folder / "config.json") or {}
        if not isinstance(config.get("architecture"), str):
            raise ValueError(
                f"{name}: {folder / 'config.json'} is not there or names no architecture of"
                " timm"
            )
        return config["architecture"], config.get("model_args") or {}
    repository = name.partition(":")[2]
    try:
        check_hub(repository, ("config.json",))
        _, model, args = timm.models.load_model_config_from_hf(repository)
    except (OSError, KeyError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{name}: its config.json cannot be had, or is not timm's ({reason}); check the"
            " name and that this machine reaches the internet"
        ) from error
    return model, args


@lru_cache(maxsize=64)
def _class_of(name: str) -> type:
    """The class of a timm model."""
    return type(on_meta(Arch("timm", name)))


def _takes(kind: type, argument: str) -> bool:
    """Whether the class's initialiser, or one that it hands its `**kwargs` on to, names
    `argument`.
    """
    for each in inspect.getmro(kind):
        if "__init__" not in vars(each):
            continue
        parameters = inspect.signature(vars(each)["__init__"]).parameters
        if argument in parameters:
            return True
        if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            return False
    return False


def own_image_size(name: str) -> int:
    """Pixels of the images that a timm model was made for; 224 where timm does not know."""
    if not timm.is_model(name.split(".")[0]):
        return 224
    try:
        size = timm.get_pretrained_cfg_value(name, "input_size")
    except RuntimeError:  # a name of old, or another tag: no published weights
        return 224
    return size[-1] if size else 224


def _revit(args: dict[str, Any]) -> Arch:
    from trainers.models.revit import revit_arch  # it needs timm

    if "embed" not in args:
        raise ValueError(
            "model 'revit' needs its width: args: {embed: 176} is ReViT-T, 384 ReViT-S"
        )
    return buildable(revit_arch(**args))
