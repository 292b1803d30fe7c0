"""A source model and a list of stages: checked before any work, run through the stage cache."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from compress.asp import Asp
from compress.cache import Artifact, StageCache
from compress.channels.stage import PruneChannels
from compress.continuing import FinishedFits, goes_on_from
from compress.finetune import Finetune
from compress.int8.stage import Int8
from compress.keys import computing, library_versions, source_key, stage_key
from compress.learngene.lets import LetsAux, LetsExpand
from compress.learngene.sweet import SweetAux, SweetExpand
from compress.learngene.sws import SwsAux, SwsExpand
from compress.learngene.tleg import TlegAux, TlegExpand
from compress.learngene.wave import WaveAux, WaveExpand
from compress.low_rank.stage import LowRank
from compress.measure.passes import check_forward, check_training_pass
from compress.metrics import Value
from compress.nvit.stage import Nvit
from compress.quant_baselines import KmeansQuant, UniformQuant
from compress.selection.random_init import RandomInit
from compress.selection.stage import WeightSelection
from compress.stage import Context, Phase, Stage
from compress.token_merging import TokenMerging
from compress.wfn.probabilistic import Pwfn
from compress.wfn.stage import Wfn
from trainers import measuring, plugins
from trainers.config import DataConfig, FitOptions, SourceConfig
from trainers.data.splits import DataInfo, load_data
from trainers.models.arch import Arch, ModelState, on_meta
from trainers.models.source import load_source, source_facts
from trainers.option_types import Strategy
from trainers.seeding import derive_seed
from trainers.training import distributed
from trainers.training.sharding import check_module, check_options

Row = dict[str, Any]
"""One epoch as the training loop describes it; JSON-able."""

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
    "wave_aux": WaveAux,
    "wave_expand": WaveExpand,
    "sweet_aux": SweetAux,
    "sweet_expand": SweetExpand,
    "nvit": Nvit,
    "low_rank": LowRank,
    "prune_channels": PruneChannels,
    "token_merging": TokenMerging,
    "asp": Asp,
    "wfn": Wfn,
    "pwfn": Pwfn,
    "int8": Int8,
    "uniform_quant": UniformQuant,
    "kmeans_quant": KmeansQuant,
}
"""Every method by its name in a spec."""


def stages() -> dict[str, type[Stage]]:
    """Every method by its name in a spec: `STAGES` and those that plugins offer.

    Raises:
        ValueError: a plugin offers something else than a stage, or under a taken name.
    """
    return plugins.merged(
        plugins.STAGES,
        STAGES,
        lambda value: isinstance(value, type) and issubclass(value, Stage),
        "a class derived from compress.stage.Stage",
    )


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
    """What happened to one stage.

    Attributes:
        index: position in the pipeline, from 0.
        name: the stage's name in the pipeline.
        kind: its method, a key of `stages()`.
        phase: init, train, prune or quantize.
        key: of its result in the stage cache.
        cached: whether the result came from the cache.
        seconds: spent now.
        seconds_full: spent when the result was computed.
        metrics: what the stage reported.
    """

    index: int
    name: str
    kind: str
    phase: str
    key: str
    cached: bool
    seconds: float
    seconds_full: float
    metrics: dict[str, Value] = field(default_factory=dict)


@dataclass
class PipelineResult:
    """What a pipeline gave.

    Attributes:
        model: the final model.
        stages: what happened to each stage.
        inputs: hashes of what it started from: the source's weights and the data.
        source: the model that it started from.
    """

    model: ModelState
    stages: list[StageRun]
    inputs: dict[str, str] = field(default_factory=dict)
    source: ModelState | None = None

    @property
    def metrics(self) -> dict[str, Value]:
        """What the stages reported; of two values of one name the later stage's counts."""
        return {
            name: value
            for stage in self.stages
            for name, value in stage.metrics.items()
        }


def trains(stages: Sequence[NamedStage]) -> bool:
    """Whether a stage trains the model."""
    return any(isinstance(stage.config, FitOptions) for stage in stages)


def check_order(stages: Sequence[NamedStage]) -> None:
    """Refuse an order in which a stage would undo what an earlier one did.

    Raises:
        ValueError: an init stage after pruning, anything but quantize stages after a quantize
            stage, or a stage that cuts layers after `asp`.
    """
    compressed: NamedStage | None = None  # the last one that pruned or quantised
    sparse: NamedStage | None = None
    for stage in stages:
        phase = stage.config.phase
        cuts = stage.config.finds_dims and phase != "quantize"
        if sparse is not None and cuts:
            raise ValueError(
                f"stages.{stage.name}: it cuts layers, which would break the 2:4 pattern of"
                f" {sparse.name!r}; move it before"
            )
        sparse = stage if isinstance(stage.config, Asp) else sparse
        if compressed is not None and _undoes(phase, compressed.config.phase):
            raise ValueError(
                f"stages.{stage.name}: {'an' if phase == 'init' else 'a'} {phase} stage after"
                f" the {compressed.config.phase} stage {compressed.name!r} would undo it;"
                " move it before"
            )
        if phase in ("prune", "quantize"):
            compressed = stage


