"""Networks whose weights are composed of shared templates and scalers of their own size: WAVE
and SWEET.

Legend: see `trainers.models.template_layers`. Templates of one network fit networks of every
width and depth; a network of another size has scalers of other shapes.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainers.models.mean_vit import MeanVit, Weights, template
from trainers.models.parameters import NORM_EPS
from trainers.models.template_layers import (
    MATRICES,
    VECTORS,
    as_layers,
    inherited,
    kronecker,
    tucker,
)
from trainers.timm_library import timm


class TemplateVit(MeanVit):
    """A ViT of width D and depth L whose weights are composed in every forward pass.

    Args:
        embed_dim, depth, num_heads: size of the network.
        norm_eps, drop_rate, drop_path_rate: see `MeanVit`.

    Parameters: `templates` and `scalers`, by name.
    """

    by_layer: ClassVar[frozenset[str]]
    """Scalers whose first dimension is layers."""

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        norm_eps: float = NORM_EPS,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(
            depth=depth,
            num_heads=num_heads,
            norm_eps=norm_eps,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
        )
        if embed_dim % num_heads:
            raise ValueError(
                f"embed_dim {embed_dim} must be a multiple of num_heads {num_heads}"
            )
        self.embed_dim = embed_dim
        self.depth = depth

    def _hold(
        self,
        templates: dict[str, Tensor],
        scalers: dict[str, Tensor],
        learn: Sequence[str],
    ) -> None:
        """Make these the network's parameters.

        Args:
            templates: of shapes that do not depend on the network's width and depth.
            scalers: for its width and depth.
            learn: which of `templates`, `scalers` and `head` (the templates of the classifier)
                are trained.
        """
        self.templates = nn.ParameterDict(templates)
        self.scalers = nn.ParameterDict(scalers)
        for name, part in self.templates.items():
            part.requires_grad_(
                "templates" in learn or ("head" in learn and name.startswith("head"))
            )
        self.scalers.requires_grad_("scalers" in learn)

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimisers must not decay, though they are matrices: scalers,
        templates of vectors and of positions.
        """
        vectors = ("_bias", "norm1_weight", "norm2_weight", "fc_norm_weight", "vectors")
        undecayed = {
            f"templates.{name}"
            for name in self.templates
            if name == "pos_embed" or name.endswith(vectors)
        }
        return undecayed | {f"scalers.{name}" for name in self.scalers}

    @torch.no_grad()
    def inherit(self, other: "TemplateVit", layers: list[int]) -> None:
        """Take over the scalers of a network of another size, as far as they go.

        Args:
            layers: for each layer the one of `other` whose scalers it gets.
        """
        found = inherited(
            dict(self.scalers.items()),
            dict(other.scalers.items()),
            layers,
            self.by_layer,
        )
        for name, value in found.items():
            self.scalers[name].copy_(value)


# ------------------------------------------------------------------ WAVE

_BLOCK = (
    "norm1.weight",
    "norm1.bias",
    *(f"attn.{which}.{part}" for part in ("weight", "bias") for which in "qkv"),
    "attn.proj.weight",
    "attn.proj.bias",
    "norm2.weight",
    "norm2.bias",
    "mlp.fc1.weight",
    "mlp.fc1.bias",
    "mlp.fc2.weight",
    "mlp.fc2.bias",
)
_OUTER = (
    "patch_embed.proj.weight",
    "patch_embed.proj.bias",
    "pos_embed",
    "fc_norm.weight",
    "fc_norm.bias",
    "head.weight",
    "head.bias",
)
_GROWS = {
    "patch_embed.proj.weight": (0,),
    "pos_embed": (2,),
    "head.weight": (1,),
    "head.bias": (),
}
"""Dimensions that grow with the width; of all other parameters each does."""


def _key(name: str) -> str:
    """A parameter's name as torch allows it within a `ParameterDict`."""
    return name.replace(".", "_")


class WaveVit(TemplateVit):
    """WAVE: every parameter is a sum of Kronecker products of scalers and templates.

    Args:
        img_size, patch_size: pixels.
        template_dim: width w of the templates; it divides `embed_dim`, and a head's width divides
            it.
        num_templates: N, of each parameter.
        learn: see `_hold`.
        size: of the network, see `TemplateVit`.

    Raises:
        ValueError: widths that do not fit.
    """

    by_layer = frozenset(_key(name) for name in _BLOCK)

    def __init__(
        self,
        *,
        img_size: int,
        patch_size: int,
        template_dim: int,
        num_templates: int,
        num_classes: int,
        learn: Sequence[str] = ("templates", "scalers"),
        **size: Any,
    ) -> None:
        super().__init__(**size)
        head_dim = self.embed_dim // self.num_heads
        if self.embed_dim % template_dim or template_dim % head_dim:
            raise ValueError(
                f"template_dim {template_dim} must divide embed_dim {self.embed_dim}, and be a"
                f" multiple of a head's width, embed_dim / num_heads ({head_dim})"
            )
        vits = [
            template(
                img_size=img_size,
                patch_size=patch_size,
                embed_dim=template_dim,
                depth=1,
                num_heads=template_dim // head_dim,
                num_classes=num_classes,
                norm_eps=self.norm_eps,
            )
            for _ in range(num_templates)
        ]
        each = [_separated(dict(vit.named_parameters())) for vit in vits]
        templates = {
            _key(name): torch.stack([own[name].detach() for own in each])
            for name in (*_OUTER, *_BLOCK)
        }
        multiple = self.embed_dim // template_dim
        self._hold(templates, self._initial_scalers(templates, multiple), learn)

    def _initial_scalers(
        self, templates: dict[str, Tensor], multiple: int
    ) -> dict[str, Tensor]:
        """Of matrices normal, so that a composed weight has the variance of a template's; of
        vectors 1 / N.
        """
        scalers: dict[str, Tensor] = {}
        for name in (*_OUTER, *_BLOCK):
            count, *sizes = templates[_key(name)].shape
            grows = _GROWS.get(name, range(len(sizes)))
            multiples = [multiple if i in grows else 1 for i in range(len(sizes))]
            layers = self.depth if name in _BLOCK else 1
            shape = (layers, count, *multiples)
            scalers[_key(name)] = (
                torch.full(shape, 1 / count)
                if len(sizes) == 1
                else torch.randn(shape) / count**0.5
            )
        return scalers

    def _composed(self, name: str) -> Tensor:
        """(layers, …): a parameter of all layers, or of one that is outside them."""
        return kronecker(self.templates[_key(name)], self.scalers[_key(name)])

    def outer_weights(self) -> Weights:
        return {name: self._composed(name)[0] for name in _OUTER}

    def layer_weights(self) -> Sequence[Weights]:
        composed = {name: self._composed(name) for name in _BLOCK}
        for part in ("weight", "bias"):
            each = [composed.pop(f"attn.{which}.{part}") for which in "qkv"]
            composed[f"attn.qkv.{part}"] = torch.cat(each, dim=1)
        return [
            {name: values[layer] for name, values in composed.items()}
            for layer in range(self.depth)
        ]


