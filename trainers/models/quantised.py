"""A model whose activations and weights pass through integers, as a runtime computes it.

The inner model stays what it is: quantisers act on the arguments and results of its calls of torch
functions, found by where in the model a function is called, its name and its position among the
calls of that name there. So any model that can be run can be quantised, and is rebuilt from its
description alone, without the library that chose the places.

Legend
    s, z        step and zero point of a quantiser; z's type (uint8, int8) says the integers' range
    q(x)        s · (clamp(round(x / s) + z, least, largest) − z): QuantizeLinear and
                DequantizeLinear of ONNX
    w           integers of a weight, of the inner parameter's name and shape; s_c · w_c for output
                channel c (the first axis)

While training (`trainable`) weights and steps are real parameters, and rounding passes gradients on
as if it were not there; the gradient of a step is that of LSQ (Esser et al., ICLR 2020, eq. 3).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

OUTPUT = -1
"""Port of a function's result; its arguments count from 0."""
IMAGES = ("", "images", 0)
"""Stands for the call that gives the model its images."""
_LEAST_STEP = 1e-12


class Place(NamedTuple):
    """Where a value passes.

    Attributes:
        module: path of the module in whose forward pass a function is called.
        function: the function's name.
        call: position among the calls of that name in one pass of that module.
        port: position of the argument, or `OUTPUT`.
    """

    module: str
    function: str
    call: int
    port: int


@dataclass(frozen=True)
class QuantiserPlan:
    """What the quantisers of a model are; JSON-able, the `dims` of its architecture.

    Attributes:
        folded: (convolution, batch norm) paths of norms that became part of a convolution.
        points: a place and the index of the quantiser that acts there; several may share one.
        signed: of each quantiser, whether its integers are int8 (else uint8).
        scaled: a place and the number of channels by which values there are multiplied
            (SmoothQuant), along the last axis.
        weights: name of an inner parameter → bits of its integers.
    """

    folded: tuple[tuple[str, str], ...] = ()
    points: tuple[tuple[Place, int], ...] = ()
    signed: tuple[bool, ...] = ()
    scaled: tuple[tuple[Place, int], ...] = ()
    weights: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Lists and plain values; `from_json` reads them."""
        return {
            "folded": [list(pair) for pair in self.folded],
            "points": [_entry(place, index) for place, index in self.points],
            "signed": list(self.signed),
            "scaled": [_entry(place, channels) for place, channels in self.scaled],
            "weights": [[name, bits] for name, bits in self.weights.items()],
        }

    @classmethod
    def from_json(cls, dims: Mapping[str, Any]) -> "QuantiserPlan":
        """What `to_json` gave; entries that are missing are empty.

        Raises:
            ValueError, TypeError: an entry is not what it should be.
        """
        return cls(
            folded=tuple((str(a), str(b)) for a, b in dims.get("folded", [])),
            points=tuple(_placed(entry) for entry in dims.get("points", [])),
            signed=tuple(bool(signed) for signed in dims.get("signed", [])),
            scaled=tuple(_placed(entry) for entry in dims.get("scaled", [])),
            weights={str(name): int(bits) for name, bits in dims.get("weights", [])},
        )


_ROOT = "."
"""The model itself where a module's path is written: texts in an architecture are not empty."""


def _entry(place: Place, number: int) -> list[str | int]:
    return [place.module or _ROOT, place.function, place.call, place.port, number]


def _placed(entry: Any) -> tuple[Place, int]:
    module, function, call, port, number = entry
    module = "" if module == _ROOT else module
    return Place(str(module), str(function), int(call), int(port)), int(number)


Quantise = Callable[[Tensor, Tensor, Tensor], Tensor]
Dequantise = Callable[[Tensor, Tensor], Tensor]


class Operators(NamedTuple):
    """How integers are computed.

    Attributes:
        quantise: (x, s, z) → q(x).
        dequantise: (w, s of each channel) → real weights.
    """

    quantise: Quantise
    dequantise: Dequantise


def quantise(x: Tensor, step: Tensor, zero_point: Tensor) -> Tensor:
    """q(x), of x's shape and type. Gradients pass the rounding, and reach `step`."""
    limits = torch.iinfo(zero_point.dtype)
    shift = zero_point.to(x.dtype)
    scaled = x / step
    if not scaled.requires_grad:  # the same values, in one buffer
        scaled.round_().add_(shift).clamp_(limits.min, limits.max)
        return scaled.sub_(shift).mul_(step)
    rounded = scaled + (scaled.round() - scaled).detach()
    return (torch.clamp(rounded + shift, limits.min, limits.max) - shift) * step


def dequantise(integers: Tensor, steps: Tensor) -> Tensor:
    """Real weights from integers (C, …) and steps (C,)."""
    return integers.to(steps.dtype) * steps.view(-1, *[1] * (integers.ndim - 1))


