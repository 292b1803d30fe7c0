"""Dense vision transformers whose blocks have their own dimensions: what pruning leaves,
and `trainers.models.revit`.

Legend
    B, N, E     batch, tokens, width of the residual stream (`embed`)
    H, QK, V    heads, query/key and value dimensions a head, of one block
    M           hidden units of a block's MLP
    scale       factor of the attention scores: head_dim^-0.5 of the model before pruning,
                whatever QK is now

Behaves as timm's `VisionTransformer` and `VisionTransformerDistilled` do (pre-norm, GELU,
stochastic depth), with separate q, k and v projections whose rows are head-major: q, k
(H·QK, E), v (H·V, E), proj (E, H·V).
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.models.parameters import BLOCK_DIMS
from trainers.models.token_merging import merge_tokens, most_merged, pooled_mean
from trainers.timm_library import timm


class PrunedAttention(nn.Module):
    """Self-attention with its own query/key and value dimensions: (B, N, E) → (B, N, E)."""

    def __init__(
        self,
        embed: int,
        heads: int,
        qk: int,
        v: int,
        *,
        scale: float,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads, self.qk_dim, self.v_dim, self.scale = heads, qk, v, scale
        self.one_product = True
        """Whether q, k and v may be computed as one product; not where each layer is quantised."""
        self.q = nn.Linear(embed, heads * qk, bias=qkv_bias)
        self.k = nn.Linear(embed, heads * qk, bias=qkv_bias)
        self.v = nn.Linear(embed, heads * v, bias=qkv_bias)
        self.proj = nn.Linear(heads * v, embed)

    def forward(self, x: Tensor) -> Tensor:
        return self.with_keys(x, None)[0]

    def with_keys(self, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
        """The result (B, N, E), and the keys (B, H, N, QK).

        Args:
            size: how often each token counts (B, N, 1); None: once.
        """
        batch, tokens, _ = x.shape
        q, k, v = (
            part.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for part in self._project(x)
        )
        counts = None if size is None else size.log().transpose(1, 2)[:, None]
        x = self._attend(q, k, v, counts)
        joined = x.transpose(1, 2).reshape(batch, tokens, self.num_heads * self.v_dim)
        return self.proj(joined), k

    def _project(self, x: Tensor) -> Sequence[Tensor]:
        """(B, N, E) → (B, N, H·QK), (B, N, H·QK), (B, N, H·V)."""
        layers = (self.q, self.k, self.v)
        if (
            not (self.one_product and x.is_cpu)
            or any(type(layer) is not nn.Linear for layer in layers)  # of low rank
            or torch.onnx.is_in_onnx_export()
            or torch.compiler.is_exporting()
        ):
            return [layer(x) for layer in layers]
        # on a CPU one product is faster than three, though their small weights are put
        # together each time
        bias = (
            None if self.q.bias is None else torch.cat([layer.bias for layer in layers])
        )
        together = F.linear(x, torch.cat([layer.weight for layer in layers]), bias)
        return together.split([layer.out_features for layer in layers], dim=-1)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, counts: Tensor | None = None
    ) -> Tensor:
        """(B, H, N, QK), (B, H, N, QK), (B, H, N, V) → (B, H, N, V); `counts` (B, 1, 1, N) is
        added to the scores.
        """
        more = self.v_dim - self.qk_dim
        if more and q.is_cpu and not torch.onnx.is_in_onnx_export():
            # the CPU's fused kernel needs equal dimensions; zeros beside it are up to twice
            # as fast as going without
            q, k, v = (
                (F.pad(q, (0, more)), F.pad(k, (0, more)), v)
                if more > 0
                else (q, k, F.pad(v, (0, -more)))
            )
        if counts is not None:  # the fused kernels take a mask without broadcasting
            counts = counts.to(q.dtype).expand(-1, q.shape[1], q.shape[2], -1)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=counts, scale=self.scale
        )[..., : self.v_dim]


class PrunedBlock(nn.Module):
    """One pre-norm transformer block of the given dimensions: (B, N, E) → (B, N, E)."""

    def __init__(
        self,
        embed: int,
        heads: int,
        qk: int,
        v: int,
        mlp: int,
        *,
        scale: float,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed, eps=norm_eps)
        self.attn = PrunedAttention(embed, heads, qk, v, scale=scale, qkv_bias=qkv_bias)
        self.drop_path1 = (
            timm.layers.DropPath(drop_path) if drop_path > 0 else nn.Identity()
        )
        self.norm2 = nn.LayerNorm(embed, eps=norm_eps)
        self.mlp = timm.layers.Mlp(embed, mlp)
        self.drop_path2 = (
            timm.layers.DropPath(drop_path) if drop_path > 0 else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def merging(
        self, x: Tensor, size: Tensor | None, r: int, prefix: int
    ) -> tuple[Tensor, Tensor | None]:
        """The same with at most r tokens merged between attention and MLP: tokens (B, N - r, E)
        and their sizes, see `trainers.models.token_merging`.
        """
        attended, keys = self.attn.with_keys(self.norm1(x), size)
        x = x + self.drop_path1(attended)
        r = most_merged(x.shape[1], prefix, r)
        if r:
            x, size = merge_tokens(x, size, keys.mean(1), r, prefix)
        return x + self.drop_path2(self.mlp(self.norm2(x))), size


class PrunedVit(nn.Module):
    """A plain or distilled ViT from images (B, C, H, W) to logits (B, num_classes).

    A distilled model in training mode gives (class logits, distillation logits) once
    `set_distilled_training(True)` was called, and their mean otherwise, as timm's does.

    Args:
        dims: `embed` (int) and, a list over blocks each, `heads`, `qk`, `v`, `mlp`.
        num_classes: at least 1.
        img_size, patch_size: pixels; one number or (height, width).
        scale: of the attention scores, the same in all blocks.
        class_token, distilled: prefix tokens; a distilled model has both.
        global_pool: "token" classifies the class token, "avg" the mean over patches.
        fc_norm: normalise after pooling instead of before; default: for "avg", as timm.
        no_embed_class: positions for patches only (DeiT III).
        merge: tokens that are merged in each block; default: none.
        drop_rate: dropout before the classifier. drop_path_rate: of the last block, rising
            linearly from 0.

    Raises:
        ValueError: dimensions or pooling that no such model has.
    """

    def __init__(
        self,
        *,
        dims: dict[str, Any],
        num_classes: int,
        img_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        scale: float,
        in_chans: int = 3,
        class_token: bool = True,
        distilled: bool = False,
        global_pool: Literal["token", "avg"] = "token",
        fc_norm: bool | None = None,
        no_embed_class: bool = False,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        merge: Sequence[int] = (),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_dims(dims)
        check_merge(merge, len(dims["heads"]))
        _check_tokens(class_token, distilled, global_pool, fc_norm, no_embed_class)
        embed = dims["embed"]
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.num_features = self.embed_dim = embed
        self.num_prefix_tokens = class_token + distilled
        self.no_embed_class = no_embed_class
        self.distilled_training = False
        self.merge = tuple(merge)
        # tuples: timm's PatchEmbed compares sizes, and JSON gives lists
        self.patch_embed = timm.layers.PatchEmbed(
            _pair(img_size), _pair(patch_size), in_chans, embed
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed)) if class_token else None
        self.dist_token = nn.Parameter(torch.empty(1, 1, embed)) if distilled else None
        positions = self.patch_embed.num_patches
        if not no_embed_class:
            positions += self.num_prefix_tokens
        self.pos_embed = nn.Parameter(torch.empty(1, positions, embed))
        self.blocks = _blocks(
            dims, drop_path_rate, scale=scale, qkv_bias=qkv_bias, norm_eps=norm_eps
        )
        after_pool = global_pool == "avg" if fc_norm is None else fc_norm
        norm = nn.LayerNorm(embed, eps=norm_eps)
        self.norm = nn.Identity() if after_pool else norm
        self.fc_norm = norm if after_pool else nn.Identity()
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed, num_classes)
        self.head_dist = nn.Linear(embed, num_classes) if distilled else None
        self._initialise()

    def _initialise(self) -> None:
        """timm's default: truncated normal of 0.02 for matrices, positions and the
        distillation token.
        """
        timm.layers.trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=1e-6)
        if self.dist_token is not None:
            timm.layers.trunc_normal_(self.dist_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                timm.layers.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimisers do not decay."""
        return {"pos_embed", "cls_token", "dist_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers of parameters, for layer-wise learning rates (timm's notation)."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed|dist_token",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The classifying layer, or both of a distilled model (timm's name for them)."""
        return self.head if self.head_dist is None else (self.head, self.head_dist)

    def set_distilled_training(self, enable: bool = True) -> None:
        """Give both heads' logits in training mode instead of their mean. No effect without
        a second head.
        """
        self.distilled_training = enable

    def embed(self, images: Tensor) -> Tensor:
        """Tokens with positions (B, N, E): class token, distillation token, patches."""
        x = self.patch_embed(images)
        tokens = [
            t.expand(x.shape[0], -1, -1)
            for t in (self.cls_token, self.dist_token)
            if t is not None
        ]
        if self.no_embed_class:
            return torch.cat([*tokens, x + self.pos_embed], 1)
        return torch.cat([*tokens, x], 1) + self.pos_embed

    def classify(
        self, x: Tensor, size: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits from normalised tokens (B, N, E) that stand for `size` (B, N, 1) patches."""
        first = self.num_prefix_tokens
        pooled = (
            x[:, 0]
            if self.global_pool == "token"
            else pooled_mean(x[:, first:], None if size is None else size[:, first:])
        )
        logits = self.head(self.head_drop(self.fc_norm(pooled)))
        if self.head_dist is None:
            return logits
        distilled = self.head_dist(self.head_drop(x[:, 1]))
        if self.distilled_training and self.training:
            return logits, distilled
        return (logits + distilled) / 2

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if not any(self.merge):
            return self.classify(self.norm(self.blocks(self.embed(images))))
        x, size = self.embed(images), None
        blocks: Any = self.blocks
        for block, r in zip(blocks, self.merge, strict=True):
            x, size = block.merging(x, size, r, self.num_prefix_tokens)
        return self.classify(self.norm(x), size)


def _blocks(
    dims: dict[str, Any], drop_path_rate: float, **common: Any
) -> nn.Sequential:
    """The blocks of these dimensions; stochastic depth rises linearly to `drop_path_rate`."""
    rates = torch.linspace(0, drop_path_rate, len(dims["heads"]), device="cpu").tolist()
    columns = [dims[name] for name in BLOCK_DIMS]
    return nn.Sequential(
        *(
            PrunedBlock(dims["embed"], *block, drop_path=rate, **common)
            for *block, rate in zip(*columns, rates, strict=True)
        )
    )


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def check_dims(dims: dict[str, Any]) -> None:
    """Refuse dimensions that are not one `embed` and four lists of positive integers over
    the same blocks.

    Raises:
        ValueError: names the entry and its value.
    """
    if set(dims) != {"embed", *BLOCK_DIMS}:
        have = ", ".join(map(str, dims)) or "none"
        raise ValueError(f"dims are embed, {', '.join(BLOCK_DIMS)}; got {have}")
    depths = {
        name: len(dims[name]) if isinstance(dims[name], list | tuple) else None
        for name in BLOCK_DIMS
    }
    if (
        None in depths.values()
        or len(set(depths.values())) != 1
        or depths["heads"] == 0
    ):
        shown = ", ".join(f"{name}: {dims[name]}" for name in BLOCK_DIMS)
        raise ValueError(
            f"{', '.join(BLOCK_DIMS)} are lists with one entry a block; got {shown}"
        )
    for name in ("embed", *BLOCK_DIMS):
        values = [dims[name]] if name == "embed" else dims[name]
        if any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in values):
            raise ValueError(
                f"{name}: dimensions are integers of at least 1; got {dims[name]}"
            )


def check_merge(merge: Sequence[int], depth: int) -> None:
    """Refuse numbers of merged tokens that are not one for each block.

    Raises:
        ValueError: names what is wrong.
    """
    whole = all(isinstance(r, int) and r >= 0 for r in merge)
    if not whole or len(merge) not in (0, depth):
        raise ValueError(
            f"merge: one number of tokens for each of the {depth} blocks, at least 0; got"
            f" {list(merge)}"
        )


def _check_tokens(
    class_token: bool,
    distilled: bool,
    global_pool: str,
    fc_norm: bool | None,
    no_embed_class: bool,
) -> None:
    if global_pool not in ("token", "avg"):
        raise ValueError(f"global_pool is 'token' or 'avg'; got {global_pool!r}")
    if global_pool == "token" and not class_token:
        raise ValueError(
            "global_pool 'token' needs class_token; set global_pool to 'avg'"
        )
    if distilled and (
        not class_token or global_pool != "token" or fc_norm or no_embed_class
    ):
        raise ValueError(
            "a distilled model classifies two tokens: class_token true, global_pool"
            " 'token', fc_norm and no_embed_class off"
        )
