"""SWS: stage-wise weight sharing (Xia et al., IJCAI 2024).

A few stages of layers are learned once, inside an auxiliary network that repeats them;
descendants of any depth copy for each of their layers one stage, and are then trained
without sharing.

Differences of the published networks that are not kept: eps 1e-5 in the auxiliary network
but 1e-6 in descendants (here `norm_eps`, the same in both), 12 heads but 6 (here one
`num_heads`), the final norm before the pooling but after it in descendants (here timm's
order, pool first, in both; `norm_before_pool` gives the published auxiliary network).
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from compress.learngene.shared import (
    Auxiliary,
    Expansion,
    agreed_depth,
    fitted,
    layer_list,
    spread,
    within,
)
from trainers.data.splits import DataInfo
from trainers.models.arch import Arch, ModelState

PAPER = (
    "Xia et al., Efficient Initialization of Variable-sized Transformer Models via"
    " Stage-wise Weight Sharing, IJCAI 2024"
)


class SwsAux(Auxiliary):
    """Train the auxiliary network of SWS: all layers of one stage share every parameter."""

    version: ClassVar[int] = 1
    paper: ClassVar[str] = PAPER
    builder: ClassVar[str] = "sws_vit"

    repeats: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (3, 3, 4, 3, 3), min_length=1, description="layers of each stage"
    )
    norm_before_pool: bool = Field(
        False,
        description=(
            "norm before pooling, as the published network; false: pool, then norm, as"
            " timm does"
        ),
    )

    def network(self) -> dict[str, Any]:
        return {
            "repeats": list(self.repeats),
            "norm_before_pool": self.norm_before_pool,
        }


class SwsExpand(Expansion):
    """Make a descendant whose every layer is a copy of one stage of the incoming auxiliary
    network.
    """

    version: ClassVar[int] = 1
    paper: ClassVar[str] = PAPER
    builder: ClassVar[str] = "sws_vit"

    layers_source: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description=(
            "for each layer the stage that it copies; default: the stages spread evenly"
            " over `depth`"
        ),
    )
    depth: int | None = Field(
        None, ge=1, description="layers; default: as many as layers_source has"
    )
    num_heads: int | None = Field(
        None, ge=1, description="must be the auxiliary network's, which is the default"
    )
    norm_before_pool: bool | None = Field(
        None, description="default: as in the auxiliary network"
    )
    head: Literal["copy", "fresh"] = Field(
        "copy",
        description=(
            "copy: the auxiliary network's, where the number of classes is the same;"
            " fresh: newly initialised"
        ),
    )
    _list = field_validator("layers_source", mode="before")(layer_list)

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        aux = self.of_auxiliary(arch)
        stages = self._stages(aux)
        within("layers_source", stages, len(aux["repeats"]), "stages")
        if self.num_heads not in (None, aux["num_heads"]):
            raise ValueError(
                f"num_heads: it is {self.num_heads}, but the auxiliary network has"
                f" {aux['num_heads']}; leave it out"
            )
        before = (
            aux["norm_before_pool"]
            if self.norm_before_pool is None
            else self.norm_before_pool
        )
        return self.descendant(
            aux,
            data,
            depth=len(stages),
            embed_dim=aux["embed_dim"],
            num_heads=aux["num_heads"],
            norm_before_pool=before,
        )

    def _stages(self, aux: dict[str, Any]) -> list[int]:
        """For each layer of the descendant the stage that it copies."""
        depth = agreed_depth(self.depth, {"layers_source": self.layers_source})
        stages = len(aux["repeats"])
        if self.layers_source is not None:
            return list(self.layers_source)
        if depth < stages:
            raise ValueError(
                f"depth {depth} is less than the {stages} stages; say which it uses in"
                " layers_source"
            )
        return spread(depth, stages)

    def expand(self, model: ModelState, data: DataInfo, seed: int) -> ModelState:
        from trainers.models.mean_vit import state_of
        from trainers.models.shared_vit import SwsVit

        arch = self.check(model.arch, data)
        stages = self._stages(model.arch.args)
        network = model.build()
        assert isinstance(network, SwsVit)
        same = (
            self.head == "copy"
            and arch.args["num_classes"] == model.arch.args["num_classes"]
        )
        weights = state_of(network.outer_weights(), network.layer_weights(stages))
        return fitted(arch, weights, "cut" if same else "fresh", seed, stages)