def _separated(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ViT of one layer with q, k and v apart, its layer's names without their prefix."""
    own = {name.removeprefix("blocks.0."): value for name, value in parameters.items()}
    for part in ("weight", "bias"):
        each = own.pop(f"attn.qkv.{part}").chunk(3)
        own |= {
            f"attn.{which}.{part}": value
            for which, value in zip("qkv", each, strict=True)
        }
    return own


# ------------------------------------------------------------------ SWEET


class SweetVit(TemplateVit):
    """SWEET: the matrices of all layers are one tensor in Tucker form.

    Args:
        img_size, patch_size: pixels.
        ranks: r1, r2, r3 of the core.
        stochastic_scaling: in training the core's second and third dimension are multiplied by
            numbers drawn anew in each pass, uniform in 1 ± this.
        learn: see `_hold`.
        size: of the network, see `TemplateVit`.
    """

    by_layer = frozenset({"mix", "mix_vectors"})

    def __init__(
        self,
        *,
        img_size: int,
        patch_size: int,
        ranks: Sequence[int],
        num_classes: int,
        stochastic_scaling: float = 0.0,
        learn: Sequence[str] = ("templates", "scalers"),
        **size: Any,
    ) -> None:
        super().__init__(**size)
        r1, r2, r3 = ranks
        self.stochastic_scaling = stochastic_scaling
        patch = timm.layers.PatchEmbed(img_size, patch_size, 3, r2)
        drawn = {
            "core": torch.empty(r1, r2, r3),
            "pos_embed": torch.empty(1, patch.num_patches, r2),
            "head_weight": torch.empty(num_classes, r3),
        }
        for tensor in drawn.values():
            timm.layers.trunc_normal_(tensor, std=0.02)
        templates = drawn | {
            "vectors": torch.zeros(r1, r2),
            "patch_weight": patch.proj.weight.detach().clone(),
            "patch_bias": torch.zeros(r2),
            "fc_norm_weight": torch.zeros(r2),
            "fc_norm_bias": torch.zeros(r2),
            "head_bias": torch.zeros(num_classes),
        }
        # normal, so that a composed weight has the core's variance
        scalers = {
            "mix": torch.randn(self.depth, MATRICES, r1) / r1**0.5,
            "mix_vectors": torch.randn(self.depth, VECTORS, r1) / r1**0.5,
            "rows": torch.randn(self.embed_dim, r2) / r2**0.5,
            "columns": torch.randn(self.embed_dim, r3) / r3**0.5,
        }
        self._hold(templates, scalers, learn)

    def _core(self) -> Tensor:
        core = self.templates["core"]
        if not self.training or not self.stochastic_scaling:
            return core
        _, r2, r3 = core.shape
        half = self.stochastic_scaling
        second = 1 + half * (2 * torch.rand(r2, 1, device=core.device) - 1)
        third = 1 + half * (2 * torch.rand(1, r3, device=core.device) - 1)
        return core * second * third

    def outer_weights(self) -> Weights:
        own, rows = self.templates, self.scalers["rows"]
        kernel = own["patch_weight"]
        return {
            "patch_embed.proj.weight": (rows @ kernel.flatten(1)).view(
                -1, *kernel.shape[1:]
            ),
            "patch_embed.proj.bias": rows @ own["patch_bias"],
            "pos_embed": own["pos_embed"] @ rows.mT,
            "fc_norm.weight": 1 + rows @ own["fc_norm_weight"],
            "fc_norm.bias": rows @ own["fc_norm_bias"],
            "head.weight": own["head_weight"] @ self.scalers["columns"].mT,
            "head.bias": own["head_bias"],
        }

    def layer_weights(self) -> Sequence[Weights]:
        rows, columns = self.scalers["rows"], self.scalers["columns"]
        matrices = tucker(self._core(), self.scalers["mix"], rows, columns)
        vectors = self.scalers["mix_vectors"] @ self.templates["vectors"] @ rows.mT
        return as_layers(matrices, vectors)
