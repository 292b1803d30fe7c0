"""Where NNCF puts quantisers in a torch model. Its names of places (`pre_hooks.PATH/FUNCTION/CALL
__PORT`) are no documented interface; all that reads them is here.

Only the choice of places and SmoothQuant are NNCF's: its own simulating modules compile a C++
extension at their first pass, which needs a compiler wherever a model is rebuilt.
"""

import contextlib
import copy
import io
import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trainers.models.parameters import classifier_layers
from trainers.models.quantised import IMAGES, OUTPUT, Call, Calls, Place

_HOOK = re.compile(
    r"(?P<kind>pre|post)_hooks\.(?P<path>.*)/(?P<function>[^/]+)/(?P<call>\d+)__(?P<port>\d+)\.\d+"
)
_INPUT = re.compile(r"post_hooks\.[^/]+__0\.\d+")
_AFTER_SCALE = re.compile(
    r"(?:(?P<path>.*)\.)?pre_hook__.*-(?P<function>\w+)-(?P<call>\d+)__(?P<port>\d+)\[\d+\]"
)
"""Module in which a multiplication by SmoothQuant's factor is called, before that call; without a
path where the model itself makes the call.
"""


@dataclass(frozen=True)
class Choice:
    """What NNCF chose.

    Attributes:
        groups: places of activations that share a quantiser.
        weights: paths of layers whose weight is quantised.
        scaled: a place and the factors (C,) that multiply activations there; the weights of
            the model that was given have been divided by them.
        state: the float state dict after SmoothQuant.
    """

    groups: list[list[Place]]
    weights: list[str]
    scaled: list[tuple[Place, Tensor]]
    state: dict[str, Tensor]


def check_installed() -> None:
    """Raise ValueError, with what to install, where NNCF is missing."""
    if find_spec("nncf") is None:
        raise ValueError("int8 needs nncf; pip install 'compression-sweeps[deploy]'")


def check_followed(module: nn.Module, image_shape: tuple[int, ...]) -> None:
    """Let NNCF follow a pass of a model, without values.

    Args:
        module: on the meta device, in eval mode.
        image_shape: (C, H, W).

    Raises:
        ValueError: it cannot.
    """
    with _nncf():
        from nncf.torch.function_hook import wrap_model
        from nncf.torch.function_hook.nncf_graph.nncf_graph_builder import (
            build_nncf_graph,
        )

        images = torch.empty(2, *image_shape, device="meta")
        with _silent():
            build_nncf_graph(wrap_model(module), images)


@contextlib.contextmanager
def _nncf() -> Iterator[None]:
    """What NNCF raises becomes a ValueError that says what to do."""
    # read at import: no report of its use is sent
    os.environ.setdefault("NNCF_CI", "1")
    # it imports what builds extensions, which warns where a compiler for GPUs is and no GPU
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        yield
    except (ValueError, RuntimeError, LookupError) as error:
        raise ValueError(
            "NNCF, which chooses where integers begin and end, cannot follow this model"
            f" ({type(error).__name__}: {error}); leave int8 out, or store its weights by"
            " uniform_quant"
        ) from error


def choose(
    module: nn.Module, images: Iterable[Tensor], smooth_quant: float | None
) -> Choice:
    """Ask NNCF where quantisers belong.

    Args:
        module: in eval mode; not changed.
        images: batches that SmoothQuant looks at.
        smooth_quant: its alpha; None: without it.

    Raises:
        ValueError: NNCF cannot follow the model (see `check_followed`).
    """
    batches = list(images)
    names = _Names.of(module, batches[0][:2])
    with _nncf():
        quantised, config = _quantised(module, batches, smooth_quant)
    return without_smoothed_classifier(module, _read(module, quantised, config, names))


def _quantised(
    module: nn.Module, batches: list[Tensor], smooth_quant: float | None
) -> tuple[Any, list[dict[str, Any]]]:
    """NNCF's model, and what it says of its hooks."""
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
    )

    alpha = -1.0 if smooth_quant is None else smooth_quant
    parameters = AdvancedQuantizationParameters(
        disable_bias_correction=True,
        smooth_quant_alphas=AdvancedSmoothQuantParameters(
            convolution=-1.0, matmul=alpha
        ),
    )
    with _silent():
        quantised = nncf.quantize(
            module,
            nncf.Dataset(batches),
            subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER if _attends(module) else None,
            advanced_parameters=parameters,
        )
        return quantised, nncf.torch.get_config(quantised)["compression_state"]


