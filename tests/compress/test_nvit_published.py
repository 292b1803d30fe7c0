"""NViT by its published procedure: ten intervals of decisions, and the losses, against
oracles written from the description alone, on timm's own models.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.nvit import GroupSizes, Pruner, PruneRules
from compress.nvit.stage import Nvit
from compress.stage import Context
from compress.testing import check_stage, tiny_data, tiny_models
from trainers.timm_library import timm

Structure = tuple[int, str]
"""(block, kind); the embedding is (-1, "embed")."""
EMBED: Structure = (-1, "embed")
E, DEPTH, HEADS, MLP, CLASSES, TOKENS = 16, 2, 4, 32, 5, 6
DIM = E // HEADS
GROUPS = {"embed": 4, "heads": 1, "qk": 2, "v": 2, "mlp": 4}
LR, INTERVAL = 3e-3, 2
PUBLISHED = PruneRules(
    latency_target=0.01,
    latency_regularization=1e-6,
    interval_prune=INTERVAL,
    counting="published",
    importance_reset=True,
    importance_weights="after",
    head_divisor=12,
    norm_channels="all",
)


def deit() -> nn.Module:
    """A distilled model in float64, so that only the procedure decides."""
    torch.manual_seed(0)
    model = timm.create_model(
        "deit_tiny_distilled_patch16_224",
        img_size=32,
        patch_size=16,
        embed_dim=E,
        depth=DEPTH,
        num_heads=HEADS,
        mlp_ratio=MLP / E,
        num_classes=CLASSES,
        qkv_bias=True,
    ).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def batches(number: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(8, 3, 32, 32, generator=generator, dtype=torch.float64),
            torch.randint(CLASSES, (8,), generator=generator),
        )
        for _ in range(number)
    ]


class Oracle:
    """The description, step by step, on a plain timm model whose weights are zeroed.

    Args:
        rules: which of the published details are followed.
    """

    def __init__(self, rules: PruneRules) -> None:
        self.rules = rules
        self.net = deit()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=LR)
        self.sizes: dict[Structure, int] = {EMBED: E}
        for b in range(DEPTH):
            each = {"heads": HEADS, "qk": DIM, "v": DIM, "mlp": MLP}
            self.sizes |= {(b, kind): size for kind, size in each.items()}
        self.gone: dict[Structure, set[int]] = {s: set() for s in self.sizes}
        self.sums = {s: np.zeros(size) for s, size in self.sizes.items()}
        self.steps_summed = 0
        self.smoothed: dict[Structure, np.ndarray] | None = None
        self.intervals = 0
        self.dense = self.latency()

    # --- training
    def step(self, images: Tensor, targets: Tensor) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.net(images), targets).backward()
        before = {n: p.detach().clone() for n, p in self.net.named_parameters()}
        self.optimizer.step()
        self.zero()
        after = dict(self.net.named_parameters())
        weights = after if self.rules.importance_weights == "after" else before
        products = {
            name: (weights[name] * p.grad).detach().numpy()
            for name, p in after.items()
            if p.grad is not None
        }
        for s in self.sizes:
            for i in range(self.sizes[s]):
                if i not in self.gone[s]:
                    self.sums[s][i] += self.importance(products, s, i)
        self.steps_summed += 1

    def rows(self, b: int, which: str, head: int, dim: int) -> int:
        return "qkv".index(which) * E + head * DIM + dim

    def importance(self, wg: dict[str, np.ndarray], s: Structure, i: int) -> float:
        b, kind = s
        if kind == "embed":
            parts = [wg["patch_embed.proj.weight"][i], wg["patch_embed.proj.bias"][i]]
            for k in range(DEPTH):
                at = f"blocks.{k}."
                parts += [
                    wg[at + "attn.qkv.weight"][:, i],
                    wg[at + "mlp.fc1.weight"][:, i],
                ]
                for layer in ("attn.proj", "mlp.fc2"):
                    parts += [wg[f"{at}{layer}.weight"][i], wg[f"{at}{layer}.bias"][i]]
            return (sum(p.sum() for p in parts) / DEPTH) ** 2
        at = f"blocks.{b}."

        def qkv(which: str, heads: Any, dims: Any) -> float:
            rows = [self.rows(b, which, h, d) for h in heads for d in dims]
            return (
                wg[at + "attn.qkv.weight"][rows].sum()
                + wg[at + "attn.qkv.bias"][rows].sum()
            )

        if kind == "heads":
            total = sum(qkv(which, [i], range(DIM)) for which in "qkv")
            return (total / self.rules.head_divisor) ** 2
        if kind == "qk":
            return (qkv("q", range(HEADS), [i]) / 2) ** 2
        if kind == "v":
            return (qkv("v", range(HEADS), [i]) / 2) ** 2
        return (wg[at + "mlp.fc1.weight"][i].sum() + wg[at + "mlp.fc1.bias"][i]) ** 2

    @torch.no_grad()
    def zero(self) -> None:
        p = dict(self.net.named_parameters())
        for c in self.gone[EMBED]:
            for name, value in p.items():
                layer = name.rsplit(".", 1)[0]
                if name in ("cls_token", "dist_token", "pos_embed"):
                    value[..., c] = 0
                elif layer.endswith(("norm", "norm1", "norm2", "proj", "fc2")):
                    value[c] = 0
                elif name.endswith("weight"):  # qkv, fc1 and the heads read the stream
                    value[:, c] = 0
        for b in range(DEPTH):
            at = f"blocks.{b}."
            gone_rows, gone_columns = [], []
            for h in range(HEADS):
                for d in range(DIM):
                    head = h in self.gone[b, "heads"]
                    if head or d in self.gone[b, "qk"]:
                        gone_rows += [self.rows(b, "q", h, d), self.rows(b, "k", h, d)]
                    if head or d in self.gone[b, "v"]:
                        gone_rows.append(self.rows(b, "v", h, d))
                        gone_columns.append(h * DIM + d)
            p[at + "attn.qkv.weight"][gone_rows] = 0
            p[at + "attn.qkv.bias"][gone_rows] = 0
            p[at + "attn.proj.weight"][:, gone_columns] = 0
            hidden = sorted(self.gone[b, "mlp"])
            p[at + "mlp.fc1.weight"][hidden] = 0
            p[at + "mlp.fc1.bias"][hidden] = 0
            p[at + "mlp.fc2.weight"][:, hidden] = 0

    # --- decisions
    def left(self, s: Structure) -> int:
        return self.sizes[s] - len(self.gone[s])

    def latency(
        self, fewer: Structure | None = None, embed: int | None = None
    ) -> float:
        """Multiply-accumulates of what is left, or of that with one unit fewer."""

        def n(s: Structure) -> int:
            return self.left(s) - (s == fewer)

        e = n(EMBED) if embed is None else embed
        # a unit is worth what its blocks take; patch embedding and heads do not count there
        total = (e + (fewer == EMBED)) * (4 * 3 * 16 * 16 + 2 * CLASSES)
        for b in range(DEPTH):
            h, qk, v, m = (n((b, kind)) for kind in ("heads", "qk", "v", "mlp"))
            total += 2 * TOKENS * e * h * (qk + v) + TOKENS**2 * h * (qk + v)
            total += 2 * TOKENS * e * m
        return float(total)

    def decide(self) -> float:
        """Close an interval; the latency that the next step compares with the target."""
        self.intervals += 1
        mean = {s: total / self.steps_summed for s, total in self.sums.items()}
        if self.smoothed is None:
            self.smoothed = mean
        else:
            self.smoothed = {s: 0.9 * self.smoothed[s] + 0.1 * mean[s] for s in mean}
        self.sums = {s: np.zeros(size) for s, size in self.sizes.items()}
        self.steps_summed = 0
        now = self.latency()
        groups: list[tuple[float, bool, Structure, list[int]]] = []
        for s, size in self.sizes.items():
            g = GROUPS[s[1]]
            credit = (
                0.0 if self.left(s) < 2 * g else (now - self.latency(s)) / self.dense
            )
            scored = sorted(
                (
                    (0.0 if i in self.gone[s] else self.smoothed[s][i])
                    - self.rules.latency_regularization * credit,
                    i not in self.gone[s],
                    i,
                )
                for i in range(size)
            )
            for start in range(0, size, g):
                members = scored[start : start + g]
                last = start + g == size
                total = sum(score for score, _, _ in members)
                groups.append((total, last, s, [i for _, _, i in members]))
        scores = sorted(total for total, *_ in groups)
        lowest = 1 if self.intervals == 1 else 2 * self.intervals
        embed = self.left(EMBED)
        for total, last, s, members in groups:
            if total <= scores[lowest - 1] and not last:
                self.gone[s] |= set(members)
        if self.rules.importance_reset and self.intervals == 1:
            self.smoothed = {s: np.zeros(size) for s, size in self.sizes.items()}
        self.zero()
        return self.latency(embed=embed)


def oracle_sequence(
    rules: PruneRules, intervals: int
) -> list[dict[Structure, set[int]]]:
    oracle = Oracle(rules)
    found = []
    for step, batch in enumerate(batches(intervals * INTERVAL + 1), start=1):
        oracle.step(*batch)
        if step > 1 and (step - 1) % INTERVAL == 0:
            oracle.decide()
            found.append({s: set(gone) for s, gone in oracle.gone.items()})
    return found


def trained(rules: PruneRules, steps: int) -> Iterator[tuple[Pruner, int, bool]]:
    """Our pruner after each step, the step, and whether it has ended there."""
    pruner = Pruner.of(deit(), rules, groups=GroupSizes(**GROUPS))
    pruner.vit.double()
    optimizer = torch.optim.AdamW(pruner.vit.parameters(), lr=LR)
    for step, (images, targets) in enumerate(batches(steps), start=1):
        optimizer.zero_grad()
        F.cross_entropy(pruner.vit.eval()(images), targets).backward()
        pruner.on_grads(step - 1)
        optimizer.step()
        ended = bool(pruner.on_step(step))
        yield pruner, step, ended


def our_sequence(rules: PruneRules, intervals: int) -> list[dict[Structure, set[int]]]:
    found = []
    for pruner, _, ended in trained(rules, intervals * rules.interval_prune + 1):
        assert not ended
        if len(pruner.history) > len(found):
            found.append(gone_units(pruner))
    return found


def gone_units(pruner: Pruner) -> dict[Structure, set[int]]:
    parts = pruner.layout.split(~pruner.keep)
    gone = {EMBED: set(parts["embed"].nonzero()[:, 0].tolist())}
    for kind in ("heads", "qk", "v", "mlp"):
        for b, units in enumerate(parts[kind]):
            gone[b, kind] = set(units.nonzero()[:, 0].tolist())
    return gone


@pytest.mark.parametrize("eta", [0.0, 1e-6, 1e-4])
def test_ten_intervals_of_decisions_are_those_of_the_description(eta: float) -> None:
    rules = replace(PUBLISHED, latency_regularization=eta)
    ours, expected = our_sequence(rules, 10), oracle_sequence(rules, 10)
    for t, (mine, theirs) in enumerate(zip(ours, expected, strict=True), start=1):
        assert mine == theirs, f"interval {t}"
    assert len(ours[0]) == 1 + 4 * DEPTH
    assert sum(map(bool, ours[0].values())) == 1  # the first interval takes one group
    assert sum(map(bool, ours[-1].values())) >= 3


@pytest.mark.parametrize(
    "changes",
    [
        {"importance_reset": False},
        {"importance_weights": "before"},
        {"head_divisor": 6},
    ],
)
def test_each_option_follows_the_description_and_matters(
    changes: dict[str, Any],
) -> None:
    rules = replace(PUBLISHED, **changes)
    ours = our_sequence(rules, 10)
    assert ours == oracle_sequence(rules, 10)
    assert ours != our_sequence(PUBLISHED, 10)


def test_new_groups_are_counted_otherwise() -> None:
    """Two groups an interval, whatever is gone already."""
    ours = our_sequence(replace(PUBLISHED, counting="new_groups"), 10)
    groups = [sum(len(u) / GROUPS[kind] for (_, kind), u in t.items()) for t in ours]
    assert groups == [2.0 * t for t in range(1, 11)]


def test_the_target_is_looked_at_a_step_after_the_pruning() -> None:
    """By a latency whose embedding is that of before the pruning."""
    rules = replace(PUBLISHED, latency_regularization=1e-3)  # channels go first
    oracle = Oracle(rules)
    estimates, exact = [], []
    for step, batch in enumerate(batches(3 * INTERVAL + 1), start=1):
        oracle.step(*batch)
        if step > 1 and (step - 1) % INTERVAL == 0:
            estimates.append(oracle.decide() / oracle.dense)
            exact.append(oracle.latency() / oracle.dense)
    assert exact[1] < 0.5 < estimates[1]  # the second pruning meets it, not yet seen
    assert estimates[2] < 0.5
    for target, end in [(0.5, 3 * INTERVAL + 2), (estimates[1], 2 * INTERVAL + 2)]:
        steps = trained(replace(rules, latency_target=target + 1e-9), 3 * INTERVAL + 2)
        assert next(step for _, step, ended in steps if ended) == end


def test_a_fit_ends_a_step_after_the_pruning_also_where_it_was_killed_between(
    data_cache: Path, tmp_path: Path
) -> None:
    """An epoch has three steps: pruned at its end, ended in the next."""
    stage = Nvit(
        latency="macs",
        measure=False,
        latency_target=0.9999,
        latency_regularization=0,
        interval_prune=2,
        counting="published",
        importance_reset=True,
        importance_weights="after",
        head_divisor=12,
        norm_channels="kept",
        groups=GroupSizes(embed=4, heads=1, qk=2, v=2, mlp=8),
        epochs=2,
        batch_size=40,
        lr=1e-3,
        augment="flip",
    )
    data = tiny_data(data_cache)
    vit, _ = tiny_models(data)
    check_stage(stage, [vit], data)
    context = Context(
        data, torch.device("cpu"), 0, tmp_path, lambda name, checkpoint: vit
    )
    stage.run(vit, context)
    assert context.reported["prune_steps"] == 4
    assert context.reported["stop_reason"] == "latency_target"
