"""What a sweep's trials are compared with: the model as it is before anything is searched.

That is the source where it comes with trained weights. A source that begins at random says nothing
by itself: there it is what the first stages make of it, as long as they only train and nothing that
is searched changes them (a teacher that all trials share, for example).
"""

from __future__ import annotations

from analysis.contract import BASELINE
from sweeps.run.plan import TrialPlan
from sweeps.search.plans import planned
from sweeps.space.resolve import Resolved
from sweeps.space.slots import is_slot
from sweeps.space.sweep import Sweep
from sweeps.spec.load import portable
from trainers.config import DataConfig, SourceConfig


def baseline_plan(sweep: Sweep) -> TrialPlan | None:
    """The plan of the trial that measures the baseline, with the sweep's own seed.

    None where the spec does not want it, where source or data are searched, where nothing is
    trained before the search begins, and where every trial is that model.
    """
    spec = sweep.spec
    sections = {dimension.path.split(".")[0] for dimension in sweep.space.dimensions}
    if not spec.search.baseline or sections & {"source", "data"}:
        return None
    source = SourceConfig.model_validate(portable(spec.source))
    is_trained = source.pretrained or source.checkpoint is not None
    count = 0 if is_trained else _fixed_training(sweep)
    if (count == 0 and not is_trained) or count == len(sweep.example):
        return None
    model = Resolved(
        configuration={},
        source=source,
        data=DataConfig.model_validate(portable(spec.data)),
        stages=sweep.example[:count],
    )
    return planned(
        spec, model, trial_id=BASELINE, number=-1, replicate=0, seed=spec.seed
    )


def _fixed_training(sweep: Sweep) -> int:
    """Leading stages that train, and that no dimension of the space touches."""
    searched = {
        dimension.path.split(".")[1]
        for dimension in sweep.space.dimensions
        if dimension.path.startswith("stages.")
    }
    count = 0
    for stage in sweep.example:
        entry = sweep.spec.stages.get(stage.name)
        if entry is None or is_slot(entry) or stage.name in searched:
            break
        if stage.config.phase != "train":
            break
        count += 1
    return count
