"""From a draw of the study to the plan of a trial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import JsonValue

from sweeps.run.folder import trial_folder, trial_name
from sweeps.run.plan import StageSpec, Stopping, TrialPlan, read_plan, write_plan
from sweeps.run.record import TrialRecord
from sweeps.space.resolve import Resolved, resolved_trial
from sweeps.space.sweep import Sweep
from sweeps.spec.load import portable
from sweeps.spec.model import Spec
from sweeps.spec.yaml_text import SpecError
from sweeps.trial.epoch_curve import stopping_of
from trainers import plugins
from trainers.config import DataConfig, SourceConfig


def new_plan(
    sweep: Sweep, number: int, replicate: int, draw: Mapping[str, JsonValue]
) -> TrialPlan:
    """The plan of one replicate of a configuration.

    Args:
        draw: Optuna's parameters of the configuration. If they mean a value that is refused, the
            plan says why, and its trial fails.
    """
    spec = sweep.spec
    try:
        resolved = resolved_trial(sweep.space, draw)
    except SpecError as error:
        return _refused_plan(sweep, number, replicate, draw, str(error))
    return planned(
        spec,
        resolved,
        trial_id=trial_name(number, replicate, spec.search.replicates),
        number=number,
        replicate=replicate,
        seed=spec.seed + replicate,
        draw=dict(draw),
        # what is trained again for certainty is not given up
        stopping=stopping_of(resolved.stages, spec.search.early_stopping)
        if replicate < spec.search.replicates
        else None,
    )


def planned(
    spec: Spec,
    resolved: Resolved,
    *,
    trial_id: str,
    number: int,
    replicate: int,
    seed: int,
    draw: Mapping[str, JsonValue] | None = None,
    stopping: Stopping | None = None,
) -> TrialPlan:
    """The plan of a trial that runs what was resolved, and measures it as the spec says."""
    return TrialPlan(
        trial_id=trial_id,
        number=number,
        replicate=replicate,
        seed=seed,
        configuration=resolved.configuration,
        draw=dict(draw or {}),
        source=resolved.source,
        data=resolved.data,
        stages=resolved.specs,
        measure=spec.measure,
        stopping=stopping,
        plugins=plugins.used_by(_what_decides(resolved)),
    )


def _refused_plan(
    sweep: Sweep, number: int, replicate: int, draw: Mapping[str, JsonValue], why: str
) -> TrialPlan:
    spec = sweep.spec
    entries = sweep.space.resolve(draw)["stages"]
    return TrialPlan(
        trial_id=trial_name(number, replicate, spec.search.replicates),
        number=number,
        replicate=replicate,
        seed=spec.seed + replicate,
        configuration=sweep.space.decode(draw),
        draw=dict(draw),
        source=SourceConfig.model_validate(portable(spec.source)),
        data=DataConfig.model_validate(portable(spec.data)),
        stages=tuple(
            StageSpec(
                name=name,
                kind=str(entry.get("stage", name)),
                config={key: value for key, value in entry.items() if key != "stage"},
            )
            for name, entry in entries.items()
        ),
        measure=spec.measure,
        refused=why,
    )


def written_plan(run: Path, plan: TrialPlan, bounds: Mapping[str, float]) -> TrialPlan:
    """Write a plan into its trial's folder.

    A trial that is run again keeps its plan, but for the stopping rule, which may have changed and
    decides nothing that the trial computes.

    Args:
        bounds: as `TrialPlan` has them.
    """
    folder = trial_folder(run, plan.trial_id)
    earlier = read_plan(folder)
    if earlier is not None:
        plan = earlier.model_copy(update={"stopping": plan.stopping})
    plan = plan.model_copy(update={"bounds": bounds})
    write_plan(folder, plan)
    return plan


def refining_plan(
    record: TrialRecord,
    number: int,
    stages: tuple[StageSpec, ...],
    replicates: int,
    refused: str | None = None,
) -> TrialPlan:
    """The plan that runs a complete trial again with other stages, under another number.

    Args:
        refused: why these stages cannot be had.
    """
    plan = record.plan
    update = {
        "trial_id": trial_name(number, plan.replicate, replicates),
        "number": number,
        "refines": plan.number,
        "stages": stages,
        "stopping": None,
        "refused": refused,
    }
    return plan.model_copy(update=update)


def _what_decides(resolved: Resolved) -> Iterator[object]:
    """What of a trial may come from plugins: its stages, its data set and all metrics."""
    yield from (type(stage.config) for stage in resolved.stages)
    datasets = plugins.offered(plugins.DATASETS)
    if resolved.data.dataset in datasets:
        yield datasets[resolved.data.dataset]
    yield from plugins.offered(plugins.METRICS).values()
    yield from plugins.offered(plugins.EPOCH_METRICS).values()
