"""A source model and a list of stages: checked before any work, run through the stage cache."""

import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import torch

from compress.asp import Asp
from compress.cache import Artifact, StageCache, content_key
from compress.finetune import Finetune
from compress.learngene.lets import LetsAux, LetsExpand
from compress.learngene.sws import SwsAux, SwsExpand
from compress.learngene.tleg import TlegAux, TlegExpand
from compress.nvit.stage import Nvit
from compress.quant_baselines import KmeansQuant, UniformQuant
from compress.selection.random_init import RandomInit
from compress.selection.stage import WeightSelection
from compress.stage import Context, Stage
from compress.wfn.stage import Wfn
from trainers.config import DataConfig, SourceConfig
from trainers.data.splits import DataInfo, load_data
from trainers.files import sha256_file
from trainers.models.arch import Arch, ModelState
from trainers.models.source import load_source
from trainers.seeding import derive_seed
from trainers.training import distributed

STAGES: dict[str, type[Stage]] = {
    "finetune": Finetune,
    "random_init": RandomInit,
    "weight_selection": WeightSelection,
    "sws_aux": SwsAux,
    "sws_expand": SwsExpand,
    "lets_aux": LetsAux,
    "lets_expand": LetsExpand,
    "tleg_aux": TlegAux,
    "tleg_expand": TlegExpand,
    "nvit": Nvit,
    "asp": Asp,
    "wfn": Wfn,
    "uniform_quant": UniformQuant,
    "kmeans_quant": KmeansQuant,
}
"""Every method by its name in a spec."""


def stages() -> dict[str, type[Stage]]:
    """Every method by its name in a spec: `STAGES` and those that plugins offer."""
    return STAGES


@dataclass(frozen=True)
class NamedStage:
    """A stage in a pipeline: its name there, its kind (a key of `STAGES`) and its config."""

    name: str
    kind: str
    config: Stage


@dataclass(frozen=True)
class Pipeline:
    """All that decides a trial's model: source, data, stages and the root seed."""

    source: SourceConfig
    data: DataConfig
    stages: tuple[NamedStage, ...]
    seed: int


@dataclass
class StageRun:
    """What happened to one stage. `seconds` were spent now, `seconds_full` when it was computed."""

    index: int
    name: str
    kind: str
    phase: str
    key: str
    cached: bool
    seconds: float
    seconds_full: float
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass
class PipelineResult:
    """What a pipeline gave. `inputs`: the hashes of what it started from, the source's
    weights and the data.
    """

    model: ModelState
    stages: list[StageRun]
    inputs: dict[str, str] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, Any]:
        """What the stages reported; a later stage's value stands."""
        return {
            name: value
            for stage in self.stages
            for name, value in stage.metrics.items()
        }


def check_order(stages: Sequence[NamedStage]) -> None:
    """Refuse an order that undoes work.

    Raises:
        ValueError: an init stage after pruning, or anything but quantize stages after a
            quantize stage.
    """
    later: NamedStage | None = None
    for stage in stages:
        phase = stage.config.phase
        if (
            later is not None
            and later.config.phase == "quantize"
            and phase != "quantize"
        ):
            raise ValueError(
                f"stages.{stage.name}: a {phase} stage after the quantize stage"
                f" {later.name!r} would undo it; move it before"
            )
        if later is not None and later.config.phase == "prune" and phase == "init":
            raise ValueError(
                f"stages.{stage.name}: an init stage after the prune stage"
                f" {later.name!r} would undo it; move it before"
            )
        if phase in ("prune", "quantize"):
            later = stage


def check_pipeline(
    source: Arch, stages: Sequence[NamedStage], info: DataInfo
) -> list[Arch]:
    """The architecture after each stage; takes no resource.

    Raises:
        ValueError: an order or dimensions that do not fit; the message starts with the
            stage's place.
    """
    check_order(stages)
    archs: list[Arch] = []
    seen: set[str] = set()
    for stage in stages:
        for name, _ in stage.config.teachers():
            wanted = name.removeprefix("stage:")
            if name.startswith("stage:") and wanted not in seen:
                have = ", ".join(sorted(seen)) or "none"
                raise ValueError(
                    f"stages.{stage.name}: teacher {name!r} is no earlier stage;"
                    f" earlier ones: {have}"
                )
        try:
            source = stage.config.check(source, info)
        except ValueError as error:
            raise ValueError(f"stages.{stage.name}: {error}") from error
        archs.append(source)
        seen.add(stage.name)
    return archs


