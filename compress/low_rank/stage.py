"""Low rank: linear layers and 1×1 convolutions become products of two smaller ones.

The factors lose least of what a layer computes on real inputs (`factors`), and the ranks least
of all layers' outputs together under a budget (`ranks`). Neither labels nor training; a
`finetune` after it gets back what was lost.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from compress.budget import Target
from compress.compensation import COMPENSATE_IMAGES, input_moments
from compress.latest import Latest
from compress.low_rank.factors import Directions, directions, factors
from compress.low_rank.latency import layer_latencies, model_latencies
from compress.low_rank.layers import LayerSize, factorable
from compress.low_rank.ranks import Option, choose, rank_options
from compress.measure.model import PASS_ERRORS, forward_pass
from compress.measure.multiples import chunk_size, liked_multiple
from compress.measure.options import RuntimeOptions
from compress.metrics import Metric
from compress.runtimes.registry import runtime as runtime_of
from compress.stage import Context, Phase, Stage
from trainers.data.splits import DataInfo
from trainers.models.arch import Arch, ModelState, shared_on_meta

_log = logging.getLogger(__name__)
LATEST = Latest[dict[str, Directions]](
    lambda found: sum(each.nbytes for each in found.values())
)
_MOST_TRIES = 4
_CLOSE = 0.02
"""Part of a latency target by which the measured latency may exceed it."""


class LowRank(Stage):
    """Factor linear layers and 1×1 convolutions, by what they compute on training images, until
    a budget is met.
    """

    phase: ClassVar[Phase] = "prune"
    version: ClassVar[int] = 4
    finds_dims: ClassVar[bool] = True
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("low_rank_layers", "layers that became products of two", "1"),
        Metric(
            "low_rank_lost",
            "share of their outputs' variance that factored layers lost, mean over layers",
            "1",
        ),
        Metric(
            "low_rank_cost_ratio",
            "what the target counts, over that of the incoming model; of latency as layers"
            " alone promise it",
            "1",
        ),
        Metric(
            "low_rank_latency_ratio",
            "measured latency over the incoming model's, for a target of latency",
            "1",
            is_time=True,
        ),
    )

    target: Target = Field(
        Target(macs=0.7),
        description=(
            "what the result may cost: {macs: 0.7}, {params: 0.7}, {bytes: 0.7} or"
            " {latency: 0.7} of the incoming model's, or {latency_ms: 5} a batch"
        ),
    )
    latency: RuntimeOptions = Field(
        RuntimeOptions(),
        description="where and how latency is measured, for a target of latency",
    )
    images: int = Field(
        COMPENSATE_IMAGES,
        ge=0,
        description=(
            "training images, without labels, by which directions are weighted; 0: none,"
            " the plain SVD of the weights"
        ),
    )
    rank_multiple: int | None = Field(
        None,
        ge=1,
        description=(
            "ranks are multiples of it. Default: for a target of latency what the runtime"
            " takes at a time, which is measured; else 1"
        ),
    )
    full_rank_layers: tuple[str, ...] = Field(
        (),
        description="patterns of layers that stay as they are, such as blocks.0.*",
    )

    @property
    def _least_rank(self) -> int:
        return self.rank_multiple or 1

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        """The architecture with every rank open.

        Raises:
            ValueError: no layer can be factored, the target is out of reach, or the runtime
                cannot be used here.
        """
        sizes = self._sizes(arch, data.image_size)
        smallest = low_rank_arch(arch, dict.fromkeys(sizes, 1))
        try:
            forward_pass(smallest, data.image_size)
        except PASS_ERRORS as error:
            raise ValueError(
                f"{arch.name} does not run with factored layers ({error}); name those that"
                " it looks into in full_rank_layers"
            ) from error
        if self.target.quantity == "latency":
            runtime_of(self.latency.runtime).check(self.latency)
        else:
            total = self._counted(arch, data.image_size)
            self._within(self._options(sizes, {}), total, self.target.limit(total))
        return low_rank_arch(arch, {})

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        size = ctx.data.info.image_size
        sizes = self._sizes(model.arch, size)
        found = self._directions(model, sizes, ctx)
        if self.target.quantity == "latency":
            ranks, reported = ctx.measure_once(
                "ranks.json", lambda: self._to_latency(model, sizes, found, ctx)
            )
            ctx.report(**reported)
            return _factored(model, ranks, found)
        total = self._counted(model.arch, size)
        options = self._options(sizes, found)
        chosen = self._within(options, total, self.target.limit(total))
        ctx.report(**_reported(options, chosen, total))
        return _factored(model, _ranks(chosen), found)

    def _to_latency(
        self,
        model: ModelState,
        sizes: dict[str, LayerSize],
        found: dict[str, Directions],
        ctx: Context,
    ) -> tuple[dict[str, int], dict[str, float]]:
        """Ranks with which the measured latency of the whole model meets the target, and what
        to report of them.
        """
        size = ctx.data.info.image_size
        layers = layer_latencies(sizes, self.latency, ctx.device)
        options = self._options(sizes, found, layers, self._liked(sizes, ctx))
        (total,) = model_latencies([model], size, self.latency, ctx.device)
        limit = estimated = self.target.limit(total)
        for _ in range(_MOST_TRIES):
            chosen = self._within(options, total, estimated)
            small = _factored(model, _ranks(chosen), found)
            now, before = model_latencies(
                [small, model], size, self.latency, ctx.device
            )
            if now <= self.target.limit(before) * (1 + _CLOSE):
                break
            # what layers save by themselves is not what the model saves
            saved = max(before - now, 0.1 * (total - estimated))
            estimated = total - (total - estimated) * (total - limit) / saved
        else:
            _log.warning(
                "low_rank: measured %.3f of the incoming model's latency; the target is %s",
                now / before,
                self.target.describe(),
            )
        reported = _reported(options, chosen, total)
        return _ranks(chosen), reported | {"low_rank_latency_ratio": now / before}

    def _liked(self, sizes: dict[str, LayerSize], ctx: Context) -> int | None:
        """Channels that the runtime takes at a time; None where the multiple is given."""
        if self.rank_multiple is not None:
            return None
        shapes = [size.shape() for size in sizes.values()]
        return liked_multiple(shapes, self.latency, ctx.device.type)

    def _within(
        self, options: dict[str, list[Option]], total: float, limit: float
    ) -> dict[str, Option]:
        """The best choice with which a model of cost `total` costs `limit` at most.

        Raises:
            ValueError: there is none.
        """
        as_they_are = sum(each[-1].cost for each in options.values())
        chosen = choose(options, as_they_are - (total - limit))
        if chosen is None:
            least = sum(min(o.cost for o in each) for each in options.values())
            share = (total - as_they_are + least) / total
            raise ValueError(
                f"target: {self.target.describe()} is out of reach: with rank"
                f" {self._least_rank} in all {len(options)} layers that can be factored"
                f" it is {share:.3g} of the incoming model's; raise it"
            )
        return chosen

    def _sizes(self, arch: Arch, image_size: int) -> dict[str, LayerSize]:
        """Layers that can be factored.

        Raises:
            ValueError: there is none.
        """
        sizes = {
            path: size
            for path, size in factorable(
                arch, image_size, self.full_rank_layers
            ).items()
            if self._least_rank * (size.inputs + size.outputs)
            < size.inputs * size.outputs
        }
        if not sizes:
            raise ValueError(
                f"{arch.name} has no Linear layer and no 1×1 convolution, besides its"
                " classifier, that gets smaller by a rank of"
                f" {self._least_rank}; prune_channels, wfn and the quantize stages take"
                " other layers"
            )
        return sizes

    def _counted(self, arch: Arch, image_size: int) -> float:
        """What the model costs, in the target's unit."""
        if self.target.quantity == "bytes":
            state = shared_on_meta(arch).state_dict()
            return sum(t.numel() * t.element_size() for t in state.values())
        found = forward_pass(arch, image_size)
        is_params = self.target.quantity == "params"
        return found.num_params if is_params else found.gmacs * 1e9

    def _options(
        self,
        sizes: dict[str, LayerSize],
        found: dict[str, Directions],
        latencies: Mapping[str, tuple[float, Callable[[int], float]]] | None = None,
        liked: int | None = None,
    ) -> dict[str, list[Option]]:
        """Path → options, with equal energies where a layer's are not known.

        Args:
            liked: channels that the runtime takes at a time, where that was measured.
        """
        quantity = self.target.quantity
        result = {}
        for path, size in sizes.items():
            known = found.get(path)
            ones = [1.0] * min(size.inputs, size.outputs)
            as_is, cost_of = (
                (size.cost_as_is(quantity), partial(size.cost, quantity))
                if latencies is None
                else latencies[path]
            )
            result[path] = rank_options(
                ones if known is None else known.energies.tolist(),
                cost_of=cost_of,
                cost_as_is=as_is,
                multiple=self.rank_multiple or chunk_size(len(ones), liked or 1),
            )
        return result

    def _directions(
        self, model: ModelState, sizes: dict[str, LayerSize], ctx: Context
    ) -> dict[str, Directions]:
        """Of each layer; they do not depend on how much is cut."""

        def found() -> dict[str, Directions]:
            module = model.build().to(ctx.device)
            images = ctx.images(self.images)
            moments = input_moments(module, sizes.keys(), images).moments
            return {
                path: directions(
                    module.get_submodule(path), moments[path] if self.images else None
                )
                for path in sizes
            }

        return LATEST.of(model, ctx, [self.images, *sizes], found)