def round_to_steps(weight: Tensor, steps: Tensor, bits: int) -> Tensor:
    """Integers of `weight` (C, …) as real numbers, symmetric: −L to L, L = 2^(bits−1) − 1.
    Gradients pass the rounding.
    """
    largest = 2 ** (bits - 1) - 1
    scaled = weight / steps.view(-1, *[1] * (weight.ndim - 1))
    rounded = scaled + (scaled.round() - scaled).detach()
    return torch.clamp(rounded, -largest, largest)


def moved_slightly(seed: int, share: float = 0.01) -> Operators:
    """Operators that move a value by up to `share` of its step before it is rounded. How far
    results then differ is what a model in integers leaves open to the order in which a runtime
    takes its sums.
    """
    generator = torch.Generator().manual_seed(seed)

    def moved(value: Tensor, step: Tensor, zero_point: Tensor) -> Tensor:
        noise = 2 * torch.rand(value.shape, generator=generator) - 1
        return quantise(value + share * step * noise, step, zero_point)

    return Operators(moved, dequantise)


_SIMULATED = Operators(quantise, dequantise)
_operators: ContextVar[Operators] = ContextVar("operators", default=_SIMULATED)


@contextmanager
def computing_by(operators: Operators) -> Iterator[None]:
    """Quantised models in this block call these operators (an exporter's, for example)."""
    token = _operators.set(operators)
    try:
        yield
    finally:
        _operators.reset(token)


class Calls:
    """Where in a model's forward pass execution is: modules enter and leave by their hooks."""

    def __init__(self, module: nn.Module) -> None:
        self._stack: list[str] = [""]
        self._counts: Counter[tuple[str, str]] = Counter()
        for path, child in module.named_modules():
            if path:
                child.register_forward_pre_hook(_Enter(self, path))
                child.register_forward_hook(_Leave(self), always_call=True)

    def start(self) -> None:
        """A new forward pass begins."""
        self._stack[:] = [""]
        self._counts.clear()

    def enter(self, path: str) -> None:
        self._stack.append(path)

    def leave(self) -> None:
        if len(self._stack) > 1:
            self._stack.pop()

    @property
    def stack(self) -> tuple[str, ...]:
        """Paths of the modules in whose forward passes execution is, the outermost first."""
        return tuple(self._stack)

    def next(self, function: str) -> tuple[str, str, int]:
        """(module, function, call) of the call that is about to be made."""
        path = self._stack[-1]
        call = self._counts[path, function]
        self._counts[path, function] += 1
        return path, function, call


class _Enter:
    def __init__(self, calls: Calls, path: str) -> None:
        self.calls = calls
        self.path = path

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        self.calls.enter(self.path)


class _Leave:
    def __init__(self, calls: Calls) -> None:
        self.calls = calls

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.calls.leave()


