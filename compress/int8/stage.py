"""Integers of 8 (or 4) bits for weights and activations: calibrated, or trained with their
rounding.

NNCF says where quantisers belong; ranges, rounding, corrections and training are here, and the
result is rebuilt and exported without NNCF.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from compress.asp import HoldZeros, asp_masks
from compress.finetune import check_fit
from compress.int8.architectures import (
    check_architecture,
    int8_arch,
    layers_of_one_name,
    quantisable_layers,
)
from compress.int8.calibrate import (
    CALIBRATION_BATCH,
    RANGE_RULES,
    RangeRule,
    Values,
    activation_step,
    images_of,
    logits_of,
    mean_inputs,
    moved_output,
    observe,
    weight_steps,
)
from compress.int8.fold import fold_norms
from compress.int8.nncf_internals import check_installed, choose
from compress.int8.readers import read_by_none_but, readers_of
from compress.int8.reported import METRICS
from compress.metrics import Metric
from compress.stage import Context, Phase, Stage
from trainers.config import Augment, AugmentConfig, DistillConfig, TrainConfig
from trainers.data.splits import DataInfo
from trainers.models.arch import Arch, ModelState, on_meta
from trainers.models.quantised import (
    QuantisedModel,
    QuantiserPlan,
    keep_products_apart,
    round_to_steps,
)
from trainers.training.losses import DistillObjective

_log = logging.getLogger(__name__)
_PLACING_BATCHES = 2
_AUXILIARY = {
    "sws_vit": "sws_expand",
    "tleg_vit": "tleg_expand",
    "lets_vit": "lets_expand",
    "wave_vit": "wave_expand",
    "sweet_vit": "sweet_expand",
}
"""Builders of models whose blocks have no weights of their own → the stage that gives them some."""


class Int8(Stage, TrainConfig):
    """Compute in 8-bit integers, as onnxruntime and OpenVINO execute them; some layers may stay
    in float, or keep their weights in 4 bits.
    """

    phase: ClassVar[Phase] = "quantize"
    version: ClassVar[int] = 6
    paper: ClassVar[str] = (
        "Nagel et al., A White Paper on Neural Network Quantization, 2021; SmoothQuant: Xiao"
        " et al., ICML 2023; steps in training: Esser et al., Learned Step Size Quantization,"
        " ICLR 2020"
    )
    finds_dims: ClassVar[bool] = True
    never_cheaper: ClassVar[tuple[str, ...]] = (
        "float_layers",
        "float_layer_count",
        "max_changed",
    )
    continues: ClassVar[bool] = True
    metrics: ClassVar[tuple[Metric, ...]] = METRICS

    images: int = Field(
        256, ge=1, description="calibration images, of the training part"
    )
    ranges: Literal[RangeRule, "best"] = Field(
        "best",
        description=(
            "range of a value. minmax: of all that was seen; percentile: of most of it; mse:"
            " the range of least squared error; best: the rule whose logits are nearest to"
            " the float model's on the calibration images"
        ),
    )
    percentile: float = Field(
        99.99, gt=50, le=100, description="of the values, for ranges: percentile"
    )
    activations: Literal["symmetric", "asymmetric"] = Field(
        "symmetric",
        description=(
            "integers of activations that may be negative. symmetric: int8 without a zero"
            " point; asymmetric: uint8 with one"
        ),
    )
    smooth_quant: float | None = Field(
        0.95,
        ge=0,
        le=1,
        description=(
            "SmoothQuant's alpha for models with LayerNorm: how much of the activations'"
            " outliers moves into the weights; null: without it"
        ),
    )
    bias_correction: bool = Field(
        True, description="undo what rounding the weights does to the mean of a channel"
    )
    float_layers: tuple[str, ...] = Field(
        (), description="layers left in float, as patterns: head, blocks.0.*"
    )
    max_changed: float | None = Field(
        None,
        ge=0,
        le=1,
        description=(
            "leave layers in float, those first that help most, until at most this share of"
            " the calibration images has another first choice than in float; where that is"
            " never reached, the choice with the fewest changes stays and a warning says so"
        ),
    )
    float_layer_count: int = Field(
        0,
        ge=0,
        description="so many layers are left in float, those that help most; one always rounds",
    )
    four_bit_layers: tuple[str, ...] = Field(
        (), description="layers whose weights have 4 bits, as patterns"
    )
    four_bit_fraction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the weights that have 4 bits, in the layers that bear it best",
    )
    epochs: int = Field(0, ge=0, description="of training with the rounding in place")
    distill_weight: float = Field(
        0.9,
        ge=0,
        le=1,
        description="of the float model's outputs in the loss of training",
    )
    batch_size: int = Field(64, ge=1)
    lr: float = Field(1e-5, gt=0)
    lr_scaling: Literal["linear", "unscaled"] = "unscaled"
    min_lr: float = Field(0.0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    train_mode: bool = Field(False, description="as in finetune")
    augment: Augment = AugmentConfig(preset="flip")

    @model_validator(mode="after")
    def _possible(self) -> "Int8":
        if self.compile:
            raise ValueError("compile: quantisers cannot be compiled; leave it out")
        if self.drop or self.drop_path is not None:
            raise ValueError(
                "drop, drop_path: training with rounding takes none; leave them out"
            )
        if self.float_layer_count and self.max_changed is not None:
            raise ValueError("give one of float_layer_count and max_changed")
        if self.four_bit_layers and self.four_bit_fraction:
            raise ValueError("give one of four_bit_layers and four_bit_fraction")
        return self

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        check_installed()
        if arch.builder == "int8":
            raise ValueError(
                f"{arch.name} is in integers already; one int8 stage is enough"
            )
        if arch.builder in _AUXILIARY:
            raise ValueError(
                f"{arch.name} is an auxiliary network, whose blocks share weights; put"
                f" {_AUXILIARY[arch.builder]} before int8"
            )
        layers = quantisable_layers(arch)
        if not layers:
            raise ValueError(f"{arch.name} has no Linear or Conv2d layers to quantise")
        for option in ("float_layers", "four_bit_layers"):
            for pattern in getattr(self, option):
                if not any(fnmatch(layer, pattern) for layer in layers):
                    raise ValueError(
                        f"{option}: {pattern!r} fits no layer of {arch.name}; its layers are"
                        f" {', '.join(layers[:4])}, …, {layers[-1]}"
                    )
        check_architecture(arch, data.image_size)
        if self.epochs:
            check_fit(arch, self, data)
        return int8_arch(arch, QuantiserPlan())

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        batches = images_of(ctx, self.images)
        with torch.random.fork_rng(devices=[]):
            work = _Calibration(self, model, batches)
            plan, four = work.decide()
            result = work.result(plan)
        changed, error = work.errors(result)
        if self.max_changed is not None:
            ctx.report(int8_max_changed_met=int(changed <= self.max_changed))
        ctx.report(
            int8_layers=len(plan.weights),
            int8_float_layers=len(quantisable_layers(model.arch))
            - len(work.computed_in_integers(plan)),
            int8_four_bit_fraction=four,
            int8_changed_fraction=changed,
            int8_logit_error=error,
        )
        return (
            self._trained(model, result, work.float_weights, ctx)
            if self.epochs
            else result
        )

    def _trained(
        self,
        model: ModelState,
        start: ModelState,
        weights: Mapping[str, Tensor],
        ctx: Context,
    ) -> ModelState:
        module = start.build()
        assert isinstance(module, QuantisedModel)
        module.start_training(weights)
        teacher = model.build().to(ctx.device).requires_grad_(False)
        distill = DistillConfig(
            teacher="source", kind="soft", alpha=self.distill_weight
        )
        objective = DistillObjective(teacher, distill, self.label_smoothing)
        masks = {f"inner.{name}": mask for name, mask in asp_masks(model).items()}
        hooks = [HoldZeros(module, masks)] if masks else []
        ctx.fit(module, objective, self, hooks=hooks, name="int8")
        state = {
            name: value.contiguous() for name, value in module.trained_state().items()
        }
        state = {name: state[name].clone() for name in start.weights}
        return ModelState(start.arch, state, start.meta)


class _Calibration:
    """Everything between a float model and its integers, before training.

    Attributes:
        float_weights: inner parameter → real values, norms folded and scales moved in.
        stored_only: layers that are computed in float, as squeeze-and-excitation is, since their
            inputs bear no integers: their weights are stored as such all the same.
    """

    def __init__(
        self, options: Int8, model: ModelState, batches: Sequence[Tensor]
    ) -> None:
        self.options = options
        self.model = model
        self.batches = batches
        self.folded = model.build()
        keep_products_apart(self.folded)
        self.norms = tuple(fold_norms(self.folded, batches[0][:2]))
        few = [batch[:CALIBRATION_BATCH] for batch in batches[:_PLACING_BATCHES]]
        self.choice = choose(self.folded, few, options.smooth_quant)
        self.readers = readers_of(self.folded, batches[0][:2])
        self.stored_only = [
            layer
            for layer in layers_of_one_name(self.folded)
            if layer not in self.choice.weights and not self._is_named_float(layer)
        ]
        self.float_weights = dict(self.choice.state)
        with torch.no_grad():
            self.logits = logits_of(model.build(), batches)
        open_plan = self._plan(self._wanted())
        watched = self._model(replace(open_plan, weights={}))
        seen = observe(watched, batches)
        stored = [*self.choice.weights, *self.stored_only]
        self.means = mean_inputs(watched, stored, batches[:4])
        plan = self._plan(self._wanted(), self._named_four_bits(stored))
        rules = RANGE_RULES if options.ranges == "best" else (options.ranges,)
        least = float("inf")
        for rule in rules:
            steps = self._steps(seen, rule)
            error = self.errors(self.result(plan, steps, rule), few=True)[1]
            if error < least:
                least, self.steps, self.rule = error, steps, rule

    def _steps(
        self, seen: Sequence[Values], rule: RangeRule
    ) -> list[tuple[Tensor, Tensor]]:
        """(step, zero point) of each quantiser."""
        symmetric = self.options.activations == "symmetric"
        percentile = self.options.percentile
        return [
            activation_step(values, rule, percentile, symmetric=symmetric)
            for values in seen
        ]

    def _wanted(self) -> list[str]:
        """Layers that become integers, by the patterns."""
        return [x for x in self.choice.weights if not self._is_named_float(x)]

    def _is_named_float(self, layer: str) -> bool:
        return any(fnmatch(layer, pattern) for pattern in self.options.float_layers)

    def computed_in_integers(self, plan: QuantiserPlan) -> list[str]:
        """The layers whose inputs are integers, too."""
        return [
            layer for layer in self.choice.weights if f"{layer}.weight" in plan.weights
        ]

    def _plan(
        self, layers: Sequence[str], four_bits: Sequence[str] = ()
    ) -> QuantiserPlan:
        """The plan in which these layers are integers; others lose their own quantisers."""
        left_out = set(self.choice.weights) - set(layers)
        points = tuple(
            (place, index)
            for index, group in enumerate(self.choice.groups)
            if not read_by_none_but(left_out, group, self.readers)
            for place in group
            if place.module not in left_out
        )
        return QuantiserPlan(
            folded=self.norms,
            points=points,
            signed=(True,) * len(self.choice.groups),
            scaled=tuple((place, len(scale)) for place, scale in self.choice.scaled),
            weights={
                f"{layer}.weight": 4 if layer in four_bits else 8
                for layer in (*layers, *self.stored_only)
            },
        )

    def _model(self, plan: QuantiserPlan) -> QuantisedModel:
        """Float weights behind the plan's quantisers, whose steps are not set yet."""
        with torch.random.fork_rng(devices=[]):
            built = int8_arch(self.model.arch, plan).build()
        assert isinstance(built, QuantisedModel)
        built.inner.load_state_dict(self.choice.state)
        for number, (_, scale) in enumerate(self.choice.scaled):
            built.get_buffer(f"scale_{number}").copy_(scale)
        return built.eval()

    def decide(self) -> tuple[QuantiserPlan, float]:
        """The final plan, and the share of its weights that have 4 bits."""
        layers = self._wanted()
        four = self._four_bits([*layers, *self.stored_only])
        plan = self._plan(layers, four)
        if self.options.float_layer_count:
            helpful = self._by_help(layers, four)[:-1]
            in_float = helpful[: self.options.float_layer_count]
            plan = self._plan([x for x in layers if x not in in_float], four)
        if self.options.max_changed is not None:
            plan = self._until_close(layers, four)
        sizes = {n: self.float_weights[n].numel() for n in plan.weights}
        small = sum(size for n, size in sizes.items() if plan.weights[n] == 4)
        return plan, small / max(1, sum(sizes.values()))

    def _named_four_bits(self, layers: Sequence[str]) -> list[str]:
        patterns = self.options.four_bit_layers
        return [x for x in layers if any(fnmatch(x, pattern) for pattern in patterns)]

    def _four_bits(self, layers: Sequence[str]) -> list[str]:
        options = self.options
        if not options.four_bit_fraction:
            return self._named_four_bits(layers)
        if options.four_bit_fraction == 1:
            return list(layers)
        wanted = options.four_bit_fraction * sum(self._size(layer) for layer in layers)
        harm = {layer: self._error(self._plan(layers, [layer])) for layer in layers}
        chosen: list[str] = []
        for layer in sorted(
            layers, key=lambda layer: (harm[layer] / self._size(layer), layer)
        ):
            if sum(map(self._size, chosen)) >= wanted:
                break
            chosen.append(layer)
        return chosen

    def _size(self, layer: str) -> int:
        return self.float_weights[f"{layer}.weight"].numel()

    def _until_close(self, layers: list[str], four: Sequence[str]) -> QuantiserPlan:
        """Leave layers in float until few first choices change."""
        limit = self.options.max_changed
        assert limit is not None
        best = self._plan(layers, four)
        fewest = self.errors(self.result(best))[0]
        if fewest <= limit:
            return best
        left = list(layers)
        for layer in self._by_help(layers, four)[:-1]:
            left.remove(layer)
            plan = self._plan(left, four)
            changed = self.errors(self.result(plan))[0]
            if changed < fewest:
                best, fewest = plan, changed
            if changed <= limit:
                return plan
        _log.warning(
            "int8: max_changed %g is not reached, however many of the %d layers stay in float;"
            " the best choice changes %.2g %% of the calibration images' first choices with"
            " %d layers in integers. Give more images, another ranges, or epochs of training",
            limit,
            len(layers),
            100 * fewest,
            len(best.weights),
        )
        return best

    def _by_help(self, layers: Sequence[str], four: Sequence[str]) -> list[str]:
        """The layers, that one first which in float leaves the least error of the logits."""
        without = {
            layer: self._error(self._plan([x for x in layers if x != layer], four))
            for layer in layers
        }
        return sorted(layers, key=lambda layer: (without[layer], layer))

    def _error(self, plan: QuantiserPlan) -> float:
        """Of the logits, of the first batch."""
        return self.errors(self.result(plan), few=True)[1]

    def result(
        self,
        plan: QuantiserPlan,
        steps: Sequence[tuple[Tensor, Tensor]] | None = None,
        rule: RangeRule | None = None,
    ) -> ModelState:
        """The model in integers, by the steps and the rule that were chosen or by these."""
        steps = self.steps if steps is None else steps
        rule = rule or self.rule
        used = sorted({index for _, index in plan.points})
        number = {old: new for new, old in enumerate(used)}
        plan = replace(
            plan,
            points=tuple((place, number[index]) for place, index in plan.points),
            signed=tuple(steps[i][1].dtype == torch.int8 for i in used),
        )
        arch = int8_arch(self.model.arch, plan)
        state = {f"inner.{name}": value for name, value in self.choice.state.items()}
        for new, old in enumerate(used):
            state[f"step_{new}"], state[f"zero_{new}"] = steps[old]
        for i, (_, scale) in enumerate(self.choice.scaled):
            state[f"scale_{i}"] = scale
        rounded: dict[str, Tensor] = {}
        for i, (name, bits) in enumerate(plan.weights.items()):
            weight = self.choice.state[name]
            channel_steps = weight_steps(weight, bits, rule)
            integers = round_to_steps(weight, channel_steps, bits)
            state[f"weight_steps_{i}"] = channel_steps
            state[f"inner.{name}"] = integers.to(torch.int8)
            shape = (-1, *[1] * (weight.ndim - 1))
            rounded[name.removesuffix(".weight")] = integers * channel_steps.view(shape)
        if self.options.bias_correction:
            self._correct(state, rounded)
        names = on_meta(arch).state_dict()
        weights = {name: state[name].detach().clone().contiguous() for name in names}
        return ModelState(arch, weights, dict(self.model.meta))

    def _correct(self, state: dict[str, Tensor], rounded: Mapping[str, Tensor]) -> None:
        """Take from each bias what rounding adds to the mean of its channel."""
        scales = {place.module: scale for place, scale in self.choice.scaled}
        for layer, weight in rounded.items():
            name = f"inner.{layer}.bias"
            if name in state and layer in self.means:
                mean = self.means[layer] * scales.get(layer, 1.0)
                difference = weight - self.choice.state[f"{layer}.weight"]
                module = self.folded.get_submodule(layer)
                state[name] = state[name] - moved_output(module, difference, mean)

    def errors(self, state: ModelState, *, few: bool = False) -> tuple[float, float]:
        """(share of first choices that changed, relative error of the logits).

        Args:
            few: look at the first batch only.
        """
        batches = self.batches[:1] if few else self.batches
        found = logits_of(state.build(), batches)
        wanted = self.logits[: len(found)]
        changed = (found.argmax(-1) != wanted.argmax(-1)).double().mean()
        error = (found - wanted).square().mean() / wanted.square().mean().clamp_min(
            1e-12
        )
        return float(changed), float(error.sqrt())
