"""Units that NViT zeroes, replaced by what stays, in the least-squares sense (CORP, arXiv
2602.05243; the regressions are those of `compress.compensation`).

Legend
    x̂, z        what a norm gave over the channels before, and gives over those that stay
    d           x̂ − z at channels that stay, x̂ at those that go: W x̂ = W_S z + W d, and d is
                predicted from z; so are folded into q, k, v, fc1 and the classifiers what the
                residual stream lost and that the norm averages over fewer channels
    q, k        queries and keys of a head; P, S: dimensions that go and stay
    k̃           k less its mean over an image's tokens, which softmax does not see

Values and hidden units are inputs of `proj` and `fc2`. Of queries and keys the scores are
kept: with q_P ≈ X_q q_S + c and k̃_P ≈ X_k k̃_S,

    q_S·k_S + q_P·k_P ≈ (q_S + X_kᵀ (X_q q_S + c))·k_S + what is equal for all keys,

the least-squares optimum for tokens drawn independently; it is folded into the rows of q.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.compensation import Moments, Prediction, predict
from compress.nvit.groups import UnitLayout
from compress.nvit.surgery import NormChannels

if TYPE_CHECKING:
    from trainers.models.pruned_vit import PrunedBlock, PrunedVit

Tensors = dict[str, Tensor]


@torch.no_grad()
def compensation(
    vit: "PrunedVit",
    layout: UnitLayout,
    before: Tensor,
    after: Tensor,
    batches: Iterable[Tensor],
    norm_channels: NormChannels = "kept",
) -> Tensors:
    """New values of the parameters that make up for units that are about to be zeroed.

    Args:
        vit: with the units outside `before` at zero; its mode and tensors stay as they are.
        layout: of its units.
        before, after: units that were left, and that are to stay, bool (U,).
        batches: images without labels on the device of `vit`; read once.
        norm_channels: as in `compress.nvit.surgery.Masks`.

    Returns:
        Name of a parameter → its new values, of full size. What is zeroed afterwards may hold
        anything.
    """
    was, stays = layout.split(before), layout.split(after)
    norms = _Norms(was["embed"], stays["embed"], norm_channels)
    blocks = [_Block(vit, i, norms, was, stays) for i in range(len(vit.blocks))]
    heads = _Heads(vit, norms)
    training = vit.training
    vit.eval()
    for images in batches:
        x = vit.embed(images)
        for block in blocks:
            x = block.add(x)
        heads.add(x)
    vit.train(training)
    parts: list[_Block | _Heads] = [*blocks, heads]
    found: Tensors = {}
    for part in parts:
        found |= part.corrections()
    return found


class _Norms:
    """Which channels norms have before and after."""

    def __init__(self, was: Tensor, stays: Tensor, over: NormChannels) -> None:
        self.was = was.nonzero()[:, 0]
        self.stays = stays.nonzero()[:, 0]
        self.over = over
        self.changed = len(self.was) != len(self.stays)
        places = torch.searchsorted(self.was, self.stays)
        self.places = places
        """Where the channels that stay are among those before."""

    def rows(self, norm: Any, x: Tensor) -> Tensor:
        """d and z (…, before + after) of the norm's input."""
        old = norm(x)[..., self.was]
        new = self.narrow(norm, x)
        difference = old.clone()
        difference[..., self.places] -= new
        return torch.cat([difference, new], -1)

    def narrow(self, norm: Any, x: Tensor) -> Tensor:
        """z (…, after)."""
        weight, bias = norm.weight[self.stays], norm.bias[self.stays]
        if self.over == "all":
            zeroed = torch.zeros_like(x)
            zeroed[..., self.stays] = x[..., self.stays]
            plain = F.layer_norm(zeroed, (x.shape[-1],), eps=norm.eps)
            return plain[..., self.stays] * weight + bias
        return F.layer_norm(
            x[..., self.stays], (len(self.stays),), weight, bias, norm.eps
        )

    def moments(self) -> Moments:
        return Moments(len(self.was) + len(self.stays))

    def reader(self, name: str, layer: nn.Linear, seen: Moments) -> Tensors:
        """A layer that reads the norm."""
        first = len(self.was)
        found = predict(
            seen,
            torch.arange(first),
            torch.arange(first, first + len(self.stays)),
            centred=layer.bias is not None,
        )
        return _changed(name, layer, self.was, self.stays, found)


