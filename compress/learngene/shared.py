"""What the learngene methods share: an auxiliary network that is trained once, and
descendants that start from it.

All networks are ViTs without class token and with mean pooling. Descendants are plain timm ViTs.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from compress.finetune import check_fit, task_objective, with_drop_rates
from compress.metrics import Metric
from compress.stage import Context, Phase, Stage
from trainers.config import DistillConfig, TrainConfig
from trainers.data.splits import DataInfo
from trainers.models.arch import Arch, ModelState, buildable
from trainers.models.parameters import NORM_EPS

DESCENDANT = "vit_base_patch16_224"
"""The timm name of every descendant; its sizes are in the arguments."""


class Auxiliary(Stage, TrainConfig):
    """Trains a new auxiliary network. The incoming model is not used, except as a teacher
    where `distill` says so.
    """

    phase: ClassVar[Phase] = "init"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("aux_params", "parameters of the auxiliary network", "1"),
    )
    trains_sharded: ClassVar[bool] = True
    continues: ClassVar[bool] = True
    builder: ClassVar[str]
    """The network's builder, a key of `trainers.models.arch.BUILDERS`."""

    patch_size: int = Field(16, ge=1, description="pixels")
    embed_dim: int = Field(384, ge=1, description="width")
    num_heads: int = Field(6, ge=1, description="attention heads of a layer")
    norm_eps: float = Field(NORM_EPS, gt=0, description="epsilon of every LayerNorm")
    drop_path: float | None = Field(
        0.1,
        ge=0,
        lt=1,
        description="stochastic depth of the last layer; it rises linearly up to there",
    )
    distill: DistillConfig | None = Field(
        None,
        description=(
            "distillation from a teacher (in the papers soft, alpha 1, tau 1); null:"
            " train on labels alone"
        ),
    )

    @abstractmethod
    def network(self) -> dict[str, Any]:
        """The builder's arguments beside those of all auxiliary networks."""

    def teachers(self) -> list[tuple[str, Path | None]]:
        return (
            [(self.distill.teacher, self.distill.teacher_checkpoint)]
            if self.distill
            else []
        )

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        if self.patch_size > data.image_size:
            raise ValueError(
                f"patch_size: {self.patch_size} pixels are more than the image's"
                f" {data.image_size}; lower it"
            )
        common = {
            "num_classes": data.num_classes,
            "img_size": data.image_size,
            "patch_size": self.patch_size,
            "embed_dim": self.embed_dim,
            "num_heads": self.num_heads,
            "norm_eps": self.norm_eps,
        }
        arch = buildable(Arch(self.builder, self.builder, common | self.network()))
        check_fit(arch, self, data)
        return arch

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        arch = self.check(model.arch, ctx.data.info)
        module = with_drop_rates(arch, self).build()
        module.load_state_dict(ModelState.initialised(arch, ctx.seed).weights)
        ctx.report(aux_params=sum(p.numel() for p in module.parameters()))
        ctx.fit(module, task_objective(self, self.distill, module, ctx), self)
        return ModelState.from_module(arch, module)


class Expansion(Stage):
    """Makes a descendant out of the incoming auxiliary network, without training and
    without data where it does not say otherwise.
    """

    phase: ClassVar[Phase] = "init"
    builder: ClassVar[str]
    """The builder of the incoming auxiliary network."""

    @abstractmethod
    def expand(self, model: ModelState, data: DataInfo, seed: int) -> ModelState:
        """The descendant of an auxiliary network.

        Args:
            model: the auxiliary network.
            data: whose classes and image size the descendant has.
            seed: of a fresh classifier.
        """

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        return self.expand(model, ctx.data.info, ctx.seed)

    def of_auxiliary(self, arch: Arch) -> dict[str, Any]:
        """The auxiliary network's arguments.

        Raises:
            ValueError: another model came in.
        """
        if arch.builder != self.builder:
            stage = self.builder.replace("_vit", "_aux")
            raise ValueError(
                f"this stage needs the auxiliary network of {stage} ({self.builder}); it got"
                f" {arch.name} ({arch.builder}); put {stage} before it"
            )
        return arch.args

    @staticmethod
    def descendant(
        aux: Mapping[str, Any],
        data: DataInfo,
        *,
        depth: int,
        embed_dim: int,
        num_heads: int,
        norm_before_pool: bool = False,
    ) -> Arch:
        """A timm ViT of this size, otherwise as the auxiliary network, for this data."""
        args: dict[str, Any] = {
            "num_classes": data.num_classes,
            "img_size": data.image_size,
            "patch_size": aux["patch_size"],
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "class_token": False,
            "global_pool": "avg",
        }
        if aux["norm_eps"] != NORM_EPS:
            args["norm_eps"] = aux["norm_eps"]
        if norm_before_pool:
            args["fc_norm"] = False
        return buildable(Arch("timm", DESCENDANT, args))