class _Names(TorchFunctionMode):
    """NNCF's names of calls → ours. NNCF leaves out of a path what is called by a module that is
    not its parent: of blocks in a list that the model walks through, all have the same name.

    Attributes:
        places: (module, function, call) by NNCF's name → by ours.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.calls = Calls(module)
        self.calls.start()
        self.places: dict[Call, Call] = {}
        self._counts: Counter[tuple[str, str]] = Counter()

    @classmethod
    def of(cls, module: nn.Module, images: Tensor) -> dict[Call, Call]:
        """The names of one pass; the module, in eval mode, is not changed."""
        module = copy.deepcopy(module)
        with torch.no_grad(), cls(module) as names:
            module(images)
        return names.places

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        function = getattr(func, "__name__", "")
        stack = self.calls.stack
        theirs = ".".join(
            path.rpartition(".")[2]
            for above, path in itertools.pairwise(stack)
            if path.rpartition(".")[0] == above
        )
        named = function
        if func is nn.functional.relu and (kwargs or {}).get("inplace"):
            named = "relu_"  # NNCF sees what is called inside
        call = self._counts[theirs, named]
        self._counts[theirs, named] += 1
        self.places[theirs, named, call] = self.calls.next(function)
        return func(*args, **(kwargs or {}))


def without_smoothed_classifier(module: nn.Module, choice: Choice) -> Choice:
    """The choice without SmoothQuant before the classifier: there the factors often meet a mean
    over positions, and OpenVINO 2026.4 computes a mean, factors and a quantiser in one kernel
    that takes the wrong factors.
    """
    heads = classifier_layers(module)
    state = dict(choice.state)
    for place, scale in choice.scaled:
        if place.module in heads:
            name = f"{place.module}.weight"
            state[name] = state[name] * scale
    kept = [
        (place, scale) for place, scale in choice.scaled if place.module not in heads
    ]
    return replace(choice, scaled=kept, state=state)


def _attends(module: nn.Module) -> bool:
    """Whether it has transformer blocks, for which NNCF has rules of its own."""
    return any(isinstance(layer, nn.LayerNorm) for layer in module.modules())


def _read(
    module: nn.Module,
    quantised: Any,
    config: list[dict[str, Any]],
    calls: Mapping[Call, Call],
) -> Choice:
    groups: list[list[Place]] = []
    weights: list[str] = []
    scaled: list[tuple[Place, Tensor]] = []
    storage = quantised.get_submodule("__nncf_hooks")
    for entry in config:
        names = entry["hook_names_in_model"]
        known = dict(module.named_modules())
        found = [_ours(_place(name), calls, known) for name in names]
        places = [place for place in found if place is not None]
        if entry["module_cls_name"] == "SQMultiply":
            if len(places) < len(names):  # the weights have its other half already
                raise ValueError(
                    f"SmoothQuant's factors of {names[0]} cannot be followed; set"
                    " smooth_quant: null"
                )
            factor = storage.get_submodule(names[0]).scale.detach().reshape(-1)
            scaled += [(place, factor.cpu().clone()) for place in places]
        elif all(_is_weight(module, place) for place in places):
            weights += [place.module for place in places]
        elif places:
            groups.append(places)
    state = {
        name: value.detach().cpu().clone()
        for name, value in quantised.state_dict().items()
        if not name.startswith("__nncf_hooks")
    }
    return Choice(groups, list(dict.fromkeys(weights)), scaled, state)


def _ours(
    place: Place, calls: Mapping[Call, Call], modules: Collection[str]
) -> Place | None:
    """A place by our name of the call; None in a module that NNCF calls by another name, since
    several modules hold it: what it does stays in float.

    Raises:
        ValueError: NNCF names a call that was not seen; a quantiser there would never act.
    """
    if place[:3] == IMAGES:
        return place
    if place[:3] not in calls:
        if place.module not in modules:
            return None
        raise ValueError(
            f"NNCF, which chooses where integers begin and end, names call {place.call} of"
            f" {place.function} in {place.module or 'the model'}, which the model does not"
            " make; leave int8 out, or store its weights by uniform_quant"
        )
    return Place(*calls[place[:3]], place.port)


def _place(name: str) -> Place:
    """The place that a hook's name means, by NNCF's name of the call."""
    found = _HOOK.fullmatch(name)
    if found is None:
        assert _INPUT.fullmatch(name), name
        return Place(*IMAGES, OUTPUT)
    path = found["path"].strip("/").replace("/", ".")
    scaled = _AFTER_SCALE.fullmatch(path)
    if scaled is not None:
        return Place(
            scaled["path"] or "",
            scaled["function"],
            int(scaled["call"]),
            int(scaled["port"]),
        )
    port = OUTPUT if found["kind"] == "post" else int(found["port"])
    return Place(path, found["function"], int(found["call"]), port)


def _is_weight(module: nn.Module, place: Place) -> bool:
    """Whether the weight of a layer passes here. What the step's shape is does not tell: the
    activations before a depthwise convolution have a step for each channel, too, of which we
    make one.
    """
    layer = dict(module.named_modules()).get(place.module)
    return place.port == 1 and isinstance(layer, nn.Linear | nn.Conv2d)


@contextlib.contextmanager
def _silent() -> Any:
    """NNCF draws bars on standard output and logs much."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            yield
    finally:
        logging.disable(level)
