"""From a model and a target to the units that stay."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from compress.channels.blocks import residual_blocks
from compress.channels.choice import Choice
from compress.channels.cost import Cost, Floats, macs, values
from compress.channels.latency import layers, measured_cost, table
from compress.channels.layout import Keep, Layout
from compress.channels.options import ChannelOptions
from compress.channels.surgery import cut_arch, cut_state
from compress.measure.in_turns import model_times
from compress.measure.model import PASS_ERRORS, forward_pass
from compress.measure.multiples import liked_multiple
from compress.stage import Context
from trainers.models.arch import BUILD_ERRORS, Arch, ModelState, on_meta

_log = logging.getLogger(__name__)
TOLERANCE = 0.02
"""A measured latency may lie so far below its target; above it by half as much."""
_TRIES = 5
_ROUNDING = 1e-9
_ROUNDS = 25


def layout_of(arch: Arch, image_size: int) -> Layout:
    """The units of an architecture, found once; it was tried that they can be cut.

    Raises:
        ValueError: its operations cannot be followed, or the model does not run once it is cut.
    """
    return _layout_of(json.dumps(arch.to_json()), image_size)


@lru_cache(maxsize=16)
def _layout_of(arch_json: str, image_size: int) -> Layout:
    arch = Arch.from_json(json.loads(arch_json))
    try:
        layout = Layout.of(arch, image_size)
    except PASS_ERRORS as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"prune_channels cannot follow the operations of {arch.name} ({reason}); nvit"
            " prunes plain ViTs, asp and low_rank take other models"
        ) from error
    if not layout.num_units:
        raise ValueError(f"{arch.name} has no channels that could be removed")
    keep = np.ones(layout.num_units, bool)
    for group in layout.groups:
        keep[group.units[: len(group.units) // 2]] = False
    try:
        cut = layout.cut(keep, on_meta(arch))
        forward_pass(cut_arch(arch, cut), image_size)
    except (*PASS_ERRORS, *BUILD_ERRORS) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"prune_channels cannot cut {arch.name}, whose forward pass computes sizes by a"
            f" rule of its own ({reason}); asp and low_rank take it"
        ) from error
    return layout


@dataclass(frozen=True)
class Decision:
    """What a model becomes.

    Attributes:
        keep: units that stay (U,).
        dropped: residual blocks that go as a whole.
        cost_ratio: estimated cost over the incoming model's.
        latency_ratio: measured; None for other targets.
        meets_target: whether it costs what it may.
    """

    keep: Keep
    dropped: tuple[str, ...]
    cost_ratio: float
    latency_ratio: float | None = None
    meets_target: bool = True


class Decider:
    """Chooses what stays of one model.

    Args:
        model: the incoming model.
        options: target, latency, what each group may lose, and whether blocks may go.

    Attributes:
        rules: of each group.
        cost: what a cut model costs.
        full: what the incoming model costs.
    """

    def __init__(
        self, model: ModelState, layout: Layout, options: ChannelOptions, ctx: Context
    ) -> None:
        self.model, self.layout, self.ctx = model, layout, ctx
        self.target, self.options = options.target, options.latency
        self.image_size = ctx.data.info.image_size
        self.module = on_meta(model.arch).eval()
        self.rules = options.rules(layout, self._liked_multiple(options))
        self.cost = self._cost()
        ones = np.ones((1, len(layout.groups)))
        self.full = float(self.cost.of(ones)[0])
        self.blocks: dict[str, list[int]] = {}
        if options.blocks:
            images = torch.randn(
                self._images(2), generator=torch.Generator().manual_seed(0)
            )
            self.blocks = residual_blocks(model.build(), layout, images)

    def _images(self, n: int) -> tuple[int, ...]:
        size = self.image_size
        return (n, self.model.arch.args.get("in_chans", 3), size, size)

    def _liked_multiple(self, options: ChannelOptions) -> int | None:
        """Channels that the runtime takes at a time; None where that does not matter."""
        if self.target.quantity != "latency" or options.multiple is not None:
            return None

        def measure() -> int | None:
            found = layers(self.module, self.layout, self._images(1)[1:])
            shapes = [each.shape for each in found]
            return liked_multiple(shapes, self.options, self.ctx.device.type)

        return self.ctx.measure_once("liked_multiple.json", measure)

    def _cost(self) -> Cost:
        match self.target.quantity:
            case "macs":
                return macs(self.layout)
            case "params":
                names = {n: 1 for n, _ in self.module.named_parameters()}
                return values(self.layout, names)
            case "bytes":
                sizes = {n: t.element_size() for n, t in self.model.weights.items()}
                return values(self.layout, sizes)
        found = layers(self.module, self.layout, self._images(1)[1:])

        def measure() -> dict[str, list[list[float]]]:
            return {
                each.path: table(each.shape, self.options, self.ctx.device.type)
                for each in found
            }

        tables = self.ctx.measure_once("layers.json", measure)
        return measured_cost(self.layout, found, tables)

    def choose(
        self, scores: Floats, share: float, *, with_blocks: bool = False
    ) -> Decision:
        """The choice at an estimated cost of this share of the incoming model's.

        Args:
            with_blocks: residual blocks may go.
        """
        blocks = self.blocks if with_blocks else {}
        choice = Choice(
            self.layout.groups, self.rules, scores, self.cost, blocks=blocks
        )
        kept = choice.to(share * self.full)
        ratio = choice.cost_now() / self.full
        fits = ratio <= share * (1 + _ROUNDING)
        return Decision(kept, tuple(choice.dropped), ratio, meets_target=fits)

    def decide(self, scores: Floats) -> list[Decision]:
        """Choices that meet the target, where there are such: of channels alone, and with
        residual blocks where some would go. A measured latency is measured on whole models.
        """
        alone = self._decide(scores, with_blocks=False)
        if not self.blocks:
            return [alone]
        with_blocks = self._decide(scores, with_blocks=True)
        return [alone, with_blocks] if with_blocks.dropped else [alone]

    def _decide(self, scores: Floats, *, with_blocks: bool) -> Decision:
        if self.target.quantity != "latency":
            share = self.target.limit(self.full) / self.full
            return self.choose(scores, share, with_blocks=with_blocks)
        name = "choice_with_blocks.json" if with_blocks else "choice.json"
        share, ratio, is_met = self.ctx.measure_once(
            name, lambda: self._share_by_measuring(scores, with_blocks)
        )
        decision = self.choose(scores, share, with_blocks=with_blocks)
        return replace(decision, latency_ratio=ratio, meets_target=is_met)

    def _share_by_measuring(
        self, scores: Floats, with_blocks: bool
    ) -> tuple[float, float, bool]:
        """The estimated share at which the measured latency meets the target, the latency
        there as a share of the incoming model's, and whether it meets the target.
        """
        (times,) = self._times([self.model])
        incoming = float(np.median(times))
        wanted = self.target.limit(incoming) / incoming
        share, best = min(wanted, 1.0), (np.inf, np.inf)
        seen: dict[float, float] = {}
        for _ in range(_TRIES):
            decision = self.choose(scores, share, with_blocks=with_blocks)
            small = cut_state(self.model, self.layout, decision.keep, decision.dropped)
            whole, cut = self._times([self.model, small])
            ratio = seen[share] = float(np.median(cut / whole))
            best = min(best, (share, ratio), key=lambda each: abs(each[1] - wanted))
            if wanted * (1 - TOLERANCE) <= ratio <= wanted * (1 + TOLERANCE / 2):
                break
            share = share_between(seen, wanted)
        share, ratio = best
        is_met = ratio <= wanted * (1 + TOLERANCE)
        if not is_met:
            _log.warning(
                "prune_channels: measured latency is %.3f of the incoming model's; the"
                " target is %.3f",
                ratio,
                wanted,
            )
        return share, ratio, is_met

    def _times(self, states: Sequence[ModelState]) -> Floats:
        return model_times(
            states, self.image_size, self.options, self.ctx.device, _ROUNDS
        )


def share_between(seen: Mapping[float, float], wanted: float) -> float:
    """The estimated share of cost at which the measured share of latency is `wanted`, linear
    between those that were measured (estimated → measured) and the ends: nothing takes no
    time, and all takes all. More costs no less; what is measured otherwise is noise.
    """
    points = sorted({0.0: 0.0, **seen, 1.0: 1.0}.items())
    estimated, measured = np.array(points).T
    return float(np.interp(wanted, np.maximum.accumulate(measured), estimated))