def _undoes(phase: Phase, earlier: Phase) -> bool:
    """Whether a stage of one phase would undo what one of an earlier phase has done."""
    if earlier == "quantize":
        return phase != "quantize"
    return earlier == "prune" and phase == "init"


def check_pipeline(
    source: Arch,
    stages: Sequence[NamedStage],
    info: DataInfo,
    workers: int = 1,
    strategy: Strategy = "ddp",
) -> list[Arch]:
    """The architecture after each stage; nothing is computed but a forward pass without values.

    Args:
        workers: processes that train together.
        strategy: what each of them holds of the model.

    Raises:
        ValueError: an order, dimensions or a teacher that do not fit, a model that does not take
            the images; the message starts with the place that it comes from.
    """
    check_order(stages)
    known = {"source": source}
    arch, place = source, "source"
    archs: list[Arch] = []
    for stage in stages:
        here = f"stages.{stage.name}"
        with _placed(here):
            for name, checkpoint in stage.config.teachers():
                _check_teacher(name, checkpoint, known, info)
            found = stage.config.check(arch, info)
        if found != arch:
            arch, place = found, here
        if isinstance(stage.config, FitOptions):
            with _placed(place):
                check_forward(arch, info.image_size, info.num_classes)
            with _placed(here):
                images, _ = stage.config.accumulation(workers)
                check_training_pass(arch, info.image_size, images)
                if strategy == "fsdp" and workers > 1:
                    _check_sharded(stage, stage.config, arch)
        archs.append(arch)
        known[f"stage:{stage.name}"] = arch
    with _placed(place):
        check_forward(arch, info.image_size, info.num_classes)
    return archs


def _check_sharded(stage: NamedStage, options: FitOptions, arch: Arch) -> None:
    """Refuse a stage that cannot train with its parameters split over the workers.

    Raises:
        ValueError: says what needs whole parameters, and what to do.
    """
    if stage.config.num_epochs() == 0:
        return
    if not stage.config.trains_sharded:
        raise ValueError(
            f"{stage.kind} works on whole parameters while it trains, and resources.strategy"
            " fsdp splits them over the workers; set the strategy to ddp"
        )
    check_options(options)
    check_module(on_meta(arch))


