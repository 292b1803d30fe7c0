"""The options of the stage `prune_channels`."""

from fnmatch import fnmatch
from typing import Literal

from pydantic import Field, model_validator

from compress.budget import Target
from compress.channels.choice import GroupRule
from compress.channels.importance import ImportanceName, Normalisation
from compress.channels.layout import Group, Layout
from compress.compensation import COMPENSATE_IMAGES
from compress.measure.multiples import chunk_size
from compress.measure.options import RuntimeOptions
from trainers.config import TrainConfig


class ChannelOptions(TrainConfig):
    """How the channels of a model are pruned."""

    target: Target = Field(
        Target(latency=0.5),
        description=(
            "what the result may cost: {latency: 0.5}, {macs: 0.5}, {params: 0.5} or"
            " {bytes: 0.5} of the incoming model's, or {latency_ms: 5} a batch"
        ),
    )
    latency: RuntimeOptions = Field(
        RuntimeOptions(),
        description="where and how latency is measured, for a target of latency",
    )
    importance: ImportanceName = Field(
        "hessian",
        description=(
            "what ranks the units. hessian: squared first-order term, as NViT; taylor: its"
            " absolute value; activation: energy that the next layers get from a unit;"
            " magnitude: of its weights; random"
        ),
    )
    normalisation: Normalisation = Field(
        "none",
        description=(
            "what importance is divided by. none: nothing; mean: the mean of the unit's"
            " group; isomorphic: the mean of all groups of the same form"
        ),
    )
    pruning: Literal["one_shot", "iterative"] = Field(
        "one_shot",
        description=(
            "one_shot: everything is removed at once, then the model is tuned; iterative:"
            " removed in `intervals` steps over `prune_epochs` of training, then tuned"
        ),
    )
    prune_epochs: int = Field(
        1, ge=1, description="epochs of iterative pruning, before tuning"
    )
    intervals: int = Field(10, ge=1, description="steps of iterative pruning")
    importance_images: int = Field(
        512, ge=1, description="training images that importance looks at, if one_shot"
    )
    exclude: list[str] = Field(
        [],
        description="patterns of layers that lose nothing, such as layer4.* or stem.*",
    )
    least: float = Field(
        0.1, ge=0, le=1, description="share of each group's units that stays at least"
    )
    floors: dict[str, float] = Field(
        {},
        description="pattern of layers → the same for the groups in which they are",
    )
    multiple: int | None = Field(
        None,
        ge=1,
        description=(
            "so many units of a group stay, or a multiple of it. Default: for a target of"
            " latency what the runtime takes at a time, which is measured, where a group"
            " has two of them; else the largest of 8, 4, 2, 1 of which a group has 8 or more"
        ),
    )
    blocks: bool = Field(
        False,
        description=(
            "residual blocks may go as a whole (one_shot); a cut without that is made, too,"
            " and the one stays that says more nearly what the incoming model says"
        ),
    )
    compensate: bool = Field(
        True,
        description=(
            "what is cut is replaced by what stays, by least squares on"
            " `compensate_images`, without labels"
        ),
    )
    compensate_images: int = Field(
        COMPENSATE_IMAGES,
        ge=1,
        description="training images that `compensate` looks at, at evaluation's crop",
    )
    distill_weight: float = Field(
        0.5,
        ge=0,
        le=1,
        description="weight of the incoming model's logits beside the labels, in training",
    )
    epochs: int = Field(10, ge=0, description="of tuning after the cut; 0: none")
    lr: float = Field(1e-3, gt=0, description="at a global batch of 512")

    @model_validator(mode="after")
    def _fits_together(self) -> "ChannelOptions":
        if self.blocks and self.pruning == "iterative":
            raise ValueError(
                "blocks: whole blocks go in one step only; set pruning to one_shot, or"
                " blocks to false"
            )
        if self.pruning == "iterative" and self.grad_checkpointing:
            raise ValueError(
                "grad_checkpointing: iterative pruning masks norms while a pass runs, not"
                " while it is computed again; set pruning to one_shot, or leave it out"
            )
        wrong = {k: v for k, v in self.floors.items() if not 0 <= v <= 1}
        if wrong:
            pattern, share = next(iter(wrong.items()))
            raise ValueError(
                f"floors: the share of {pattern!r} is {share}; it lies between 0 and 1"
            )
        return self

    def check_patterns(self, layout: Layout) -> None:
        """Refuse patterns that no layer has.

        Raises:
            ValueError: names the pattern and some layers.
        """
        known = {
            name
            for group in layout.groups
            for tensor, _ in group.axes
            for name in (tensor, tensor.rpartition(".")[0])
        }
        for option in ("exclude", "floors"):
            for pattern in getattr(self, option):
                if not any(fnmatch(name, pattern) for name in known):
                    some = ", ".join(sorted(known)[:4])
                    raise ValueError(
                        f"{option}: no layer that could lose channels is called {pattern!r};"
                        f" such layers are {some}, …"
                    )

    def rules(self, layout: Layout, liked: int | None = None) -> list[GroupRule]:
        """What may become of each group of a model.

        Args:
            liked: channels that the runtime takes at a time, where that was measured.
        """
        return [
            self._rule(group, self._chunk(group, layout, liked))
            for group in layout.groups
        ]

    def _chunk(self, group: Group, layout: Layout, liked: int | None) -> int:
        """How many units of a group go together."""
        size = len(group.units)
        if self.multiple is not None:
            return self.multiple
        if liked is None:
            return next(n for n in (8, 4, 2, 1) if size >= 8 * n or n == 1)
        return chunk_size(size, liked // layout.channels_per_unit(group))

    def _rule(self, group: Group, chunk: int) -> GroupRule:
        size = len(group.units)
        tensors = [name for name, _ in group.axes]
        layers = {*tensors, *(name.rpartition(".")[0] for name in tensors)}

        def among(pattern: str) -> bool:
            return any(fnmatch(layer, pattern) for layer in layers)

        if any(among(pattern) for pattern in self.exclude):
            return GroupRule(size, 1)
        floors = [share for pattern, share in self.floors.items() if among(pattern)]
        share = max([self.least, *floors])
        least = -(-max(1, round(share * size)) // chunk) * chunk
        return GroupRule(min(size, least), chunk)
