"""What the further parts of a search can get wrong: early stopping, refinement, earlier runs,
trackers.
"""

from collections.abc import Iterator, Sequence

from compress.pipeline import NamedStage, trains
from sweeps.check_objectives import is_of_test_set
from sweeps.drive.trackers import check_trackers
from sweeps.search.portfolio import check_portfolio
from sweeps.search.refine import why_refined_from_start
from sweeps.spec.model import Spec
from sweeps.spec.search_options import EarlyStopping, epoch_metric
from sweeps.spec.yaml_text import SpecError
from sweeps.trial.epoch_curve import trained_stage


def check_search(
    spec: Spec, pipelines: Sequence[Sequence[NamedStage]], val_fraction: float
) -> None:
    """Check against all pipelines that the space can give.

    Raises:
        SpecError: place, rule, value, remedy.
    """
    rule = spec.search.early_stopping
    if rule is not None:
        _check_stopped_stage(rule, pipelines)
        _check_stopping_metric(rule, val_fraction)
        if rule.scheduler == "moasha" and len(spec.objectives) == 1:
            raise SpecError(
                "search.early_stopping.scheduler: moasha compares by fronts; with one"
                " objective take asha"
            )
    if spec.search.stop_when == "goal" and all(
        o.bound is None for o in spec.objectives
    ):
        raise SpecError(
            "search.stop_when: goal means that every bound is kept, and no objective has one;"
            " give bound to one"
        )
    _check_budget(spec, pipelines)
    for path in spec.search.earlier_runs:
        check_portfolio(path, spec.objectives)
    check_trackers(spec.trackers)


def _check_budget(spec: Spec, pipelines: Sequence[Sequence[NamedStage]]) -> None:
    """Refuse a budget that no trial would use."""
    search, wanted = spec.search, spec.resources
    if search.images is not None and not any(map(trains, pipelines)):
        raise SpecError(
            "search.images: no stage of these pipelines trains, so that none would be used; take"
            " hours or trials"
        )
    has_time = search.hours is not None or search.gpu_hours is not None
    if search.epoch_seconds is not None and not has_time:
        raise SpecError(
            "search.epoch_seconds: it says what fits into a budget of time, and there is none;"
            " leave it out, or give search.hours"
        )
    uses_gpus = wanted.gpus_per_worker > 0 and wanted.device != "cpu"
    if search.gpu_hours is not None and not uses_gpus:
        raise SpecError(
            "search.gpu_hours: trials have no GPU (resources.gpus_per_worker:"
            f" {wanted.gpus_per_worker:g}, device: {wanted.device}); give them one, or take hours"
        )


def search_remarks(
    spec: Spec, pipelines: Sequence[Sequence[NamedStage]]
) -> tuple[str, ...]:
    """What a user should know about a search that holds, whole sentences."""
    remarks = []
    refine = spec.search.refine
    if refine is not None:
        found = (why_refined_from_start(stages, refine) for stages in pipelines)
        remarks += list(dict.fromkeys(said for said in found if said))[:1]
    if any(is_of_test_set(objective.metric) for objective in spec.objectives):
        remarks.append(
            "objectives: no image is held out (data.val_fraction: 0), so that a metric of the"
            " test set orders the configurations at the end; it guides no search, and who"
            " picks one of many by it picks on the test set."
        )
    rule = spec.search.early_stopping
    if rule is not None and rule.scheduler != "moasha" and len(spec.objectives) > 1:
        remarks.append(
            f"search.early_stopping: {rule.scheduler} stops trials by {rule.metric} alone"
            " and so gives up the cheap end of the front, where small models learn slowly;"
            " scheduler: moasha compares by all objectives."
        )
    return tuple(remarks)


def _check_stopped_stage(
    rule: EarlyStopping, pipelines: Sequence[Sequence[NamedStage]]
) -> None:
    """Refuse a rule that would find no epochs in any pipeline."""
    if any(trained_stage(stages, rule.stage) for stages in pipelines):
        return
    fault = "no stage of these pipelines trains"
    if rule.stage is not None:
        fault = f"no stage {rule.stage!r} that trains"
    training = dict.fromkeys(_training_stages(pipelines))
    raise SpecError(
        f"search.early_stopping.stage: {fault}; those that train:"
        f" {', '.join(training) or 'none'}"
    )


def _training_stages(pipelines: Sequence[Sequence[NamedStage]]) -> Iterator[str]:
    for stages in pipelines:
        for stage in stages:
            if trained_stage([stage], None):
                yield stage.name


def _check_stopping_metric(rule: EarlyStopping, val_fraction: float) -> None:
    place = "search.early_stopping.metric"
    try:
        metric = epoch_metric(rule.metric)
    except ValueError as error:
        raise SpecError(f"{place}: {error}") from error
    if metric.on_validation and val_fraction == 0:
        raise SpecError(
            f"{place}: {rule.metric} needs a validation part; data.val_fraction is 0"
        )
