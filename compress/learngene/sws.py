"""SWS: stage-wise weight sharing (Xia et al., IJCAI 2024).

A few stages of layers are learned once, inside an auxiliary network that repeats them;
descendants of any depth copy for each of their layers one stage, and are then trained
without sharing.

The published networks differ between the two phases: the auxiliary one has eps 1e-5 and its final
norm before the pooling, descendants have eps 1e-6 and timm's order, pool first. Here a descendant
is by default as its auxiliary network, so that the one with its own map gives the same logits;
`norm_before_pool` and `norm_eps` of both stages give the published ones.
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator

from compress.learngene.shared import (
    Auxiliary,
    SizedExpansion,
    agreed_depth,
    fitted,
    layer_list,
    spread,
    within,
)
from trainers.data.splits import DataInfo
from trainers.hashing import LATER
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


class SwsExpand(SizedExpansion):
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
        None, ge=1, description="default: the auxiliary network's; see regroup_heads"
    )
    regroup_heads: Annotated[bool, LATER] = Field(
        False,
        description=(
            "let num_heads differ from the auxiliary network's, as in the published small"
            " networks (12 and 6): a descendant's heads then take other channels together"
            " than those that were trained together"
        ),
    )
    norm_before_pool: bool | None = Field(
        None, description="default: as in the auxiliary network"
    )
    norm_eps: Annotated[float | None, LATER] = Field(
        None,
        gt=0,
        description="epsilon of every LayerNorm; default: the auxiliary network's",
    )
    _list = field_validator("layers_source", mode="before")(layer_list)

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        aux = self.of_auxiliary(arch)
        stages = self._stages(aux)
        within("layers_source", stages, len(aux["repeats"]), "stages")
        num_heads = self.num_heads or aux["num_heads"]
        if num_heads != aux["num_heads"] and not self.regroup_heads:
            raise ValueError(
                f"num_heads: it is {self.num_heads}, but the auxiliary network has"
                f" {aux['num_heads']}; leave it out, or set regroup_heads to true"
            )
        before = (
            aux["norm_before_pool"]
            if self.norm_before_pool is None
            else self.norm_before_pool
        )
        eps = aux["norm_eps"] if self.norm_eps is None else self.norm_eps
        return self.descendant(
            {**aux, "norm_eps": eps},
            data,
            depth=len(stages),
            embed_dim=aux["embed_dim"],
            num_heads=num_heads,
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
        weights = state_of(network.outer_weights(), network.layer_weights(stages))
        same = self.copies_head(model.arch.args, data)
        return fitted(arch, weights, "cut" if same else "fresh", seed, stages)
