"""A whole pipeline from Python: no spec, no Ray, no run folder."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from compress.cache import StageCache
from compress.metrics import FinalModel, MeasureConfig, Value, measure
from compress.pipeline import (
    NamedStage,
    Pipeline,
    PipelineResult,
    check_pipeline,
    run_pipeline,
    stages,
    trains,
)
from compress.stage import Stage
from trainers.config import DataConfig, SourceConfig
from trainers.data.splits import data_info, load_data
from trainers.files import default_data_cache, expanded, user_cache
from trainers.models.source import source_facts

StageGiven = Stage | tuple[str, Mapping[str, Any]] | str


def run(
    source: str | SourceConfig,
    data: str | DataConfig,
    pipeline: Iterable[StageGiven],
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    cache: Path | str | None = None,
    data_cache: Path | str | None = None,
) -> PipelineResult:
    """Check a pipeline and run it.

    Args:
        source: a model's name (`SourceConfig.model`), or all about it.
        data: a data set's name (`DataConfig.dataset`), or all about it.
        pipeline: stages in their order: a stage, a name with a config as in a spec, or a
            name alone. A stage is named after its kind; a second one of a kind `<kind>_2`.
        seed: the root seed.
        device: where modules run.
        cache: folder of finished stages: what is in it is not computed again, and a killed
            run goes on from there; default: a folder of the user's cache.
        data_cache: folder of decoded images; default: the same.

    Returns:
        The final model (`result.model`, a `ModelState`; `.build()` makes the module) and
        what each stage reported. `compress.measured` measures it.

    Raises:
        ValueError: stages that do not fit together, named, before anything is computed.
    """
    planned = _pipeline(source, data, pipeline, seed)
    info = data_info(planned.data)
    facts = source_facts(
        planned.source,
        info.num_classes,
        info.image_size,
        trained=trains(planned.stages),
    )
    check_pipeline(facts.arch, planned.stages, info)
    return run_pipeline(
        planned,
        cache=StageCache(
            Path(expanded(str(cache))) if cache else user_cache() / "stages"
        ),
        data_cache=_data_cache(data_cache),
        device=torch.device(device),
    )


def measured(
    result: PipelineResult,
    data: str | DataConfig,
    *,
    device: str | torch.device = "cpu",
    data_cache: Path | str | None = None,
    **options: Any,
) -> dict[str, Value]:
    """Every metric of a pipeline's final model that exists; see `compress.metrics`.

    Args:
        result: of `run`.
        data: as `run` was given.
        device: where latency and memory are measured.
        data_cache: as in `run`.
        options: fields of `MeasureConfig`: latency, batch_size, precision, …
    """
    final = FinalModel(
        result.model,
        load_data(_data(data), _data_cache(data_cache)),
        torch.device(device),
        MeasureConfig.model_validate(options),
        dict(result.metrics),
        result.source,
    )
    quantized = any(stage.phase == "quantize" for stage in result.stages)
    return measure(final, quantized=quantized)


def _data_cache(given: Path | str | None) -> Path:
    return Path(expanded(str(given))) if given else default_data_cache()


def _data(given: str | DataConfig) -> DataConfig:
    if isinstance(given, DataConfig):
        return given
    return DataConfig.model_validate({"dataset": given})


def _pipeline(
    source: str | SourceConfig,
    data: str | DataConfig,
    pipeline: Iterable[StageGiven],
    seed: int,
) -> Pipeline:
    if isinstance(source, str):
        source = SourceConfig(model=source)
    seen: Counter[str] = Counter()
    named: list[NamedStage] = []
    for given in pipeline:
        kind, stage = _stage(given)
        seen[kind] += 1
        name = kind if seen[kind] == 1 else f"{kind}_{seen[kind]}"
        named.append(NamedStage(name, kind, stage))
    return Pipeline(source, _data(data), tuple(named), seed)


def _stage(given: StageGiven) -> tuple[str, Stage]:
    """(kind, stage)."""
    known = stages()
    if isinstance(given, Stage):
        kinds = [kind for kind, stage in known.items() if stage is type(given)]
        # a stage that nobody offers by a name is called by its class, in the cache too
        return (kinds[0] if kinds else type(given).__qualname__), given
    kind, config = (given, {}) if isinstance(given, str) else given
    if kind not in known:
        raise ValueError(f"no stage {kind!r}; valid: {', '.join(known)}")
    return kind, known[kind].model_validate(dict(config))