def _reported(
    options: dict[str, list[Option]], chosen: dict[str, Option], total: float
) -> dict[str, float]:
    """The stage's metrics, of a model that cost `total`."""
    saved = sum(each[-1].cost - chosen[n].cost for n, each in options.items())
    losses = [option.loss for option in chosen.values() if option.rank is not None]
    return {
        "low_rank_layers": len(losses),
        "low_rank_lost": sum(losses) / max(1, len(losses)),
        "low_rank_cost_ratio": 1 - saved / total,
    }


def _ranks(chosen: dict[str, Option]) -> dict[str, int]:
    """Path → rank of the layers that become products."""
    return {path: o.rank for path, o in chosen.items() if o.rank is not None}


def low_rank_arch(arch: Arch, ranks: dict[str, int]) -> Arch:
    """The architecture with factored layers."""
    dims = {"inner": arch.to_json(), "ranks": ranks}
    return Arch("low_rank", arch.name, arch.args, dims)


def _factored(
    model: ModelState, ranks: dict[str, int], found: dict[str, Directions]
) -> ModelState:
    """The model with factors in place of weights."""
    arch = low_rank_arch(model.arch, ranks)
    new: dict[str, Tensor] = {
        f"{path}.{name}": value
        for path, rank in ranks.items()
        for name, value in factors(found[path], rank).items()
    }
    weights: dict[str, Tensor] = {}
    for name, like in shared_on_meta(arch).state_dict().items():
        value = new.get(name, model.weights.get(name))
        assert value is not None, name
        dtype = like.dtype if name in new else value.dtype
        weights[name] = value.reshape(like.shape).to(dtype).clone().contiguous()
    return ModelState(arch, weights, model.meta | {"low_rank": {"ranks": ranks}})
