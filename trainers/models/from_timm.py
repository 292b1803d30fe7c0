"""timm's ViTs as `PrunedVit`: which of them can be one, its dimensions, its weights."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from trainers.models.arch import Arch, ModelState, shared_on_meta
from trainers.models.pruned_vit import check_dims
from trainers.timm_library import timm


def check_vit(arch: Arch) -> dict[str, Any]:
    """Dimensions of a model that `from_timm` takes, found without weights.

    Returns:
        `Arch.dims` of its dense form: embed, and lists of heads, qk, v, mlp.

    Raises:
        ValueError: not a plain or distilled ViT; names what it has instead.
    """
    return dense_arch(arch).dims


def dense_arch(arch: Arch) -> Arch:
    """The `pruned_vit` architecture of a timm ViT, nothing pruned; one that is a
    `pruned_vit` stays as it is.

    Raises:
        ValueError: not a plain or distilled ViT; names what it has instead.
    """
    if arch.builder == "pruned_vit":
        check_dims(arch.dims)
        return arch
    return _dense_arch(arch, shared_on_meta(arch))


def state_of_module(module: nn.Module, name: str = "vit") -> ModelState:
    """A timm ViT or DeiT that somebody built, as `from_timm` gives a model's state.

    Args:
        module: on any device; not changed.
        name: what errors and the result call it.

    Raises:
        ValueError: not a plain or distilled ViT; names what it has instead.
    """
    arch = _dense_arch(Arch("timm", name), module)
    return ModelState(
        arch, _dense_weights(ModelState.from_module(arch, module).weights)
    )


def _dense_arch(arch: Arch, module: nn.Module) -> Arch:
    fault = _fault(module)
    if fault is not None:
        raise ValueError(
            f"{arch.name}: {fault}; needed is a ViT or DeiT of timm (plain or"
            " distilled, class token or mean pooling) without extensions, for example"
            " deit_small_patch16_224"
        )
    vit: Any = module
    blocks = list(vit.blocks)
    return Arch(
        "pruned_vit",
        arch.name,
        _dense_args(arch, vit),
        {
            "embed": vit.embed_dim,
            "heads": [b.attn.num_heads for b in blocks],
            "qk": [b.attn.head_dim for b in blocks],
            "v": [b.attn.head_dim for b in blocks],
            "mlp": [b.mlp.fc1.out_features for b in blocks],
        },
    )


def _dense_args(arch: Arch, vit: Any) -> dict[str, Any]:
    """Builder arguments that repeat a timm ViT."""
    first, last = vit.blocks[0], vit.blocks[-1]
    (height, width), (patch_height, patch_width) = (
        vit.patch_embed.img_size,
        vit.patch_embed.patch_size,
    )
    return {
        "num_classes": vit.num_classes,
        "img_size": height if height == width else [height, width],
        "patch_size": (
            patch_height if patch_height == patch_width else [patch_height, patch_width]
        ),
        "in_chans": vit.patch_embed.proj.in_channels,
        "class_token": vit.cls_token is not None,
        "distilled": isinstance(vit, timm.models.VisionTransformerDistilled),
        "global_pool": vit.global_pool,
        "fc_norm": not isinstance(vit.fc_norm, nn.Identity),
        "no_embed_class": vit.no_embed_class,
        "scale": first.attn.scale,
        "qkv_bias": first.attn.qkv.bias is not None,
        "norm_eps": first.norm1.eps,
        "drop_rate": vit.head_drop.p,
        "drop_path_rate": arch.args.get(
            "drop_path_rate", float(getattr(last.drop_path1, "drop_prob", 0.0))
        ),
    }


def _fault(module: Any) -> str | None:
    """Why this module is not a ViT that `PrunedVit` can repeat."""
    if type(module) not in (
        timm.models.VisionTransformer,
        timm.models.VisionTransformerDistilled,
    ):
        return f"it is a {type(module).__name__}"
    identity = nn.Identity
    distilled = isinstance(module, timm.models.VisionTransformerDistilled)
    checks = {
        "another patch embedding": (
            type(module.patch_embed) is timm.layers.PatchEmbed
            and isinstance(module.patch_embed.norm, identity)
        ),
        "no position embedding": module.pos_embed is not None,
        "register tokens (reg_tokens)": getattr(module, "reg_token", None) is None,
        "pre_norm": (
            isinstance(module.norm_pre, identity)
            and module.patch_embed.proj.bias is not None
        ),
        "attention pooling": module.attn_pool is None,
        f"global_pool {module.global_pool!r}": module.global_pool in ("token", "avg"),
        "pool_include_prefix": not getattr(module, "pool_include_prefix", False),
        "dynamic_img_size": not (
            module.dynamic_img_size or module.patch_embed.dynamic_img_pad
        ),
        "not exactly one final norm": (
            isinstance(module.norm, identity) != isinstance(module.fc_norm, identity)
        ),
        "no classifier": isinstance(module.head, nn.Linear),
        "pos_drop_rate or patch_drop_rate": (
            module.pos_drop.p == 0 and isinstance(module.patch_drop, identity)
        ),
        "no_embed_class with distillation": not (distilled and module.no_embed_class),
    }
    for what, holds in checks.items():
        if not holds:
            return f"it has {what}"
    return next(
        (
            fault
            for block in module.blocks
            if (fault := _block_fault(block)) is not None
        ),
        None,
    )


def _block_fault(block: Any) -> str | None:
    if type(block) is not timm.models.vision_transformer.Block:
        return f"its blocks are {type(block).__name__}"
    attn, mlp, identity = block.attn, block.mlp, nn.Identity
    layers = (attn.proj, mlp.fc1, mlp.fc2, getattr(attn, "qkv", attn.proj))
    if any(isinstance(layer, nn.Sequential) for layer in layers):
        return "it has layers of low rank (put low_rank after what cuts units)"
    if type(attn).__name__ != "Attention":
        return f"its attention is {type(attn).__name__}"
    norms = [
        m
        for m in (
            attn.q_norm,
            attn.k_norm,
            getattr(attn, "norm", None),
            getattr(mlp, "norm", None),
        )
        if m
    ]
    if any(not isinstance(norm, identity) for norm in norms):
        return (
            "it has norms inside attention or MLP (qk_norm, scale_attn_norm,"
            " scale_mlp_norm)"
        )
    if getattr(attn, "gate", None) is not None:
        return "it has gated attention"
    if (
        type(mlp) is not timm.layers.Mlp
        or type(mlp.act) is not nn.GELU
        or mlp.act.approximate != "none"
    ):
        return (
            f"its MLP is {type(mlp).__name__} with"
            f" {type(getattr(mlp, 'act', None)).__name__}"
        )
    if not all(
        isinstance(norm, nn.LayerNorm) and norm.bias is not None
        for norm in (block.norm1, block.norm2)
    ):
        return f"its norms are {type(block.norm1).__name__}"
    if attn.proj.bias is None or mlp.fc1.bias is None:
        return "it has no proj_bias"
    if attn.attn_drop.p or attn.proj_drop.p or mlp.drop1.p:
        return "it has attn_drop_rate or proj_drop_rate"
    if not all(
        isinstance(ls, identity | timm.layers.LayerScale)
        for ls in (block.ls1, block.ls2)
    ):
        return f"it has {type(block.ls1).__name__}"
    return None


def from_timm(state: ModelState) -> ModelState:
    """A timm ViT or DeiT as a `PrunedVit` of full dimensions with the same logits.

    Layer scale (DeiT III) is folded into `proj` and `fc2`. A `pruned_vit` comes back as it is.

    Raises:
        ValueError: not a plain or distilled ViT; names what it has instead.
    """
    arch = dense_arch(state.arch)
    if arch is state.arch:
        return state
    return replace(state, arch=arch, weights=_dense_weights(state.weights))


def _dense_weights(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A timm ViT's weights by the names of a `PrunedVit`."""
    weights: dict[str, Tensor] = {}
    for name, value in given.items():
        path, _, leaf = name.rpartition(".")
        if path.endswith(".qkv"):
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                weights[f"{path.removesuffix('qkv')}{part}.{leaf}"] = rows.clone()
        elif leaf != "gamma":
            weights[name] = value.clone()
    for name, gamma in given.items():
        if name.endswith((".ls1.gamma", ".ls2.gamma")):
            layer = name.replace(".ls1.gamma", ".attn.proj").replace(
                ".ls2.gamma", ".mlp.fc2"
            )
            weights[f"{layer}.weight"].mul_(gamma[:, None])
            weights[f"{layer}.bias"].mul_(gamma)
    return weights
