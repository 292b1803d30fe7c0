"""What a sweep's trials are compared with: the model as it is before anything is searched.

That is the source where it comes with trained weights. A source that begins at random says nothing
by itself: there it is what the first stages make of it, as long as they only train and nothing that
is searched changes them (a teacher that all trials share, for example).

A bound may be relative to it (`bound: {loss: 0.01, to: source}`). Then nothing else runs before it
has ended, and every trial's plan holds the bounds as numbers.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from analysis.contract import BASELINE, ENDED, Objective, RelativeBound, resolved
from analysis.numbers import number
from compress.metrics import Conditions, needs_quantized, trial_metrics
from sweeps.run.folder import trial_folder
from sweeps.run.plan import TrialPlan
from sweeps.run.record import TrialRecord
from sweeps.search.plans import planned
from sweeps.space.resolve import Resolved
from sweeps.space.slots import is_slot
from sweeps.space.sweep import Sweep
from sweeps.spec.load import portable
from sweeps.spec.yaml_text import SpecError
from trainers.config import DataConfig, SourceConfig


def baseline_plan(sweep: Sweep) -> TrialPlan | None:
    """The plan of the trial that measures the baseline, with the sweep's own seed.

    None where the spec does not want it, where source or data are searched, where nothing is
    trained before the search begins, and where every trial is that model.
    """
    spec = sweep.spec
    count = _baseline_stages(sweep)
    if count is None:
        return None
    model = Resolved(
        configuration={},
        source=SourceConfig.model_validate(portable(spec.source)),
        data=DataConfig.model_validate(portable(spec.data)),
        stages=sweep.example[:count],
    )
    return planned(
        spec, model, trial_id=BASELINE, number=-1, replicate=0, seed=spec.seed
    )


def _baseline_stages(sweep: Sweep) -> int | None:
    """How many of the leading stages the baseline runs; None where there is none."""
    sections = {dimension.path.split(".")[0] for dimension in sweep.space.dimensions}
    if not sweep.spec.search.baseline or sections & {"source", "data"}:
        return None
    source = sweep.spec.source
    is_trained = source.pretrained or source.checkpoint is not None
    count = 0 if is_trained else _fixed_training(sweep)
    if (count == 0 and not is_trained) or count == len(sweep.spec.stages):
        return None
    return count


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


def check_relative_bounds(sweep: Sweep) -> None:
    """Refuse a bound relative to a baseline that there will not be, or that lacks its metric.

    Raises:
        SpecError: place, rule, value, remedy.
    """
    for i, objective in enumerate(sweep.spec.objectives):
        if not isinstance(objective.bound, RelativeBound):
            continue
        place, count = f"objectives.{i}.bound", _baseline_stages(sweep)
        if count is None:
            raise SpecError(
                f"{place}: it is relative to the source, and this sweep has no baseline; it"
                " needs search.baseline: true and a source that is trained (pretrained, a"
                " checkpoint, or first stages that only train) and not searched; else give"
                " a number"
            )
        conditions = Conditions(
            latency=sweep.spec.measure.latency,
            quantized=needs_quantized(o.metric for o in sweep.spec.objectives),
            runtimes=tuple(sweep.spec.measure.runtimes),
        )
        stages = [stage.config for stage in sweep.example[:count]]
        if objective.metric not in trial_metrics(stages, conditions):
            raise SpecError(
                f"{place}: it is relative to the source, of which {objective.metric} is not"
                " measured; give a number, or bound another metric"
            )


class Baseline:
    """The baseline of a run, and the bounds that wait for it.

    Attributes:
        plan: of its trial; None where there is none.
        relative: metrics whose bounds are relative to it.
    """

    def __init__(self, sweep: Sweep, run: Path) -> None:
        self.plan = baseline_plan(sweep)
        self._sweep, self._run = sweep, run
        self.relative = [
            o.metric
            for o in sweep.spec.objectives
            if isinstance(o.bound, RelativeBound)
        ]

    def record(self) -> TrialRecord | None:
        """Its record, once its trial has ended."""
        if self.plan is None:
            return None
        found = TrialRecord.read(trial_folder(self._run, self.plan.trial_id))
        return found if found is not None and found.status in ENDED else None

    def objectives(self) -> list[Objective]:
        """The sweep's, with their bounds as numbers where those are known."""
        record = self.record() if self.relative else None
        metrics = record.outcome.metrics if record is not None else None
        return resolved(self._sweep.spec.objectives, metrics)

    def sweep(self) -> Sweep:
        """The sweep with these objectives."""
        spec = self._sweep.spec.model_copy(update={"objectives": self.objectives()})
        return dataclasses.replace(self._sweep, spec=spec)

    @property
    def is_awaited(self) -> bool:
        """Whether a bound is not known yet."""
        return any(isinstance(o.bound, RelativeBound) for o in self.objectives())

    def bounds(self) -> dict[str, float]:
        """Metric → the bound as a number, of those that were relative."""
        return {
            o.metric: o.bound
            for o in self.objectives()
            if o.metric in self.relative and isinstance(o.bound, float)
        }

    def lines(self) -> list[str]:
        """The bounds for the user, a line each."""
        return [
            f"{o.metric}: {'at most' if o.mode == 'min' else 'at least'}"
            f" {number(self.bounds()[o.metric])} ({o.bound.said()})"
            for o in self._sweep.spec.objectives
            if isinstance(o.bound, RelativeBound)
        ]

    def why_unknown(self) -> str:
        """A line for a baseline that has ended without the value that a bound needs."""
        record = self.record()
        said = "lacks the metric"
        if record is not None and record.outcome.error is not None:
            said = (
                f"failed ({record.outcome.error.type}: {record.outcome.error.message})"
            )
        return (
            f"no trial runs: a bound is relative to the source, whose own trial {said};"
            " mend that, then `sweeps resume --retry failed`"
        )
