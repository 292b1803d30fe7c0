"""The last rung: the front's members once more, with more epochs.

Refined trials have numbers of their own, `refines` in their plans, and no part in the study: they
were trained for longer, and lie outside the space. They run when everything else has ended, and no
stopping rule ends them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from analysis.contract import Objective
from compress.continuing import ITSELF, why_from_start
from compress.pipeline import NamedStage
from sweeps.run.plan import StageSpec, TrialPlan
from sweeps.run.record import TrialRecord
from sweeps.search.plans import refining_plan
from sweeps.search.study import canonical
from sweeps.space.overrides import set_override
from sweeps.spec.model import Spec
from sweeps.spec.search_options import Refine
from sweeps.spec.stages import build_stage
from sweeps.spec.yaml_text import SpecError


def front_numbers(
    records: Iterable[TrialRecord], objectives: Sequence[Objective], top: int
) -> list[int]:
    """Numbers of the `top` configurations to refine, the best first.

    A configuration counts with the mean over its complete replicates. Of one objective: the best
    within its bound. Of several: members of the front, by the hypervolume that each alone dominates
    (the reference point lies 10 % beyond the worst complete trial); of equals, the lower number.
    """
    from analysis import pareto  # pandas: only at the end of a sweep

    values: defaultdict[int, list[list[float]]] = defaultdict(list)
    for record in records:
        found = record.values(objectives)
        if found is not None and record.plan.refines is None:
            values[record.plan.number].append(found)
    numbers = sorted(values)
    if not numbers:
        return []
    means = np.array([np.mean(values[n], axis=0) for n in numbers])
    fits = pareto.eligible(means, objectives)
    if len(objectives) == 1:
        order = np.argsort(pareto.to_costs(means, objectives)[:, 0], kind="stable")
        return [numbers[i] for i in order if fits[i]][:top]
    front = np.flatnonzero(pareto.front_mask(means, objectives))
    if not len(front):
        return []
    reference = pareto.reference_point(means, objectives)
    whole = pareto.hypervolume(means[front], objectives, reference)
    alone = [
        whole - pareto.hypervolume(means[np.delete(front, i)], objectives, reference)
        for i in range(len(front))
    ]
    order = np.argsort(-np.array(alone), kind="stable")
    return [numbers[front[i]] for i in order[:top]]


def refined_stages(
    stages: Sequence[StageSpec], refine: Refine
) -> tuple[StageSpec, ...]:
    """These stages, with the longer one and the further changes.

    Raises:
        SpecError: no stage of that name or with epochs, or a value that its stage refuses.
    """
    kinds = {stage.name: stage.kind for stage in stages}
    configs: dict[str, Any] = {stage.name: dict(stage.config) for stage in stages}
    names = ", ".join(configs)
    long = _longer_stage(configs, refine)
    changes = {f"{long}.epochs": refine.epochs} | refine.params
    raw = {"stages": configs}
    for path, value in changes.items():
        if path.partition(".")[0] not in configs:
            raise SpecError(
                f"search.refine.params: {path}: no such stage; the stages are {names}"
            )
        set_override(raw, f"stages.{path}", value)
    return tuple(
        StageSpec(
            name=name,
            kind=kinds[name],
            config=build_stage(
                kinds[name], config, f"search.refine: stages.{name}"
            ).model_dump(mode="json"),
        )
        for name, config in configs.items()
    )


def _longer_stage(configs: Mapping[str, Any], refine: Refine) -> str:
    """The name of the stage that trains for longer, of names and configs in their order.

    Raises:
        SpecError: there is none.
    """
    with_epochs = [name for name in configs if "epochs" in configs[name]]
    long = refine.stage or (with_epochs[-1] if with_epochs else None)
    if long not in with_epochs:
        raise SpecError(
            f"search.refine.stage: no stage {long!r} with epochs; the stages are"
            f" {', '.join(configs)}"
        )
    return long


def why_refined_from_start(stages: Sequence[NamedStage], refine: Refine) -> str | None:
    """Why a pipeline's refined trials train the longer stage from its first epoch on, a sentence;
    None where they go on from the checkpoint that the trial left.

    Raises:
        SpecError: no such stage.
    """
    configs = {stage.name: stage.config.model_dump() for stage in stages}
    long = _longer_stage(configs, refine)
    names = list(configs)
    place = names.index(long)
    config = stages[place].config
    before = f"search.refine: {long} is trained again from its first epoch on, since"
    for path in refine.params:
        if names.index(path.partition(".")[0]) <= place:
            return f"{before} params changes {path}."
    if configs[long]["epochs"] > refine.epochs:
        return f"{before} it had more epochs than {refine.epochs}."
    fault = why_from_start(config)
    if fault is None:
        return None
    if fault is ITSELF:
        return f"{before} what it does depends on how many epochs follow."
    return (
        f"{before} its learning rate depends on how many there are ({fault}); with"
        f" stages.{long}.schedule_epochs: {refine.epochs} it goes on from the checkpoint"
        " that the trial left."
    )


def refined_pipeline(
    stages: Sequence[NamedStage], refine: Refine
) -> tuple[NamedStage, ...]:
    """A pipeline as `refined_stages` changes it.

    Raises:
        SpecError: see there.
    """
    specs = [
        StageSpec(
            name=stage.name,
            kind=stage.kind,
            config=stage.config.model_dump(mode="json"),
        )
        for stage in stages
    ]
    return tuple(
        NamedStage(
            spec.name, spec.kind, build_stage(spec.kind, spec.config, "search.refine")
        )
        for spec in refined_stages(specs, refine)
    )


def refining_plans(
    records: Sequence[TrialRecord], spec: Spec, refine: Refine, next_number: int
) -> list[TrialPlan]:
    """The trials that refine the front; those that an earlier driver began keep their numbers.

    Args:
        records: of all trials so far.
        next_number: the first that no configuration has.
    """
    known = {
        (r.plan.refines, _text_of(r.plan.stages)): r.plan.number
        for r in records
        if r.plan.refines is not None
    }
    found: list[TrialPlan] = []
    for base in front_numbers(records, spec.objectives, refine.top):
        replicas = [
            r for r in records if r.plan.number == base and r.status == "complete"
        ]
        stages, why = replicas[0].plan.stages, None
        try:
            stages = refined_stages(stages, refine)
        except SpecError as error:
            why = str(error)
        number = known.get((base, _text_of(stages)))
        if number is None:
            number, next_number = next_number, next_number + 1
        found += [
            refining_plan(r, number, stages, spec.search.replicates, why)
            for r in replicas
        ]
    return found


def _text_of(stages: Sequence[StageSpec]) -> str:
    """The same text for the same stages."""
    return canonical([stage.model_dump(mode="json") for stage in stages])