class _Block:
    """What passes one block, and what makes up for its units."""

    def __init__(
        self,
        vit: "PrunedVit",
        index: int,
        norms: _Norms,
        was: dict[str, Any],
        stays: dict[str, Any],
    ) -> None:
        self.block: PrunedBlock = vit.blocks[index]  # type: ignore[assignment]
        self.name = f"blocks.{index}"
        self.norms = norms
        attn = self.block.attn
        self.values = [
            (part["heads"][index][:, None] & part["v"][index]).flatten()
            for part in (was, stays)
        ]
        self.scores = [part["qk"][index] for part in (was, stays)]
        self.heads = stays["heads"][index].nonzero()[:, 0].tolist()
        self.hidden = [part["mlp"][index] for part in (was, stays)]
        self.norm1, self.norm2 = norms.moments(), norms.moments()
        self.query = Moments(attn.q.out_features)
        self.key = Moments(attn.k.out_features)
        self.value = Moments(attn.proj.in_features)
        self.unit = Moments(self.block.mlp.fc2.in_features)

    def add(self, x: Tensor) -> Tensor:
        """Take the moments of a batch (B, N, E); gives what the block gives."""
        block, attn = self.block, self.block.attn
        if self.norms.changed:
            self.norm1.add(self.norms.rows(block.norm1, x).flatten(0, -2))
        normed = block.norm1(x)
        if _goes(self.scores):
            key = attn.k(normed)
            self.query.add(attn.q(normed).flatten(0, -2))
            self.key.add((key - key.mean(1, keepdim=True)).flatten(0, -2))
        noted: list[tuple[Moments, Tensor]] = []
        hooks = [
            layer.register_forward_pre_hook(
                lambda _, args, seen=seen: noted.append((seen, args[0]))
            )
            for layer, seen in ((attn.proj, self.value), (block.mlp.fc2, self.unit))
        ]
        x = x + attn(normed)
        if self.norms.changed:
            self.norm2.add(self.norms.rows(block.norm2, x).flatten(0, -2))
        x = x + block.mlp(block.norm2(x))
        for hook in hooks:
            hook.remove()
        for seen, inputs in noted:
            seen.add(inputs.flatten(0, -2))
        return x

    def corrections(self) -> Tensors:
        attn, mlp = self.block.attn, self.block.mlp
        found: Tensors = {}
        if self.norms.changed:
            for leaf in "qkv":
                layer: Any = attn.get_submodule(leaf)
                found |= self.norms.reader(
                    f"{self.name}.attn.{leaf}", layer, self.norm1
                )
            found |= self.norms.reader(f"{self.name}.mlp.fc1", mlp.fc1, self.norm2)
        if _goes(self.scores):
            found |= self._scores(found)
        for name, layer, masks, seen in (
            ("attn.proj", attn.proj, self.values, self.value),
            ("mlp.fc2", mlp.fc2, self.hidden, self.unit),
        ):
            if _goes(masks):
                found |= _without(f"{self.name}.{name}", layer, masks, seen)
        return found

    def _scores(self, found: Tensors) -> Tensors:
        """Rows of q that make up for dimensions of queries and keys."""
        attn = self.block.attn
        name = f"{self.name}.attn.q"
        weight = found.get(f"{name}.weight", attn.q.weight).clone()
        has_bias = attn.q.bias is not None
        bias = found.get(f"{name}.bias", attn.q.bias).clone() if has_bias else None
        gone = (self.scores[0] & ~self.scores[1]).nonzero()[:, 0].cpu()
        kept = self.scores[1].nonzero()[:, 0].cpu()
        for head in self.heads:
            first = head * attn.qk_dim
            rows = kept + first
            query = predict(self.query, gone + first, rows, centred=has_bias)
            key = predict(self.key, gone + first, rows, centred=False)
            mixing = (key.matrix.T @ query.matrix).to(weight)
            at = rows.to(weight.device)
            shift = (key.matrix.T @ query.offset).to(weight)
            if bias is not None:
                bias[at] += mixing @ bias[at] + shift
            weight[at] += mixing @ weight[at]
        return {f"{name}.weight": weight} | (
            {} if bias is None else {f"{name}.bias": bias}
        )


class _Heads:
    """What reaches the classifiers."""

    def __init__(self, vit: "PrunedVit", norms: _Norms) -> None:
        self.vit = vit
        self.norms = norms
        self.after_pool = not isinstance(vit.fc_norm, nn.Identity)
        self.seen = {"head": norms.moments()}
        if vit.head_dist is not None:
            self.seen["head_dist"] = norms.moments()

    def add(self, x: Tensor) -> None:
        if not self.norms.changed:
            return
        norm = self.vit.fc_norm if self.after_pool else self.vit.norm
        if not self.after_pool:
            x = self.norms.rows(norm, x)
        pooled = (
            x[:, 0]
            if self.vit.global_pool == "token"
            else x[:, self.vit.num_prefix_tokens :].mean(1)
        )
        if self.after_pool:
            pooled = self.norms.rows(norm, pooled)
        self.seen["head"].add(pooled)
        if "head_dist" in self.seen:
            self.seen["head_dist"].add(x[:, 1])

    def corrections(self) -> Tensors:
        found: Tensors = {}
        if self.norms.changed:
            for name, seen in self.seen.items():
                layer: Any = self.vit.get_submodule(name)
                found |= self.norms.reader(name, layer, seen)
        return found


def _goes(masks: list[Tensor]) -> bool:
    """Whether anything goes between the masks before and after."""
    return bool((masks[0] & ~masks[1]).any())


def _without(
    name: str, layer: nn.Linear, masks: list[Tensor], seen: Moments
) -> Tensors:
    """A layer whose inputs go."""
    gone = (masks[0] & ~masks[1]).nonzero()[:, 0]
    kept = masks[1].nonzero()[:, 0]
    found = predict(seen, gone.cpu(), kept.cpu(), centred=layer.bias is not None)
    return _changed(name, layer, gone, kept, found)


def _changed(
    name: str, layer: nn.Linear, gone: Tensor, kept: Tensor, found: Prediction
) -> Tensors:
    """Weight and bias with a prediction of the inputs `gone` from `kept` folded in."""
    weight = layer.weight.detach().double().cpu()
    gone, kept = gone.cpu(), kept.cpu()
    changed = weight.clone()
    changed[:, kept] += weight[:, gone] @ found.matrix
    result = {f"{name}.weight": changed.to(layer.weight)}
    if layer.bias is not None:
        shift = (weight[:, gone] @ found.offset).to(layer.bias)
        result[f"{name}.bias"] = layer.bias.detach() + shift
    return result
