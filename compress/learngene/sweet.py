"""SWEET: self-supervised weight templates (Xie et al., 2026).

The matrices of all layers are one tensor in Tucker form: a core that all sizes share, and scalers
of one size that mix, widen and narrow it. Description and sources: docs/learngenes.md.
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from compress.learngene.shared import Auxiliary
from compress.learngene.templates import TemplateExpand

PAPER = (
    "Xie et al., Self-Supervised Weight Templates for Scalable Vision Model Initialization,"
    " arXiv 2601.19694"
)
_Rank = Annotated[int, Field(ge=1)]


class SweetAux(Auxiliary):
    """Train the core and the scalers of one size, end to end through the network that they
    compose.
    """

    version: ClassVar[int] = 1
    paper: ClassVar[str] = PAPER
    builder: ClassVar[str] = "sweet_vit"

    depth: int = Field(12, ge=1, description="layers of the auxiliary network")
    ranks: tuple[_Rank, _Rank, _Rank] = Field(
        (48, 192, 192),
        description="dimensions of the core: of the mixture, of rows, of columns",
    )
    stochastic_scaling: float = Field(
        0.1,
        ge=0,
        lt=1,
        description=(
            "while training, the core's rows and columns are multiplied by numbers drawn anew"
            " in each step, uniform in 1 ± this"
        ),
    )

    def network(self) -> dict[str, Any]:
        return {
            "depth": self.depth,
            "ranks": list(self.ranks),
            "stochastic_scaling": self.stochastic_scaling,
        }


class SweetExpand(TemplateExpand):
    """Train scalers of a descendant's width and depth over the incoming core."""

    version: ClassVar[int] = 1
    paper: ClassVar[str] = PAPER
    builder: ClassVar[str] = "sweet_vit"

    def check_width(self, width: int, aux: dict[str, Any]) -> None:
        """Every multiple of a head's width will do."""
