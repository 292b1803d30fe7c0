"""Architectures before and after they are in integers."""

import json
from collections import Counter
from functools import lru_cache

from torch import nn

from compress.int8.nncf_internals import check_followed
from trainers.models.arch import Arch, on_meta, shared_on_meta
from trainers.models.parameters import linear_and_conv_parameters
from trainers.models.quantised import QuantiserPlan, keep_products_apart


def check_architecture(arch: Arch, image_size: int) -> None:
    """Raise ValueError where NNCF cannot follow a model, before it has been trained."""
    _check(json.dumps(arch.to_json()), image_size)


@lru_cache(maxsize=256)
def _check(arch_json: str, image_size: int) -> None:
    arch = Arch.from_json(json.loads(arch_json))
    module = on_meta(arch).eval()
    keep_products_apart(module)
    check_followed(module, (arch.args.get("in_chans", 3), image_size, image_size))


def quantisable_layers(arch: Arch) -> list[str]:
    """Paths of the layers whose weights may become integers."""
    return _layers_of(shared_on_meta(arch))


def layers_of_one_name(module: nn.Module) -> list[str]:
    """Those of its layers that the model holds once: integers in one that has two names would
    have to be loaded under both.
    """
    every = module.named_modules(remove_duplicate=False)
    names = Counter(id(each) for _, each in every)
    return [x for x in _layers_of(module) if names[id(module.get_submodule(x))] == 1]


def _layers_of(module: nn.Module) -> list[str]:
    parameters = linear_and_conv_parameters(module)
    return [
        path
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and f"{path}.weight" in parameters
    ]


def int8_arch(inner: Arch, plan: QuantiserPlan) -> Arch:
    """The architecture of a model in integers."""
    return Arch(
        "int8",
        inner.name,
        dict(inner.args),
        {"inner": inner.to_json(), **plan.to_json()},
    )