@contextmanager
def _placed(place: str) -> Iterator[None]:
    """Put a place before the message of what is refused in this block."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _check_teacher(
    name: str, checkpoint: Path | None, known: Mapping[str, Arch], info: DataInfo
) -> None:
    """Refuse a teacher that is not there, or has other classes or another image size."""
    if name not in known and name.startswith("stage:"):
        have = [stage.removeprefix("stage:") for stage in known if stage != "source"]
        raise ValueError(
            f"teacher {name!r} is no earlier stage; earlier ones:"
            f" {', '.join(have) or 'none'}"
        )
    arch = known.get(name)
    with _placed(f"teacher {name!r}"):
        if arch is None:
            arch = _teacher_arch(name, checkpoint, info.num_classes, info.image_size)
        check_forward(arch, info.image_size, info.num_classes)


@lru_cache(maxsize=32)
def _teacher_arch(
    name: str, checkpoint: Path | None, classes: int, image_size: int
) -> Arch:
    """The architecture of a teacher that is neither the source nor a stage; it is opened."""
    if checkpoint is not None and not checkpoint.exists():
        raise ValueError(f"teacher_checkpoint: no such file: {checkpoint}")
    config = _teacher_config(name, checkpoint)
    return source_facts(config, classes, image_size, trained=False).arch


def _teacher_config(name: str, checkpoint: Path | None) -> SourceConfig:
    """A teacher that is neither the source nor a stage: a saved model or a named one."""
    if Path(name).is_dir():
        return SourceConfig(checkpoint=Path(name))
    return SourceConfig(
        model=name, checkpoint=checkpoint, pretrained=checkpoint is None
    )


class _Run:
    """One pass through a pipeline: keys, models by name, and the stages done so far.

    Attributes:
        model: what the stages so far have made of the source.
        key: of that model in the stage cache.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        cache: StageCache,
        data_cache: Path,
        device: torch.device,
        on_epoch: Callable[[Row], None],
        strategy: Strategy,
    ) -> None:
        self.pipeline = pipeline
        self.cache = cache
        self.device = device
        self.strategy = strategy
        self.on_epoch = on_epoch
        self.data = load_data(pipeline.data, data_cache)
        self.source = load_source(
            pipeline.source,
            num_classes=self.data.info.num_classes,
            image_size=self.data.info.image_size,
            seed=derive_seed(pipeline.seed, "source"),
        )
        self.key = source_key(
            self.source.hash(),
            self.data.fingerprint,
            pipeline.seed,
            computing(device, strategy),
            library_versions(),
        )
        self.model = self.source
        self._models: dict[str, ModelState] = {}
        self._keys: dict[str, str] = {}
        self._kinds: Counter[str] = Counter()

    def find_teacher(self, name: str, checkpoint: Path | None) -> ModelState:
        """The model that a teacher's name means; see `DistillConfig.teacher`."""
        if name == "source":
            return self.source
        if name.startswith("stage:"):
            return self._models[name.removeprefix("stage:")]
        info = self.data.info
        return load_source(
            _teacher_config(name, checkpoint),
            num_classes=info.num_classes,
            image_size=info.image_size,
            seed=0,
        )

    def _teacher_key(self, name: str, checkpoint: Path | None) -> str:
        if name.startswith("stage:"):
            return self._keys[name.removeprefix("stage:")]
        return self.find_teacher(name, checkpoint).hash()

    def run_stage(self, index: int, stage: NamedStage) -> StageRun:
        """Run the next stage, or take its result from the cache."""
        teachers = [self._teacher_key(*each) for each in stage.config.teachers()]
        parts = self.key, stage.kind, stage.config, teachers
        self.key = stage_key(*parts)
        # the seed depends on how many of this kind came before, not on the position in the
        # list: a slot that is left empty must not change the randomness of its successors
        seed = derive_seed(self.pipeline.seed, stage.kind, self._kinds[stage.kind])
        self._kinds[stage.kind] += 1

        begun = measuring.working_seconds()
        artifact, cached = self._get_or_build(
            lambda workdir: self._build(stage, seed, workdir, goes_on_from(*parts))
        )
        if cached:
            for row in artifact.rows:
                self.on_epoch({"stage": stage.name, "cached": True} | row)
        self.model = artifact.model
        self._models[stage.name] = artifact.model
        self._keys[stage.name] = self.key
        return StageRun(
            index=index,
            name=stage.name,
            kind=stage.kind,
            phase=stage.config.phase,
            key=self.key,
            cached=cached,
            seconds=measuring.working_seconds() - begun,
            seconds_full=artifact.seconds,
            metrics=artifact.metrics,
        )

    def _build(
        self, stage: NamedStage, seed: int, workdir: Path, ends: Sequence[str]
    ) -> Artifact:
        """Run a stage on the present model.

        Args:
            ends: keys of this stage with fewer epochs; it may go on from where one of them ended.
        """
        rows: list[Row] = []
        fits = FinishedFits(self.cache.root, self.cache.remote)
        keeps = bool(ends) and distributed.rank() == 0
        done = fits.put_back(ends, workdir) if keeps else {}

        def note_epoch(row: Row) -> None:
            rows.append(row)
            # rows of a plugin's own loop belong to no fit
            cached = row["epoch"] < done.get(row.get("fit", ""), 0)
            self.on_epoch({"stage": stage.name, "cached": cached} | row)

        ctx = Context(
            self.data,
            self.device,
            seed,
            workdir,
            self.find_teacher,
            note_epoch,
            strategy=self.strategy,
        )
        begun = measuring.working_seconds()
        torch.manual_seed(seed)
        model = stage.config.run(self.model, ctx)
        seconds = measuring.working_seconds() - begun + ctx.restored_seconds
        if keeps:
            fits.keep(self.key, workdir)
        return Artifact(model, seconds, ctx.reported, rows)

    def _get_or_build(self, build: Callable[[Path], Artifact]) -> tuple[Artifact, bool]:
        """Ask the cache. In a process group rank 0 asks it, and calls the others where the
        stage is to be computed; all get rank 0's artifact.
        """
        if not distributed.active():
            return self.cache.get_or_build(self.key, build)
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
    on_epoch: Callable[[Row], None] = lambda row: None,
    on_stage: Callable[[StageRun], None] = lambda run: None,
    strategy: Strategy = "ddp",
) -> PipelineResult:
    """Run every stage, or take its result from the cache.

    In a process group every rank calls this with the same pipeline, and gets the same model.

    Args:
        pipeline: source, data, stages and root seed.
        cache: of stages.
        data_cache: folder of decoded images.
        device: where modules run.
        on_begin: called before each stage with the stage and the model that it gets.
        on_epoch: called with every epoch's row, also with those of cached stages.
        on_stage: called after each stage.
        strategy: what each process of the group holds of a model that is trained.
    """
    run = _Run(pipeline, cache, data_cache, device, on_epoch, strategy)
    done: list[StageRun] = []
    for index, stage in enumerate(pipeline.stages):
        on_begin(stage, run.model)
        done.append(run.run_stage(index, stage))
        on_stage(done[-1])
    return PipelineResult(
        run.model,
        done,
        {"source": run.source.hash(), "data": run.data.fingerprint},
        run.source,
    )
