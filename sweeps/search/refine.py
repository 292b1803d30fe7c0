"""The last rung: the front's members once more, with more epochs.

Refined trials have numbers of their own, `refines` in their records, and no part in the
study: they lie at another fidelity, and outside the space. They run when everything else
has ended, and are never stopped early.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.contract import Objective
from compress.pipeline import NamedStage
from sweeps.space.dimension import leaves
from sweeps.space.overrides import set_override
from sweeps.spec.model import Refine
from sweeps.spec.stages import build_stage
from sweeps.spec.yaml_text import SpecError
from sweeps.values import finite_values

Record = dict[str, Any]


def front_numbers(
    records: Sequence[Record], objectives: Sequence[Objective], top: int
) -> list[int]:
    """Numbers of the `top` configurations to refine, the best first.

    A configuration counts with the mean over its complete replicates. Of one objective: the
    best within its bound. Of several: members of the front, by the hypervolume that each
    alone dominates (the reference point lies 10 % beyond the worst complete trial); of
    equals, the lower number.
    """
    from analysis import pareto  # pandas: only at the end of a sweep

    values: defaultdict[int, list[list[float]]] = defaultdict(list)
    for record in records:
        if record["status"] == "complete" and record.get("refines") is None:
            found = finite_values(record["metrics"], objectives)
            if found is not None:
                values[record["number"]].append(found)
    numbers = sorted(values)
    if not numbers:
        return []
    means = np.array([np.mean(values[n], axis=0) for n in numbers])
    goals = [pareto.Objective(o.metric, o.mode, o.bound) for o in objectives]
    fits = pareto.eligible(means, goals)
    if len(goals) == 1:
        order = np.argsort(pareto.to_costs(means, goals)[:, 0], kind="stable")
        return [numbers[i] for i in order if fits[i]][:top]
    front = np.flatnonzero(pareto.front_mask(means, goals))
    if not len(front):
        return []
    reference = pareto.reference_point(means, goals)
    whole = pareto.hypervolume(means[front], goals, reference)
    alone = [
        whole - pareto.hypervolume(means[np.delete(front, i)], goals, reference)
        for i in range(len(front))
    ]
    return [
        numbers[front[i]] for i in np.argsort(-np.array(alone), kind="stable")[:top]
    ]


def refined_stages(
    record: Record, refine: Refine
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(stages of the plan, flat config) of a record's trial, with the longer stage and the
    further changes.

    Raises:
        SpecError: no stage of that name or with epochs, or a value that its stage refuses.
    """
    stages = {
        s["name"]: {"stage": s["stage"], **s["config"]} for s in record["pipeline"]
    }
    long = refine.stage or next(
        (n for n in reversed(stages) if "epochs" in stages[n]), None
    )
    if long is None or "epochs" not in stages.get(long, {}):
        raise SpecError(
            f"search.refine.stage: no stage {long!r} with epochs; the stages are"
            f" {', '.join(stages)}"
        )
    raw = {"stages": stages}
    for path, value in ({f"{long}.epochs": refine.epochs} | refine.params).items():
        if path.partition(".")[0] not in stages:
            raise SpecError(
                f"search.refine.params: {path}: no such stage; the stages are"
                f" {', '.join(stages)}"
            )
        set_override(raw, f"stages.{path}", value)
    flat = {
        k: v
        for k, v in record["config"].items()
        if k.partition(".")[0] not in stages or "." not in k
    }
    plan = []
    for name, given in stages.items():
        kind = given.pop("stage")
        config = build_stage(kind, given, f"search.refine: stages.{name}").model_dump(
            mode="json"
        )
        plan.append({"name": name, "stage": kind, "config": config})
        flat |= dict(leaves(name, config))
    return plan, flat


def check_refine(stages: Sequence[NamedStage], refine: Refine) -> None:
    """Refuse what `refined_stages` would refuse.

    Raises:
        SpecError: see there.
    """
    pipeline = [
        {"name": s.name, "stage": s.kind, "config": s.config.model_dump(mode="json")}
        for s in stages
    ]
    refined_stages({"pipeline": pipeline, "config": {}}, refine)
