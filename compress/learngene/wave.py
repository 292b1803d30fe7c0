"""WAVE: weight templates for adaptive initialisation of variable-sized models (Feng et al., CVPR
2025).

Templates that all layers share are learned inside an auxiliary network, every weight of which is
a sum of Kronecker products of small scalers with templates. A descendant of another size gets
scalers of its own over the same templates. Description and sources: docs/learngenes.md.
"""

from typing import Any, ClassVar

from pydantic import Field

from compress.learngene.shared import Auxiliary
from compress.learngene.templates import TemplateExpand

PAPER = (
    "Feng et al., WAVE: Weight Templates for Adaptive Initialization of Variable-sized Models,"
    " CVPR 2025"
)


class WaveAux(Auxiliary):
    """Train templates and scalers, end to end through the network that they compose."""

    version: ClassVar[int] = 1
    paper: ClassVar[str] = PAPER
    builder: ClassVar[str] = "wave_vit"

    depth: int = Field(12, ge=1, description="layers of the auxiliary network")
    template_dim: int = Field(
        64,
        ge=1,
        description=(
            "width of the templates: it divides embed_dim, and is a multiple of a head's width"
        ),
    )
    num_templates: int = Field(
        12, ge=1, description="templates of each parameter, shared by all layers"
    )

    def network(self) -> dict[str, Any]:
        return {
            name: getattr(self, name)
            for name in ("depth", "template_dim", "num_templates")
        }


class WaveExpand(TemplateExpand):
    """Train scalers of a descendant's width and depth over the incoming templates."""

    version: ClassVar[int] = 1
    paper: ClassVar[str] = PAPER
    builder: ClassVar[str] = "wave_vit"

    def check_width(self, width: int, aux: dict[str, Any]) -> None:
        if width % aux["template_dim"]:
            raise ValueError(
                f"width {width} must be a multiple of the templates' {aux['template_dim']}"
            )
