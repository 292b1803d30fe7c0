"""TLEG: Transformer as Linear Expansion of learnGene (Xia et al., AAAI 2024).

Two parameter sets A and B are learned inside an auxiliary network whose layer l = 1 … L is
B + (l − 1)/(L − 1)·A; a descendant of any depth takes evenly spaced points of the same
line.
"""

from typing import Any, ClassVar

from pydantic import Field

from compress.learngene.shared import Auxiliary, SizedExpansion, fitted
from trainers.data.splits import DataInfo
from trainers.models.arch import Arch, ModelState

PAPER = "Xia et al., Transformer as Linear Expansion of Learngene, AAAI 2024"


class TlegAux(Auxiliary):
    """Train the auxiliary network of TLEG: every layer is a point of one line between two
    parameter sets.
    """

    version: ClassVar[int] = 1
    paper: ClassVar[str] = PAPER
    builder: ClassVar[str] = "tleg_vit"

    depth: int = Field(16, ge=1, description="layers")

    def network(self) -> dict[str, Any]:
        return {"depth": self.depth}


class TlegExpand(SizedExpansion):
    """Make a descendant whose layers are evenly spaced on the line of the incoming
    auxiliary network.
    """

    version: ClassVar[int] = 1
    paper: ClassVar[str] = PAPER
    builder: ClassVar[str] = "tleg_vit"

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        aux = self.of_auxiliary(arch)
        return self.descendant(
            aux,
            data,
            depth=self.depth or aux["depth"],
            embed_dim=aux["embed_dim"],
            num_heads=aux["num_heads"],
        )

    def expand(self, model: ModelState, data: DataInfo, seed: int) -> ModelState:
        from trainers.models.mean_vit import state_of
        from trainers.models.shared_vit import TlegVit

        arch = self.check(model.arch, data)
        network = model.build()
        assert isinstance(network, TlegVit)
        weights = state_of(
            network.outer_weights(), network.layer_weights(arch.args["depth"])
        )
        same = self.copies_head(model.arch.args, data)
        return fitted(arch, weights, "cut" if same else "fresh", seed)
