"""What a candidate will cost, where a trial of the same structure has been measured.

Latency, bytes and operations follow from what a pipeline cuts and from how it stores the result,
not from how long it trains. So an untrained trial tells what the same model will cost when it has
been trained; where that misses a bound, training it does not meet the goal. Nor can what costs
at least as much, as the same model does with some of its layers left in float.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class _Facts:
    """What is known of a draw before it is tried.

    Attributes:
        structure: its own; None where what the draw lacks, and a sampler adds, decides it.
        cheaper: the structure that costs no more.
        epochs: stage → epochs, of the stages that train.
    """

    structure: str | None
    cheaper: str | None
    epochs: Mapping[str, int]


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
        self._facts: dict[str, _Facts] = {}
        self._metrics: defaultdict[str | None, list[Mapping[str, object]]] = (
            defaultdict(list)
        )

    def note(self, record: TrialRecord) -> None:
        """Take a trial that ended, the baseline too."""
        plan = record.plan
        if record.status == "complete" and plan.refines is None:
            structure = _structure(plan.source, plan.data, plan.stages)
            self._metrics[structure].append(record.outcome.metrics)

    def may_meet(
        self,
        draws: Sequence[Draw],
        running: Sequence[Draw] = (),
        *,
        are_named: bool = False,
    ) -> list[bool]:
        """Whether each may keep the bounds, as far as what it will cost is known.

        Args:
            running: those that a trial tries now. What will be trained waits for one that tells
                what it costs, and may not keep them as yet.
            are_named: whether somebody asked for them, so that it counts where they are not tried.
        """
        if self.sweep.spec.search.stop_when != "goal":
            return [True] * len(draws)
        found = [not self._misses(draw) for draw in draws]
        if are_named:
            pairs = zip(draws, found, strict=True)
            self.left_out |= {canonical(draw) for draw, may in pairs if not may}
        return [
            may and not self._is_awaited(draw, running)
            for draw, may in zip(draws, found, strict=True)
        ]

    def untrained(self, draw: Draw) -> Draw | None:
        """A draw of the same structure that trains nothing, by other alternatives of slots; None
        where this one trains nothing, there is no such draw, or what it costs is known or not
        asked.
        """
        spec = self.sweep.spec
        bounded = [o.metric for o in spec.objectives if o.bound is not None]
        has_limit = any(metric.endswith(_COSTS) for metric in bounded)
        if spec.search.stop_when != "goal" or not has_limit:
            return None
        facts = self._facts_of(draw)
        is_known = {facts.structure, facts.cheaper} & self._metrics.keys()
        if facts.structure is None or not facts.epochs or is_known:
            return None
        found = draw
        for slot in (d for d in self.sweep.space.dimensions if d.is_slot):
            for choice in slot.choices or ():
                changed = {**found, slot.path: choice}
                other = self.sweep.space.completed(changed, 0.0)
                there = self._facts_of(other)
                is_alike = there.structure == facts.structure
                if is_alike and _total(there) < _total(self._facts_of(found)):
                    found = other
        return None if self._facts_of(found).epochs else found

    def epochs(self, draw: Draw) -> Mapping[str, int]:
        """Stage → epochs that a draw trains, without stages that train none."""
        return self._facts_of(draw).epochs

    def _is_awaited(self, draw: Draw, running: Sequence[Draw]) -> bool:
        """Whether a trial that runs will tell what this draw costs, before it is trained."""
        if not running or self.untrained(draw) is None:
            return False
        own = self._facts_of(draw).structure
        return any(self._facts_of(each).structure == own for each in running)

    def _misses(self, draw: Draw) -> bool:
        facts = self._facts_of(draw)
        for structure in {facts.structure, facts.cheaper} - {None}:
            known = self._metrics.get(structure, [])
            for objective in self.sweep.spec.objectives:
                name = objective.metric
                values = [v for m in known if isinstance(v := m.get(name), int | float)]
                # what is just beyond is as likely to stay there, and a training is dear
                beyond = [objective.excess(value) > 0 for value in values]
                if name.endswith(_COSTS) and beyond and all(beyond):
                    return True
        return False

    def _facts_of(self, draw: Draw) -> _Facts:
        name = canonical(draw)
        # a grid is asked for all of its draws each time
        if name not in self._facts:
            self._facts[name] = self._resolved_facts(draw)
        return self._facts[name]

    def _resolved_facts(self, draw: Draw) -> _Facts:
        # with the first and with the last value of all that is lacking
        first, last = (self.sweep.space.completed(draw, place) for place in (0.0, 0.99))
        found: list[list[str]] = []
        epochs: dict[str, int] = {}
        for whole in [first] if first == last else [first, last]:
            try:
                resolved = resolved_trial(self.sweep.space, whole)
            except SpecError:
                return _Facts(None, None, {})  # the trial says what is wrong
            facts = resolved.source, resolved.data, resolved.specs
            found.append([_structure(*facts), _structure(*facts, is_cheaper=True)])
            of_stages = {s.name: s.config.num_epochs() for s in resolved.stages}
            epochs = {name: count for name, count in of_stages.items() if count}
        own, cheaper = (
            each[0] if len(set(each)) == 1 else None
            for each in zip(*found, strict=True)
        )
        return _Facts(own, cheaper, epochs)


def _total(facts: _Facts) -> int:
    """Epochs of all stages."""
    return sum(facts.epochs.values())


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
