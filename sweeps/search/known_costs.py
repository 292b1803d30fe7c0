"""What a candidate will cost, where a trial of the same structure has been measured.

Latency, bytes and operations follow from what a pipeline cuts and from how it stores the result,
not from how long it trains. So an untrained trial tells what the same model will cost when it has
been trained; where that misses a bound by far, training it cannot meet the goal. Nor can what costs
at least as much, as the same model does with some of its layers left in float.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from analysis.contract import Objective
from compress.pipeline import stages
from compress.stage import Stage
from sweeps.run.plan import StageSpec
from sweeps.run.record import TrialRecord
from sweeps.search.study import Draw, canonical
from sweeps.space.resolve import resolved_trial
from sweeps.space.sweep import Sweep
from sweeps.spec.yaml_text import SpecError
from trainers.config import DataConfig, SourceConfig, TrainConfig

_COSTS = (
    "file_bytes",
    "gmacs",
    "latency_ms",
    "latency_ratio",
    "num_params",
    "peak_memory_mb",
    "throughput",
)
"""Metrics that follow from the structure; those of further runtimes end so."""
_CERTAIN_MISS = 1.03
"""Times the limit: of the same structure times vary so much."""
_CERTAIN_MISS_OF_ALL = 1.1
"""Of other structures: costs are not quite in the order of the shares that are cut."""


class KnownCosts:
    """Which candidates of a search that ends with its goal cannot meet it.

    Args:
        sweep: none of another search is left out: what lies beyond a bound may be worth knowing.

    Attributes:
        sweep: the same; set again when its bounds are known.
        left_out: canonical draws that were asked for by name and not tried.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.left_out: set[str] = set()
        self._structures: dict[str, tuple[str, ...]] = {}
        self._metrics: defaultdict[str, list[Mapping[str, object]]] = defaultdict(list)

    def note(self, record: TrialRecord) -> None:
        """Take a trial that ended, the baseline too."""
        plan = record.plan
        if record.status == "complete" and plan.refines is None:
            structure = _structure(plan.source, plan.data, plan.stages)
            self._metrics[structure].append(record.outcome.metrics)

    def may_meet(self, draws: Sequence[Draw], are_named: bool = False) -> list[bool]:
        """Whether each may keep the bounds, as far as what it will cost is known.

        Args:
            are_named: whether somebody asked for them, so that it counts where they are not tried.
        """
        if not self._is_asked:
            return [True] * len(draws)
        found = [not self._misses(draw) for draw in draws]
        if are_named:
            pairs = zip(draws, found, strict=True)
            self.left_out |= {canonical(draw) for draw, may in pairs if not may}
        return found

    def alike(self, draw: Draw) -> list[Draw]:
        """Draws of the same structure with other alternatives of slots, such as what is not
        trained; none where it is known what that costs, or not asked.
        """
        structures = self._structures_of(draw)
        if not self._is_asked or not structures or self._are_measured(structures):
            return []
        names, keeping = [], []
        for slot in (d for d in self.sweep.space.dimensions if d.is_slot):
            choices = [
                choice
                for choice in slot.choices or ()
                if self._structures_of(self._with(draw, {slot.path: choice}))[:1]
                == structures[:1]
            ]
            names.append(slot.path)
            keeping.append(choices)
        found = [
            self._with(draw, dict(zip(names, choices, strict=True)))
            for choices in itertools.product(*keeping)
        ]
        return [other for other in found if other != draw]

    def is_awaited(self, draw: Draw, running: Sequence[Draw]) -> bool:
        """Whether a trial that runs will tell first what this draw costs."""
        structures = self._structures_of(draw) if self._is_asked else ()
        if not structures or self._are_measured(structures):
            return False
        return any(self._structures_of(each)[:1] == structures[:1] for each in running)

    @property
    def _is_asked(self) -> bool:
        return self.sweep.spec.search.stop_when == "goal"

    def _are_measured(self, structures: Sequence[str]) -> bool:
        return any(structure in self._metrics for structure in structures)

    def _with(self, draw: Draw, choices: Draw) -> Draw:
        """A draw with these alternatives; of what it lacks then the first value each."""
        return self._completed({**draw, **choices}, 0.0)

    def _misses(self, draw: Draw) -> bool:
        for structure in self._structures_of(draw):
            known = self._metrics.get(structure, [])
            for objective in self.sweep.spec.objectives:
                name = objective.metric
                values = [v for m in known if isinstance(v := m.get(name), int | float)]
                if name.endswith(_COSTS) and misses_by_far(
                    objective, values, _CERTAIN_MISS
                ):
                    return True
        return False

    def _structures_of(self, draw: Draw) -> tuple[str, ...]:
        """Its own and the one that costs no more; without those that are decided by what the draw
        lacks, and a sampler adds.
        """
        name = canonical(draw)
        # a grid is asked for all of its draws each time
        if name not in self._structures:
            self._structures[name] = self._resolved_structures(draw)
        return self._structures[name]

    def _resolved_structures(self, draw: Draw) -> tuple[str, ...]:
        # with the first and with the last value of all that is lacking
        first, last = (self._completed(draw, place) for place in (0.0, 0.99))
        found = []
        for whole in [first] if first == last else [first, last]:
            try:
                resolved = resolved_trial(self.sweep.space, whole)
            except SpecError:
                return ()  # the trial says what is wrong
            facts = resolved.source, resolved.data, resolved.specs
            found.append([_structure(*facts), _structure(*facts, is_cheaper=True)])
        distinct = [set(each) for each in zip(*found, strict=True)]
        return tuple({each.pop() for each in distinct if len(each) == 1})

    def _completed(self, draw: Draw, place: float) -> Draw:
        whole: Draw = {}
        for dimension in self.sweep.space.dimensions:
            if dimension.active(whole):
                added = dimension.at(lambda name: place)
                whole |= {name: draw.get(name, value) for name, value in added.items()}
        return whole


def misses_by_far(
    objective: Objective, values: Sequence[float], factor: float = _CERTAIN_MISS_OF_ALL
) -> bool:
    """Whether the best of some values lies beyond the bound by more than a factor; False without a
    bound that is known, or without values.
    """
    limit = objective.limit
    if limit is None or not math.isfinite(limit) or not values:
        return False
    if objective.mode == "min":
        return min(values) > factor * limit
    return max(values) * factor < limit


def _structure(
    source: SourceConfig,
    data: DataConfig,
    specs: Iterable[StageSpec],
    *,
    is_cheaper: bool = False,
) -> str:
    """A hash of what decides what a trial costs: trials of one cost the same, about.

    Args:
        is_cheaper: of the trial that costs no more, with the default of all options that cost.
    """
    of_stages = (_of_stage(spec, is_cheaper=is_cheaper) for spec in specs)
    deciding = [
        source.model_dump(mode="json"),
        data.model_dump(mode="json"),
        *filter(None, of_stages),
    ]
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def _of_stage(spec: StageSpec, *, is_cheaper: bool) -> list[object] | None:
    """What of a stage decides the cost; None where nothing does.

    Args:
        is_cheaper: with the default of all options that cost.
    """
    kind: type[Stage] | None = stages().get(spec.kind)
    if kind is None:
        return [spec.kind, spec.config]
    if kind.keeps_costs:
        return None
    options = dict(spec.config)
    if kind.phase == "quantize":  # how it is trained changes values alone
        options = {
            k: v for k, v in options.items() if k not in TrainConfig.model_fields
        }
    if is_cheaper:
        fields = kind.model_fields
        options |= {
            name: fields[name].get_default(call_default_factory=True)
            for name in kind.never_cheaper
            if name in options
        }
    return [spec.kind, options]
