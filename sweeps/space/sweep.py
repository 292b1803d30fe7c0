"""A sweep: a spec that has been checked, its space, and what checking found."""

from dataclasses import dataclass

from compress.pipeline import NamedStage
from sweeps.space.dimension import Draw
from sweeps.space.slots import is_pipeline, is_slot
from sweeps.space.space import Space
from sweeps.spec.model import Spec
from trainers.models.arch import Arch
from trainers.plugins import PluginFile


@dataclass(frozen=True)
class Sweep:
    """A spec that holds, made by `sweeps.check.check_spec`.

    Attributes:
        spec: as the user wrote it, validated.
        space: what is searched.
        points: draws to try first, of `search.points`; the sampler draws what one lacks.
        example: the stages of one configuration.
        archs: the architecture after each of them.
        plugins: those that the spec names, as they travel to every process.
        data: the data set in one line.
        remarks: what a user must know about source and data, whole sentences.
    """

    spec: Spec
    space: Space
    points: tuple[Draw, ...]
    example: tuple[NamedStage, ...]
    archs: tuple[Arch, ...]
    plugins: tuple[PluginFile, ...] = ()
    data: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def num_configurations(self) -> int:
        """Configurations that the search will try."""
        size, trials = self.space.size(), self.spec.search.trials
        return trials if size is None else min(trials, size)

    def distinct_stages(self) -> list[tuple[str, int]]:
        """For each stage the number of times that it is computed at most, thanks to the cache.

        A slot counts as one stage; the stages of its sub-pipelines follow it, each with the
        most over alternatives.
        """
        names = list(self.spec.stages)
        rows: list[tuple[str, int]] = []
        for i, name in enumerate(names):
            rows.append((name, self._at_most(self.space.size(names[: i + 1]))))
            if is_slot(self.spec.stages[name]):
                rows += self._inner_stages(names[:i], name)
        return rows

    def _inner_stages(self, before: list[str], slot: str) -> list[tuple[str, int]]:
        """The stages of a slot's sub-pipelines, as in `distinct_stages`."""
        inner: dict[str, int] = {}
        for alternative, config in self.spec.stages[slot]["one_of"].items():
            stages = list(config["stages"]) if is_pipeline(config) else []
            for j, stage in enumerate(stages):
                size = self.space.size(before, (slot, alternative, stages[: j + 1]))
                inner[stage] = max(self._at_most(size), inner.get(stage, 0))
        return list(inner.items())

    def _at_most(self, size: int | None) -> int:
        limit = self.num_configurations
        return (limit if size is None else min(limit, size)) * (
            self.spec.search.replicates
        )
