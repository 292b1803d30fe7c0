"""What the search's further parts can get wrong: early stopping, refinement, earlier runs,
watchers.
"""

from collections.abc import Sequence
from pathlib import Path

from analysis.contract import Objective
from compress.pipeline import NamedStage
from sweeps.drive.trackers import check_trackers
from sweeps.search.refine import check_refine
from sweeps.spec.model import Spec
from sweeps.spec.yaml_text import SpecError
from sweeps.trial.epoch_curve import watched_stage
from trainers.files import read_json


def check_search(
    spec: Spec, pipelines: Sequence[Sequence[NamedStage]], val_fraction: float
) -> None:
    """Check against all pipelines that the space can give.

    Raises:
        SpecError: place, rule, value, remedy.
    """
    rule, refine = spec.search.early_stopping, spec.search.refine
    if rule is not None:
        place = "search.early_stopping"
        if not any(watched_stage(stages, rule.stage) for stages in pipelines):
            names = list(
                dict.fromkeys(
                    s.name
                    for stages in pipelines
                    for s in stages
                    if watched_stage([s], None)
                )
            )
            wanted = (
                "no stage of these pipelines trains"
                if rule.stage is None
                else f"no stage {rule.stage!r} that trains"
            )
            raise SpecError(
                f"{place}.stage: {wanted}; those that train:"
                f" {', '.join(names) or 'none'}"
            )
        if rule.scheduler == "moasha" and len(spec.objectives) == 1:
            raise SpecError(
                f"{place}.scheduler: moasha compares by fronts; with one objective take"
                " asha"
            )
        if rule.metric != "train_loss" and val_fraction == 0:
            raise SpecError(
                f"{place}.metric: {rule.metric} needs a validation part;"
                " data.val_fraction is 0"
            )
    if refine is not None:
        for stages in pipelines:
            check_refine(stages, refine)
    _check_earlier_runs(spec.search.earlier_runs, spec.objectives)
    check_trackers(spec.trackers)


def _check_earlier_runs(runs: Sequence[Path], objectives: Sequence[Objective]) -> None:
    wanted = [(o.metric, o.mode) for o in objectives]
    for run in runs:
        header = read_json(run / "run.json")
        if header is None:
            raise SpecError(
                f"search.from: {run} is not a run folder (no run.json in it)"
            )
        have = [(o["metric"], o["mode"]) for o in header["objectives"]]
        if have != wanted:
            told = ", ".join(f"{mode} {metric}" for metric, mode in have)
            raise SpecError(
                f"search.from: {run} has other objectives ({told}); a study compares"
                " trials by the same ones"
            )
