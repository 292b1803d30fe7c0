"""What WAVE and SWEET share: an expansion that trains the scalers of the descendant's size, while
the templates of the auxiliary network stay as they are.
"""

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field

from compress.finetune import check_fit, with_drop_rates
from compress.learngene.shared import SizedExpansion, fitted, resampled_positions
from compress.metrics import Metric
from compress.stage import Context
from trainers.config import TrainConfig
from trainers.data.splits import DataInfo
from trainers.models.arch import Arch, ModelState, buildable
from trainers.training.losses import TaskObjective

if TYPE_CHECKING:
    from trainers.models.template_vit import TemplateVit


class TemplateExpand(SizedExpansion, TrainConfig):
    """Makes a descendant of any width and depth: scalers of its own, trained for a while over the
    incoming network's templates. A fresh classifier is trained with them.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("scaler_params", "parameters trained for the descendant's size", "1"),
    )
    trains_sharded: ClassVar[bool] = True

    epochs: int = Field(
        1, ge=0, description="length of the scalers' training; 0: they are not trained"
    )
    width: int | None = Field(
        None, ge=1, description="default: the auxiliary network's"
    )
    scalers: Literal["inherit", "fresh"] = Field(
        "inherit",
        description=(
            "where they start. inherit: from the auxiliary network's, layers evenly spaced,"
            " as far as its width goes; fresh: random"
        ),
    )

    @abstractmethod
    def check_width(self, width: int, aux: dict[str, Any]) -> None:
        """Refuse a width that the templates do not give.

        Raises:
            ValueError: names the width and what it must be.
        """

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        aux = self.of_auxiliary(arch)
        network = self.network_arch(arch, data)
        check_fit(network, self, data)
        return self.descendant(
            aux,
            data,
            depth=network.args["depth"],
            embed_dim=network.args["embed_dim"],
            num_heads=network.args["num_heads"],
        )

    def network_arch(self, arch: Arch, data: DataInfo) -> Arch:
        """A network of the auxiliary one's kind, of the descendant's size and for its data."""
        aux = self.of_auxiliary(arch)
        width = self.width or aux["embed_dim"]
        head_dim = aux["embed_dim"] // aux["num_heads"]
        if width % head_dim:
            raise ValueError(f"width {width} must be a multiple of a head's {head_dim}")
        self.check_width(width, aux)
        own = {
            "embed_dim": width,
            "num_heads": width // head_dim,
            "depth": self.depth or aux["depth"],
            "num_classes": data.num_classes,
            "img_size": data.image_size,
            "learn": ["scalers"]
            if self.copies_head(aux, data)
            else ["scalers", "head"],
        }
        return buildable(replace(arch, args=aux | own))

    def _layers(self, aux: dict[str, Any]) -> list[int]:
        """For each layer the auxiliary network's whose scalers it starts from."""
        depth = self.depth or aux["depth"]
        return [i * aux["depth"] // depth for i in range(depth)]

    def _start(self, model: ModelState, data: DataInfo, seed: int) -> ModelState:
        """A network of the descendant's size over the auxiliary network's templates."""
        arch = self.network_arch(model.arch, data)
        network, auxiliary = _built(ModelState.initialised(arch, seed)), _built(model)
        copies_head = self.copies_head(model.arch.args, data)
        with torch.no_grad():
            for name, own in network.templates.items():
                if name.startswith("head") and not copies_head:
                    continue
                given = auxiliary.templates[name]
                if name == "pos_embed":
                    given = resampled_positions(given, own.shape[-2])
                own.copy_(given)
        if self.scalers == "inherit":
            network.inherit(auxiliary, self._layers(model.arch.args))
        return ModelState.from_module(arch, network)

    def _expanded(
        self, network: ModelState, model: ModelState, data: DataInfo, seed: int
    ) -> ModelState:
        """The plain ViT that a network of the descendant's size computes."""
        from trainers.models.mean_vit import state_of

        with torch.no_grad():
            weights = state_of(*_built(network).weights())
        layers = self._layers(model.arch.args) if self.scalers == "inherit" else []
        return fitted(self.check(model.arch, data), weights, "cut", seed, layers)

    def expand(self, model: ModelState, data: DataInfo, seed: int) -> ModelState:
        """The descendant as it is before its scalers are trained."""
        return self._expanded(self._start(model, data, seed), model, data, seed)

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        start = self._start(model, ctx.data.info, ctx.seed)
        module = with_drop_rates(start.arch, self).build()
        module.load_state_dict(start.weights)
        learned = sum(p.numel() for p in module.parameters() if p.requires_grad)
        ctx.report(scaler_params=learned)
        if self.epochs:
            ctx.fit(module, TaskObjective(self.label_smoothing), self)
        trained = ModelState.from_module(start.arch, module)
        return self._expanded(trained, model, ctx.data.info, ctx.seed)


def _built(state: ModelState) -> "TemplateVit":
    from trainers.models.template_vit import TemplateVit

    network = state.build()
    assert isinstance(network, TemplateVit)
    return network