class SizedExpansion(Expansion):
    """Makes a descendant of a depth of its own, with the auxiliary network's classifier where
    both know the same number of classes.
    """

    depth: int | None = Field(
        None, ge=1, description="layers; default: the auxiliary network's"
    )
    head: Literal["copy", "fresh"] = Field(
        "copy",
        description=(
            "copy: the auxiliary network's, where the number of classes is the same;"
            " fresh: newly initialised"
        ),
    )

    def copies_head(self, aux: Mapping[str, Any], data: DataInfo) -> bool:
        """Whether the descendant begins with the classifier of a network of these arguments."""
        return self.head == "copy" and aux["num_classes"] == data.num_classes


def fitted(
    arch: Arch,
    weights: Mapping[str, Tensor],
    head: Literal["cut", "fresh"],
    seed: int,
    source_layers: Sequence[int] = (),
) -> ModelState:
    """A descendant's state from computed weights (timm's names, the final norm as `fc_norm`).

    Positions are resampled where the image size differs (timm's `resample_abs_pos_embed`).

    Args:
        head: `cut`: the computed head's first rows, as many as there are classes; `fresh`:
            the architecture's own.
        seed: of a fresh head.
        source_layers: for each layer the one that it came from, if it came from one; kept
            in `meta`.
    """
    fresh = ModelState.initialised(arch, seed)
    result = {name: value.detach().clone() for name, value in weights.items()}
    if "norm.weight" in fresh.weights:
        result |= {
            f"norm.{part}": result.pop(f"fc_norm.{part}") for part in ("weight", "bias")
        }
    for part in ("weight", "bias"):
        own = fresh.weights[f"head.{part}"]
        result[f"head.{part}"] = (
            own if head == "fresh" else result[f"head.{part}"][: len(own)].clone()
        )
    patches = fresh.weights["pos_embed"].shape[1]
    result["pos_embed"] = resampled_positions(result["pos_embed"], patches)
    return ModelState(
        arch, result, {"source_layers": list(source_layers)} if source_layers else {}
    )


def resampled_positions(positions: Tensor, patches: int) -> Tensor:
    """Position embeddings (…, P, width) of square images for another number of patches."""
    if positions.shape[-2] == patches:
        return positions
    from trainers.timm_library import timm

    side = round(patches**0.5)
    with torch.no_grad():
        each = [
            timm.layers.resample_abs_pos_embed(
                one[None], new_size=[side, side], num_prefix_tokens=0
            )
            for one in positions.flatten(0, -3)
        ]
    return torch.stack(each).view(*positions.shape[:-2], patches, -1)


def layer_list(value: Any) -> Any:
    """For a map's field, before its validation.

    Raises:
        ValueError: a dimension of the search space stands where a list should.
    """
    if isinstance(value, dict):
        raise ValueError(
            "give a list with one number for each layer; a layer map that is to be"
            " searched belongs in search.space"
        )
    return value


def spread(count: int, over: int) -> list[int]:
    """A non-decreasing map of `count` layers onto 0 … over − 1, as evenly as can be,
    earlier ones used more often.

    spread(12, 5) is the map of the SWS paper: 0,0,0,1,1,1,2,2,3,3,4,4. Needs count >= over.
    """
    each, more = divmod(count, over)
    return [i for i in range(over) for _ in range(each + (i < more))]


def within(name: str, values: Sequence[int], limit: int, what: str) -> None:
    """Refuse a layer map that names a layer or stage that does not exist.

    Raises:
        ValueError: names the map, the entry and the limit.
    """
    wrong = [value for value in values if not 0 <= value < limit]
    if wrong:
        raise ValueError(
            f"{name} names {wrong[0]}, but the auxiliary network has {what} 0 to"
            f" {limit - 1}"
        )


def agreed_depth(depth: int | None, maps: Mapping[str, Sequence[int] | None]) -> int:
    """The descendant's depth, from `depth` and from the lengths of its layer maps.

    Raises:
        ValueError: they differ, or there is none of them.
    """
    said = {"depth": depth} | {
        name: None if value is None else len(value) for name, value in maps.items()
    }
    given = {name: count for name, count in said.items() if count is not None}
    if not given:
        raise ValueError(
            f"the descendant's depth is not known; give {' or '.join(said)}"
        )
    if len(set(given.values())) > 1:
        stated = ", ".join(
            f"{name} has {n} layers" if name != "depth" else f"depth is {n}"
            for name, n in given.items()
        )
        raise ValueError(f"{stated}: they must agree")
    return next(iter(given.values()))
