"""LeTs: learngene with learnable transformation (Xia et al., NeurIPS 2024).

A compact learngene is trained together with what grows it, matrices F in width and
coefficients G in depth, inside an auxiliary network (`trainers.models.lets_vit`). A
descendant of any width and depth in range is read off F and G.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from compress.learngene.shared import (
    Auxiliary,
    Expansion,
    agreed_depth,
    fitted,
    layer_list,
    within,
)
from trainers.data.splits import DataInfo
from trainers.models.arch import Arch, ModelState
from trainers.models.lets_layers import DepthInit, WidthInit

PAPER = (
    "Xia et al., Initializing Variable-sized Vision Transformers from Learngene with"
    " Learnable Transformation, NeurIPS 2024"
)
_Part = Literal["gene", "width", "depth"]


class LetsAux(Auxiliary):
    """Train a learngene and its growth in width and depth, end to end through the network
    that they grow.
    """

    version: ClassVar[int] = 1
    paper: ClassVar[str] = PAPER
    builder: ClassVar[str] = "lets_vit"

    gene_dim: int = Field(
        384,
        ge=1,
        description="width of the learngene, a multiple of embed_dim / num_heads",
    )
    embed_dim: int = Field(768, ge=1, description="auxiliary network's width")
    num_heads: int = Field(
        12,
        ge=1,
        description="heads of the auxiliary network; descendants have heads of that width",
    )
    depth: int = Field(
        16,
        ge=1,
        description=(
            "layers of the auxiliary network; the learngene has two for every four of"
            " them, rounded up"
        ),
    )
    width_init: WidthInit = Field("rand", description="initialisation of F")
    depth_init: DepthInit = Field("stackbert-noisy", description="initialisation of G")
    noise: float = Field(
        0.03,
        ge=0,
        description="of the noisy initialisations: uniform from 0 to this number",
    )
    residual: float | None = Field(
        None,
        gt=0,
        description=(
            "add a trained term to every grown tensor, initialised uniformly between"
            " minus and plus this number"
        ),
    )
    learn: tuple[_Part, ...] = Field(
        ("gene", "width", "depth"), description="what is trained: learngene, F, G"
    )

    def network(self) -> dict[str, Any]:
        names = ("gene_dim", "depth", "width_init", "depth_init", "noise", "residual")
        return {name: getattr(self, name) for name in names} | {
            "learn": list(self.learn)
        }


class LetsExpand(Expansion):
    """Read a descendant of any width and depth in range off the incoming auxiliary network."""

    version: ClassVar[int] = 1
    paper: ClassVar[str] = PAPER
    builder: ClassVar[str] = "lets_vit"

    width: int | None = Field(
        None,
        ge=1,
        description=(
            "from gene_dim to embed_dim, a multiple of a head's width; default:"
            " embed_dim"
        ),
    )
    depth: int | None = Field(
        None, ge=1, description="layers; default: as many as the maps have"
    )
    mapping_layer: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description=(
            "for each layer the auxiliary layer whose learngene pair it uses; default:"
            " evenly spaced"
        ),
    )
    mapping_layer_coeff: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description=(
            "for each layer the first (even) layer of the group whose coefficients it"
            " uses; default: its own"
        ),
    )
    head: Literal["grown", "fresh"] = Field(
        "grown",
        description=(
            "grown: the auxiliary network's, cut to the first classes where the data has"
            " fewer; fresh: newly initialised"
        ),
    )
    _list = field_validator("mapping_layer", "mapping_layer_coeff", mode="before")(
        layer_list
    )

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        aux = self.of_auxiliary(arch)
        layers, groups = self._maps(aux)
        within("mapping_layer", layers, aux["depth"], "layers")
        within(
            "mapping_layer_coeff",
            groups,
            aux["depth"],
            "coefficient groups among layers",
        )
        odd = [group for group in groups if group % 2]
        if odd:
            raise ValueError(
                f"mapping_layer_coeff names {odd[0]}, but coefficient groups begin at"
                " even layers"
            )
        if self.head == "grown" and data.num_classes > aux["num_classes"]:
            raise ValueError(
                f"the data has {data.num_classes} classes, the grown head"
                f" {aux['num_classes']}; set head: fresh"
            )
        head_dim = aux["embed_dim"] // aux["num_heads"]
        width = self.width or aux["embed_dim"]
        if width % head_dim or not aux["gene_dim"] <= width <= aux["embed_dim"]:
            raise ValueError(
                f"width {width} must be a multiple of a head's {head_dim} from"
                f" {aux['gene_dim']} to {aux['embed_dim']}"
            )
        return self.descendant(
            aux, data, depth=len(layers), embed_dim=width, num_heads=width // head_dim
        )

    def _maps(self, aux: dict[str, Any]) -> tuple[list[int], list[int]]:
        """(mapping_layer, mapping_layer_coeff), both given or completed."""
        maps = {
            "mapping_layer": self.mapping_layer,
            "mapping_layer_coeff": self.mapping_layer_coeff,
        }
        depth = agreed_depth(self.depth, maps)
        layers = self.mapping_layer or [i * aux["depth"] // depth for i in range(depth)]
        return list(layers), list(
            self.mapping_layer_coeff or [i // 2 * 2 for i in layers]
        )

    def expand(self, model: ModelState, data: DataInfo, seed: int) -> ModelState:
        from trainers.models.lets_vit import LetsVit

        arch = self.check(model.arch, data)
        layers, groups = self._maps(model.arch.args)
        network = model.build()
        assert isinstance(network, LetsVit)
        weights = network.descendant(arch.args["embed_dim"], layers, groups)
        head: Literal["cut", "fresh"] = "cut" if self.head == "grown" else "fresh"
        return fitted(arch, weights, head, seed, layers)
