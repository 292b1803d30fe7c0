"""Token merging: in every block the most similar patch tokens become one (Bolya et al., Token
Merging: Your ViT But Faster, ICLR 2023).

Legend
    B, N, E     batch, tokens now, width
    p           prefix tokens (class, distillation), which are never merged and stay in front
    size        patches that a token stands for (B, N, 1)
    r           tokens that go in a block
    A, B        patch tokens at even and at odd positions of the whole sequence

After attention, every token of A is matched with the token of B whose key (the mean over heads)
has the largest cosine to its own; the r pairs of largest cosine are merged, by means weighted
with their sizes. Attention afterwards counts a token `size` times: its scores get log(size).
Nothing is learnt. All shapes follow from r, so that exported files have fixed ones, and merging is
a product with a 0/1 matrix: the same bits on every device.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

MergingSchedule = Literal["constant", "decreasing"]


def tokens_merged(r: int, depth: int, schedule: MergingSchedule) -> list[int]:
    """r of each block: the same, or falling linearly from 2r to 0 with the same sum."""
    if schedule == "constant" or depth == 1:
        return [r] * depth
    return [int(2 * r * (1 - i / (depth - 1))) for i in range(depth)]


def tokens_left(tokens: int, prefix: int, merged: Sequence[int]) -> list[int]:
    """Tokens that each block begins with, and what the last one leaves: depth + 1 numbers."""
    left = [tokens]
    for r in merged:
        left.append(left[-1] - most_merged(left[-1], prefix, r))
    return left


def most_merged(tokens: int, prefix: int, r: int) -> int:
    """Tokens that go where r are wished for: at most half of the patches."""
    return min(r, (tokens - prefix) // 2)


def merge_tokens(
    x: Tensor, size: Tensor | None, keys: Tensor, r: int, prefix: int
) -> tuple[Tensor, Tensor]:
    """Merge r pairs of tokens.

    Args:
        x: tokens (B, N, E).
        size: patches of each token (B, N, 1); None: one each.
        keys: what tokens are compared by (B, N, D).
        r: at most half of the patches.
        prefix: tokens in front that stay as they are.

    Returns:
        Tokens (B, N - r, E): prefix, what is left of A, B; and their sizes.
    """
    if size is None:
        size = torch.ones_like(x[..., :1])
    source, target = _pairs(keys, r, prefix)
    weighted = torch.cat([x * size, size], -1)
    patches = weighted[:, prefix:]
    first = patches[:, prefix % 2 :: 2]
    second = patches[:, 1 - prefix % 2 :: 2]
    moved, stays = source[:, :r], source[:, r:].sort(1).values
    into = F.one_hot(target[:, :r], second.shape[1]).to(x.dtype)
    second = second + into.transpose(1, 2) @ _rows(first, moved)
    joined = torch.cat([weighted[:, :prefix], _rows(first, stays), second], 1)
    size = joined[..., -1:]
    return joined[..., :-1] / size, size


def _pairs(keys: Tensor, r: int, prefix: int) -> tuple[Tensor, Tensor]:
    """Tokens of A (B, a), the most similar first, and for each its partner in B."""
    patches = F.normalize(keys[:, prefix:], dim=-1)
    first = patches[:, prefix % 2 :: 2]
    second = patches[:, 1 - prefix % 2 :: 2]
    best = (first @ second.transpose(1, 2)).max(-1)
    order = best.values.topk(first.shape[1], dim=1).indices
    return order, best.indices.gather(1, order)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Tokens (B, k, E) of x by their positions (B, k)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def pooled_mean(x: Tensor, size: Tensor | None) -> Tensor:
    """Mean over tokens (B, N, E) → (B, E), each as often as it has patches."""
    if size is None:
        return x.mean(1)
    return (x * size).sum(1) / size.sum(1)