def library_versions() -> dict[str, str]:
    """Versions that can change a result."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": version("timm"),
        "numpy": numpy.__version__,
    }


def _hashed_paths(value: Any) -> Any:
    """Config values with every path replaced by its content's hash: where a file lies
    decides nothing.
    """
    if isinstance(value, Path):
        if value.is_dir():
            return {
                p.relative_to(value).as_posix(): sha256_file(p)
                for p in sorted(value.rglob("*"))
                if p.is_file()
            }
        return sha256_file(value)
    if isinstance(value, dict):
        return {k: _hashed_paths(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_hashed_paths(v) for v in value]
    return value


@lru_cache(maxsize=4)
def _named_teacher(
    name: str, checkpoint: Path | None, classes: int, image_size: int
) -> ModelState:
    if Path(name).is_dir():
        return ModelState.load(Path(name))
    config = SourceConfig(
        model=name, checkpoint=checkpoint, pretrained=checkpoint is None
    )
    return load_source(config, num_classes=classes, image_size=image_size, seed=0)


class _Run:
    """One pass through a pipeline: keys, models by name, and the stages done so far."""

    def __init__(
        self,
        pipeline: Pipeline,
        cache: StageCache,
        data_cache: Path,
        device: torch.device,
        on_epoch: Callable[[dict[str, Any]], None],
    ) -> None:
        self.pipeline, self.cache, self.device, self.on_epoch = (
            pipeline,
            cache,
            device,
            on_epoch,
        )
        self.data = load_data(pipeline.data, data_cache)
        info = self.data.info
        self.source = load_source(
            pipeline.source,
            num_classes=info.num_classes,
            image_size=info.image_size,
            seed=derive_seed(pipeline.seed, "source"),
        )
        compute = {
            "device": device.type,
            "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        }
        if distributed.world_size() > 1:
            compute["workers"] = distributed.world_size()
        self.key = content_key(
            self.source.hash(),
            self.data.fingerprint,
            pipeline.seed,
            compute,
            library_versions(),
        )
        self.model = self.source
        self.models: dict[str, ModelState] = {}
        self.keys: dict[str, str] = {}
        self.kinds: Counter[str] = Counter()

    def find_teacher(self, name: str, checkpoint: Path | None) -> ModelState:
        if name == "source":
            return self.source
        if name.startswith("stage:"):
            return self.models[name.removeprefix("stage:")]
        return _named_teacher(
            name, checkpoint, self.data.info.num_classes, self.data.info.image_size
        )

    def _teacher_key(self, name: str, checkpoint: Path | None) -> str:
        if name.startswith("stage:"):
            return self.keys[name.removeprefix("stage:")]
        return self.find_teacher(name, checkpoint).hash()

    def run_stage(self, index: int, stage: NamedStage) -> StageRun:
        config = stage.config
        teachers = [self._teacher_key(*teacher) for teacher in config.teachers()]
        canonical = _hashed_paths(config.model_dump())
        self.key = content_key(
            self.key, stage.kind, config.version, canonical, teachers
        )
        # not the place in the list: a slot that is empty must not change its successors' randomness
        seed = derive_seed(self.pipeline.seed, stage.kind, self.kinds[stage.kind])
        self.kinds[stage.kind] += 1
        rows: list[dict[str, Any]] = []

        def note_epoch(row: dict[str, Any]) -> None:
            rows.append(row)
            self.on_epoch({"stage": stage.name, "cached": False} | row)

        def build(workdir: Path) -> Artifact:
            ctx = Context(
                self.data, self.device, seed, workdir, self.find_teacher, note_epoch
            )
            begun = time.perf_counter()
            torch.manual_seed(seed)
            model = config.run(self.model, ctx)
            seconds = time.perf_counter() - begun + ctx.restored_seconds
            return Artifact(model, seconds, ctx.reported, rows)

        begun = time.perf_counter()
        artifact, cached = (
            self._shared(build)
            if distributed.active()
            else self.cache.get_or_build(self.key, build)
        )
        if cached:
            for row in artifact.rows:
                self.on_epoch({"stage": stage.name, "cached": True} | row)
        self.model = self.models[stage.name] = artifact.model
        self.keys[stage.name] = self.key
        return StageRun(
            index,
            stage.name,
            stage.kind,
            config.phase,
            self.key,
            cached,
            time.perf_counter() - begun,
            artifact.seconds,
            artifact.metrics,
        )

    def _shared(self, build: Callable[[Path], Artifact]) -> tuple[Artifact, bool]:
        """Rank 0 asks the cache, and calls the others where the stage is to be computed;
        all get rank 0's artifact.
        """
        if distributed.rank() == 0:

            def call_all(workdir: Path) -> Artifact:
                distributed.from_rank_0(str(workdir))
                return build(workdir)

            artifact, cached = self.cache.get_or_build(self.key, call_all)
            if cached:
                distributed.from_rank_0("")
            return distributed.from_rank_0((artifact, cached))
        workdir: str = distributed.from_rank_0(None)
        if workdir:
            build(Path(workdir))
        return distributed.from_rank_0(None)


def run_pipeline(
    pipeline: Pipeline,
    *,
    cache: StageCache,
    data_cache: Path,
    device: torch.device,
    on_begin: Callable[[NamedStage, ModelState], None] = lambda stage, model: None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
    on_stage: Callable[[StageRun], None] = lambda run: None,
) -> PipelineResult:
    """Run every stage, or take it from the cache. `on_epoch` sees every epoch row, cached
    ones too; `on_begin` sees every stage with the model that it gets.

    In a process group every rank calls this with the same pipeline, and gets the same model.
    """
    run = _Run(pipeline, cache, data_cache, device, on_epoch)
    done: list[StageRun] = []
    for index, stage in enumerate(pipeline.stages):
        on_begin(stage, run.model)
        done.append(run.run_stage(index, stage))
        on_stage(done[-1])
    return PipelineResult(
        run.model, done, {"source": run.source.hash(), "data": run.data.fingerprint}
    )