class _Quantising(TorchFunctionMode):
    """Passes the arguments and results of functions through a model's quantisers."""

    def __init__(self, model: "QuantisedModel") -> None:
        super().__init__()
        self.model = model
        self.weights = model.current_weights()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = {key: self._real(value) for key, value in (kwargs or {}).items()}
        args = [self._real(value) for value in args]
        call = self.model.calls.next(getattr(func, "__name__", ""))
        ports = self.model.actions.get(call, {})
        for port, actions in ports.items():
            if port != OUTPUT and port < len(args):
                args[port] = self._through(actions, args[port])
        output = func(*args, **kwargs)
        return self._through(ports[OUTPUT], output) if OUTPUT in ports else output

    def _through(self, actions: list["_Action"], value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            for action in actions:
                value = self.model.act(action, value)
        return value

    def _real(self, value: Any) -> Any:
        """A real weight in place of a quantised one."""
        if (
            isinstance(value, nn.Parameter)
            and (index := self.weights.get(id(value))) is not None
        ):
            return self.model.real_weight(index, value)
        return value


@dataclass(frozen=True)
class _Action:
    """`multiply` by scale number `index`, or pass quantiser number `index`."""

    index: int
    multiply: bool


Call = tuple[str, str, int]


class QuantisedModel(nn.Module):
    """See the file. Gives the inner model's outputs, with its integers' errors.

    Args:
        inner: changed in place: folded norms go, weights become int8.
        plan: what is quantised where.
    """

    def __init__(self, inner: nn.Module, plan: QuantiserPlan) -> None:
        super().__init__()
        self.plan = plan
        self.trainable = False
        for conv, norm in plan.folded:
            remove_norm(inner, conv, norm)
        keep_products_apart(inner)
        self.inner = inner
        self.actions: dict[Call, dict[int, list[_Action]]] = {}
        for place, channels in plan.scaled:
            number = sum(
                a.multiply for p in self.actions.values() for x in p.values() for a in x
            )
            self.register_buffer(f"scale_{number}", torch.ones(channels))
            self._add(place, _Action(number, multiply=True))
        for index, signed in enumerate(plan.signed):
            self.register_buffer(f"step_{index}", torch.ones(()))
            kind = torch.int8 if signed else torch.uint8
            self.register_buffer(f"zero_{index}", torch.zeros((), dtype=kind))
        for place, index in plan.points:
            self._add(place, _Action(index, multiply=False))
        self.weight_bits = dict(plan.weights)
        for index, name in enumerate(self.weight_bits):
            path, _, leaf = name.rpartition(".")
            layer = inner.get_submodule(path)
            shape = layer.get_parameter(leaf).shape
            integers = torch.zeros(shape, dtype=torch.int8)
            setattr(layer, leaf, nn.Parameter(integers, requires_grad=False))
            self.register_buffer(f"weight_steps_{index}", torch.ones(shape[0]))
        self.calls = Calls(inner)

    def _add(self, place: Place, action: _Action) -> None:
        ports = self.actions.setdefault(place[:3], {})
        ports.setdefault(place.port, []).append(action)

    def forward(self, images: Tensor) -> Any:
        self.calls.start()
        for action in self.actions.get(IMAGES, {}).get(OUTPUT, []):
            images = self.act(action, images)
        with _Quantising(self):
            return self.inner(images)

    def get_classifier(self) -> Any:
        """The inner model's layers that classify."""
        find: Any = getattr(self.inner, "get_classifier", None)
        return find() if find is not None else ()

    def current_weights(self) -> dict[int, int]:
        """id of a quantised parameter → its index. Exporters and data parallelism put other
        parameters in the place of ours, so it is asked for in every pass.
        """
        return {
            id(self.inner.get_parameter(name)): index
            for index, name in enumerate(self.weight_bits)
        }

    def act(self, action: _Action, value: Tensor) -> Tensor:
        """A value that passes a place."""
        if action.multiply:
            return value * self.get_buffer(f"scale_{action.index}")
        step: Tensor = getattr(self, f"step_{action.index}")
        if self.trainable:
            step = _steady(step, value.numel() // max(len(value), 1), 8)
        return _operators.get().quantise(
            value, step, self.get_buffer(f"zero_{action.index}")
        )

    def real_weight(self, index: int, weight: Tensor) -> Tensor:
        """The real values of a quantised parameter."""
        steps: Tensor = getattr(self, f"weight_steps_{index}")
        if not self.trainable:
            return _operators.get().dequantise(weight, steps)
        bits = list(self.weight_bits.values())[index]
        steps = _steady(steps, weight[0].numel(), bits)
        return dequantise(round_to_steps(weight, steps, bits), steps)

    def start_training(self, weights: Mapping[str, Tensor]) -> None:
        """Make real parameters of weights and steps; biases and the like are it anyway.

        Args:
            weights: real values of the quantised inner parameters by name.
        """
        self.trainable = True
        for index, name in enumerate(self.weight_bits):
            path, _, leaf = name.rpartition(".")
            layer = self.inner.get_submodule(path)
            setattr(layer, leaf, nn.Parameter(weights[name].clone()))
            self._as_parameter(f"weight_steps_{index}")
        for index in range(len(self.plan.signed)):
            self._as_parameter(f"step_{index}")

    def _as_parameter(self, name: str) -> None:
        value = self.get_buffer(name).clone()
        del self._buffers[name]
        self.register_parameter(name, nn.Parameter(value))

    def trained_state(self) -> dict[str, Tensor]:
        """The state dict of the same model in integers."""
        state = {
            name: value.detach().cpu() for name, value in self.state_dict().items()
        }
        for name in state:
            if name.startswith(("step_", "weight_steps_")):
                state[name] = state[name].abs().clamp_min(_LEAST_STEP)
        for index, (name, bits) in enumerate(self.weight_bits.items()):
            steps = state[f"weight_steps_{index}"]
            integers = round_to_steps(state[f"inner.{name}"], steps, bits)
            state[f"inner.{name}"] = integers.to(torch.int8)
        return state


def _steady(step: Tensor, values: int, bits: int) -> Tensor:
    """`step`, positive, with LSQ's smaller gradient: divided by √(values · largest integer)."""
    share = (max(values, 1) * (2 ** (bits - 1) - 1)) ** -0.5
    positive = step.abs().clamp_min(_LEAST_STEP)
    return positive * share + (positive * (1 - share)).detach()


def keep_products_apart(module: nn.Module) -> None:
    """Let every layer compute its own product, by its own weight: layers that a model puts
    together for speed have no place for their quantisers.
    """
    for layer in module.modules():
        if hasattr(layer, "one_product"):
            setattr(layer, "one_product", False)  # noqa: B010 (no attribute of every module)


def remove_norm(module: nn.Module, conv: str, norm: str) -> None:
    """Give a convolution a bias where it has none, and put an activation (timm's norms may hold
    one) or nothing in place of its norm.
    """
    layer = module.get_submodule(conv)
    if layer.bias is None:
        weight = layer.get_parameter("weight")
        layer.bias = nn.Parameter(torch.zeros(weight.shape[0], device=weight.device))
    old: Any = module.get_submodule(norm)
    after = [
        child
        for child in (getattr(old, "drop", None), getattr(old, "act", None))
        if child
    ]
    parent, _, leaf = norm.rpartition(".")
    setattr(module.get_submodule(parent), leaf, nn.Sequential(*after))
