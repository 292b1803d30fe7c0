"""Token merging as a stage: a ViT that drops its most similar tokens block by block.

Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023. The maths is in
`trainers.models.token_merging`. Weights stay as they are; what is trained afterwards is
trained with merging.
"""

from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from compress.metrics import Metric
from compress.stage import Context, Phase, Stage
from trainers.data.splits import DataInfo
from trainers.models.arch import Arch, ModelState, shared_on_meta
from trainers.models.from_timm import dense_arch, from_timm
from trainers.models.token_merging import (
    MergingSchedule,
    tokens_left,
    tokens_merged,
)


class TokenMerging(Stage):
    """Merge the most similar tokens of a ViT in every block: faster, without training."""

    phase: ClassVar[Phase] = "prune"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Bolya et al., Token Merging: Your ViT But Faster, ICLR 2023"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("tokens_before", "tokens of the first block", "1"),
        Metric("tokens_left", "tokens that the last block leaves", "1"),
    )

    r: int = Field(
        8,
        ge=0,
        description=(
            "tokens merged in a block, at most half of its patches; 0: none. The paper has"
            " 8 to 16 of 197"
        ),
    )
    schedule: MergingSchedule = Field(
        "constant",
        description=(
            "constant: r in every block; decreasing: from 2r in the first to 0 in the last"
        ),
    )

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        """The same ViT with merging.

        Raises:
            ValueError: not a plain or distilled ViT.
        """
        dense = dense_arch(arch)
        merged = tokens_merged(self.r, len(dense.dims["heads"]), self.schedule)
        return replace(dense, args=dense.args | {"merge": merged})

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        arch = self.check(model.arch, ctx.data.info)
        weights = from_timm(model).weights
        left = tokens_left(*_tokens(arch), arch.args["merge"])
        ctx.report(tokens_before=left[0], tokens_left=left[-1])
        return ModelState(
            arch, {name: value.clone() for name, value in weights.items()}, model.meta
        )


def _tokens(arch: Arch) -> tuple[int, int]:
    """Tokens of a `pruned_vit`, and prefix tokens among them."""
    vit: Any = shared_on_meta(arch)
    prefix: int = vit.num_prefix_tokens
    return vit.patch_embed.num_patches + prefix, prefix
