"""Low rank: linear layers and 1×1 convolutions become products of two smaller ones.

The factors lose least of what a layer computes on real inputs (`factors`), and the ranks least
of all layers' outputs together under a budget (`ranks`). Neither labels nor training; a
`finetune` after it gets back what was lost.
"""

from typing import ClassVar

from pydantic import Field, model_validator
from torch import Tensor

from compress.budget import Target
from compress.compensation import COMPENSATE_IMAGES, input_moments
from compress.low_rank.factors import Directions, directions, factors
from compress.low_rank.layers import LayerSize, factorable
from compress.low_rank.ranks import Option, choose, rank_options
from compress.measure.model import PASS_ERRORS, forward_pass
from compress.metrics import Metric
from compress.stage import Context, Phase, Stage
from trainers.data.splits import DataInfo
from trainers.models.arch import Arch, ModelState, on_meta


class LowRank(Stage):
    """Factor linear layers and 1×1 convolutions, by what they compute on training images, until
    a budget is met.
    """

    phase: ClassVar[Phase] = "prune"
    version: ClassVar[int] = 1
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
            "what the target counts, over that of the incoming model",
            "1",
        ),
    )

    target: Target = Field(
        Target(macs=0.7),
        description=(
            "what the result may cost: {macs: 0.7}, {params: 0.7} or {bytes: 0.7} of the"
            " incoming model's"
        ),
    )
    images: int = Field(
        COMPENSATE_IMAGES,
        ge=0,
        description=(
            "training images, without labels, by which directions are weighted; 0: none,"
            " the plain SVD of the weights"
        ),
    )
    rank_multiple: int = Field(
        1, ge=1, description="ranks are multiples of it; 8 suits most kernels"
    )
    full_rank_layers: tuple[str, ...] = Field(
        (),
        description="patterns of layers that stay as they are, such as blocks.0.*",
    )

    @model_validator(mode="after")
    def _counts(self) -> "LowRank":
        if self.target.quantity == "latency":
            raise ValueError(
                f"target: {self.target.describe()}: ranks are chosen by what can be"
                " counted; write {macs: …}, {params: …} or {bytes: …}"
            )
        return self

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        """The architecture with every rank open.

        Raises:
            ValueError: no layer can be factored, or the target is out of reach.
        """
        sizes = self._sizes(arch, data.image_size)
        total = self._total(arch, data.image_size)
        least = total - sum(
            options[-1].cost - min(o.cost for o in options)
            for options in self._options(sizes, {}).values()
        )
        if least > self.target.limit(total):
            raise ValueError(
                f"target: {self.target.describe()} is out of reach: with rank"
                f" {self.rank_multiple} in all {len(sizes)} layers that can be factored"
                f" it is {least / total:.3g}; raise it"
            )
        smallest = low_rank_arch(arch, dict.fromkeys(sizes, 1))
        try:
            forward_pass(smallest, data.image_size)
        except PASS_ERRORS as error:
            raise ValueError(
                f"{arch.name} does not run with factored layers ({error}); name those that"
                " it looks into in full_rank_layers"
            ) from error
        return low_rank_arch(arch, {})

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        size = ctx.data.info.image_size
        sizes = self._sizes(model.arch, size)
        found = self._directions(model, sizes, ctx)
        total = self._total(model.arch, size)
        options = self._options(sizes, found)
        as_they_are = sum(each[-1].cost for each in options.values())
        limit = self.target.limit(total)
        chosen = choose(options, as_they_are - (total - limit))
        assert chosen is not None, "`check` has seen that it can be reached"
        saved = as_they_are - sum(option.cost for option in chosen.values())
        factored = {name: o for name, o in chosen.items() if o.rank is not None}
        losses = [option.loss for option in factored.values()]
        ctx.report(
            low_rank_layers=len(factored),
            low_rank_lost=sum(losses) / max(1, len(losses)),
            low_rank_cost_ratio=1 - saved / total,
        )
        return _factored(model, {n: o.rank or 1 for n, o in factored.items()}, found)

    def _sizes(self, arch: Arch, image_size: int) -> dict[str, LayerSize]:
        """Layers that can be factored.

        Raises:
            ValueError: there is none.
        """
        sizes = factorable(arch, image_size, self.full_rank_layers)
        quantity = self.target.quantity
        sizes = {
            path: size
            for path, size in sizes.items()
            if self.rank_multiple * size.cost_of_rank(quantity)
            < size.cost_as_is(quantity)
        }
        if not sizes:
            raise ValueError(
                f"{arch.name} has no Linear layer and no 1×1 convolution, besides its"
                " classifier, that gets smaller by a rank of"
                f" {self.rank_multiple}; nvit, wfn and the quantize stages take other layers"
            )
        return sizes

    def _total(self, arch: Arch, image_size: int) -> float:
        """What the model costs, in the target's unit."""
        if self.target.quantity == "bytes":
            state = on_meta(arch).state_dict()
            return sum(t.numel() * t.element_size() for t in state.values())
        found = forward_pass(arch, image_size)
        is_params = self.target.quantity == "params"
        return found.num_params if is_params else found.gmacs * 1e9

    def _options(
        self, sizes: dict[str, LayerSize], found: dict[str, Directions]
    ) -> dict[str, list[Option]]:
        """Path → options, with equal energies where a layer's are not known."""
        quantity = self.target.quantity
        result = {}
        for path, size in sizes.items():
            known = found.get(path)
            ones = [1.0] * min(size.inputs, size.outputs)
            result[path] = rank_options(
                ones if known is None else known.energies.tolist(),
                cost_of_rank=size.cost_of_rank(quantity),
                cost_as_is=size.cost_as_is(quantity),
                multiple=self.rank_multiple,
            )
        return result

    def _directions(
        self, model: ModelState, sizes: dict[str, LayerSize], ctx: Context
    ) -> dict[str, Directions]:
        module = model.build().to(ctx.device)
        moments = input_moments(module, sizes.keys(), ctx.images(self.images)).moments
        return {
            path: directions(
                module.get_submodule(path), moments[path] if self.images else None
            )
            for path in sizes
        }


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
    for name, like in on_meta(arch).state_dict().items():
        value = new.get(name, model.weights.get(name))
        assert value is not None, name
        dtype = like.dtype if name in new else value.dtype
        weights[name] = value.reshape(like.shape).to(dtype).clone().contiguous()
    return ModelState(arch, weights, model.meta | {"low_rank": {"ranks": ranks}})
