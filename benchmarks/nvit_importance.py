"""How well does importance foretell what pruning costs? NViT's Taylor term and magnitude
beside the true loss.

    python benchmarks/nvit_importance.py [--workdir DIR] [--seeds 3] [--targets 0.7 0.5 0.35]

The small ViT of nvit_digits.py, unpruned and as NViT leaves it at each target, before
fine-tuning. In every structure that may still shrink, the lowest group by each score is
zeroed alone, and the loss over the training images compared with the loss before. Printed:
Spearman's rank correlation, over structures, of a group's score and its true rise of the
loss; and the sum of the rises, which a score that finds the cheapest units of each
structure keeps low. Mean ± standard deviation over seeds. A --workdir of nvit_digits.py
gives its teachers and table.
"""

import copy
import tempfile
from pathlib import Path

import torch
from nvit_digits import (
    ETA,
    GROUPS,
    PRUNE,
    TRAIN,
    arguments,
    context,
    digits,
    latency_table,
    spread,
    teacher,
)
from scipy.stats import spearmanr
from torch import Tensor

from compress.nvit.groups import UnitLayout, rank_groups
from compress.nvit.importance import magnitude_scores, taylor
from compress.nvit.masked_vit import MaskedVit
from compress.nvit.stage import Nvit
from compress.nvit.surgery import Masks
from trainers.models.arch import ModelState
from trainers.models.from_timm import from_timm
from trainers.training.losses import TaskObjective

Batches = list[tuple[Tensor, Tensor]]


def mean_loss(vit: MaskedVit, batches: Batches) -> float:
    with torch.no_grad():
        return sum(float(TaskObjective(0.1)(vit, *batch)) for batch in batches) / len(
            batches
        )


def taylor_scores(vit: MaskedVit, batches: Batches, layout: UnitLayout) -> Tensor:
    """The mean over batches of the squared sum, weights fixed."""
    total = torch.zeros(layout.num_units, dtype=torch.float64)
    for batch in batches:
        vit.zero_grad()
        TaskObjective(0.1)(vit, *batch).backward()
        total += taylor(vit)
    return total / len(batches)


def compare(model: ModelState, batches: Batches) -> dict[str, tuple[float, float]]:
    """Score → (rank correlation over structures, sum of the loss rises of their lowest groups)."""
    vit = MaskedVit.from_state(model).eval()
    layout = UnitLayout.of(model.arch.dims, GROUPS)
    keep, before = (
        torch.ones(layout.num_units, dtype=torch.bool),
        mean_loss(vit, batches),
    )
    found = {}
    for name, scores in (
        ("taylor", taylor_scores(vit, batches, layout)),
        ("magnitude", magnitude_scores(vit, keep, layout)),
    ):
        ranking = rank_groups(scores, keep, layout)
        lowest: dict[int, int] = {}
        for group, structure in enumerate(ranking.structures.tolist()):
            lowest.setdefault(structure, group)
        rises = [
            rise(vit, layout, ranking.members(group), batches) - before
            for group in lowest.values()
        ]
        predicted = [float(ranking.scores[group]) for group in lowest.values()]
        found[name] = (float(spearmanr(predicted, rises).statistic), sum(rises))
    return found


def rise(
    vit: MaskedVit, layout: UnitLayout, members: Tensor, batches: Batches
) -> float:
    """The loss without these units."""
    keep = torch.ones(layout.num_units, dtype=torch.bool)
    keep[members] = False
    cut = copy.deepcopy(vit)
    Masks(cut, layout, keep).on_values()
    return mean_loss(cut, batches)


def main() -> None:
    args = arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        workdir, scratch = args.workdir or Path(temporary), Path(temporary)
        workdir.mkdir(parents=True, exist_ok=True)
        data = digits(workdir)
        rows: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for seed in range(args.seeds):
            model = teacher(data, workdir, seed)
            table = latency_table(model.arch, workdir)
            batches = list(
                context(data, scratch / "batches", seed).batches(
                    40, TRAIN["batch_size"]
                )
            )
            states = {"unpruned": from_timm(model)}
            for target in args.targets:
                options = PRUNE | {
                    "latency_target": target,
                    "latency_regularization": ETA.get(target, 0.1),
                    "table": table,
                }
                states[f"{target}"] = Nvit(**options).run(
                    model, context(data, scratch / f"{seed}-{target}", seed)
                )
            for state, pruned in states.items():
                for score, seen in compare(pruned, batches).items():
                    rows.setdefault((state, score), []).append(seen)
    print(f"\n{'model':10} {'score':10} {'correlation':15} sum of rises")
    for (state, score), seen in rows.items():
        correlation, rises = zip(*seen, strict=True)
        print(
            f"{state:10} {score:10} {spread(list(correlation), 2):15}"
            f" {spread(list(rises), 2)}"
        )


if __name__ == "__main__":
    main()
