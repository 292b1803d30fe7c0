"""A member of a family on a handful of images: what the columns of the model matrix need of it."""

import hashlib
import json
import math
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from model_families import Family
from safetensors.torch import save_file
from torch import Tensor, nn

from compress.cache import StageCache
from compress.measure.layers import measure_layers
from compress.measure.options import MeasureConfig
from compress.metrics import FinalModel, measure
from compress.pipeline import NamedStage, Pipeline, PipelineResult, run_pipeline
from sweeps.check import check_spec
from sweeps.spec.load import spec_from
from sweeps.spec.yaml_text import SpecError
from trainers.data.splits import Data, load_data
from trainers.models.arch import ModelState
from trainers.models.make import make_arch
from trainers.models.source import load_source

SEED = 3
DATA = {
    "dataset": "digits",
    "limit": 24,
    "limit_test": 8,
    "val_fraction": 0.25,
    "workers": 0,
}
Stages = dict[str, dict[str, Any]]


class Refused(Exception):
    """What was asked for was refused before anything was computed; says what the user reads."""


@dataclass
class Case:
    """A family's member, with what the columns need of it.

    Attributes:
        family: the row.
        workdir: for its checkpoints and stages.
    """

    family: Family
    workdir: Path

    @cached_property
    def data(self) -> Data:
        return load_data(
            self._config(self.family.model, {}).data, self.workdir / "data"
        )

    @cached_property
    def state(self) -> ModelState:
        """The member as the first stage gets it: read from a checkpoint file."""
        return self.loaded(self.checked({"random_init": {}}).source)

    def _config(self, model: str, args: dict[str, Any]) -> Any:
        """The validated form of a spec without stages of interest."""
        return spec_from(self._spec(model, args, {"random_init": {}}))

    def loaded(self, source: Any) -> ModelState:
        info = self.data.info
        return load_source(
            source,
            num_classes=info.num_classes,
            image_size=info.image_size,
            seed=SEED,
        )

    def checkpoint(self, model: str, args: dict[str, Any]) -> Path:
        """A file with weights of which none has its initial value, so that zeros at the
        start (layer scale, heads) hide nothing.
        """
        digest = hashlib.sha256(json.dumps([model, args]).encode()).hexdigest()
        path = self.workdir / f"{digest[:16]}.safetensors"
        if not path.exists():
            arch = make_arch(
                model,
                num_classes=self.data.info.num_classes,
                image_size=self.data.info.image_size,
                args=args,
            )
            save_file(disturbed(arch.build()), path)
        return path

    def _spec(
        self, model: str, args: dict[str, Any], stages_: Stages
    ) -> dict[str, Any]:
        return {
            "name": "matrix",
            "storage": str(self.workdir),
            "source": {"model": model, "args": args},
            "data": DATA | {"image_size": self.family.image_size},
            "stages": stages_,
            "objectives": [{"metric": "accuracy", "mode": "max"}],
        }

    def checked(self, stages_: Stages, *, larger: bool = False) -> Pipeline:
        """What `sweeps validate` makes of these stages.

        Args:
            larger: start from the family's larger model, not from its member.

        Raises:
            Refused: as a user reads it.
        """
        model, args = self.family.model, self.family.args
        if larger:
            args = args if self.family.larger is None else self.family.larger
            if self.family.larger_model is not None:
                model, args = self.family.larger_model, {}
        raw = self._spec(model, args, stages_)
        try:
            check_spec(
                spec_from(raw)
            )  # without a file first: is there such a model at all?
            raw["source"]["checkpoint"] = str(self.checkpoint(model, args))
            sweep = check_spec(spec_from(raw))
        except SpecError as error:
            raise Refused(str(error)) from error
        return Pipeline(sweep.spec.source, sweep.spec.data, sweep.example, SEED)

    def ran(self, stages_: Stages, *, larger: bool = False) -> "Ran":
        """These stages, checked and run, and all that a trial measures of the result.

        Raises:
            Refused: by the check.
        """
        planned = self.checked(stages_, larger=larger)
        start = self.loaded(planned.source)
        before = start.hash()
        with tempfile.TemporaryDirectory(dir=self.workdir) as folder:
            result = run_pipeline(
                planned,
                cache=StageCache(Path(folder)),
                data_cache=self.workdir / "data",
                device=torch.device("cpu"),
            )
        require(start.hash() == before, "the stages changed the source")
        quantized = any(stage.config.phase == "quantize" for stage in planned.stages)
        final = FinalModel(
            result.model,
            self.data,
            torch.device("cpu"),
            MeasureConfig(batch_size=2, warmup=1, repeats=3),
            dict(result.metrics),
        )
        metrics = measure(final, quantized=quantized)
        for name, value in metrics.items():
            require(
                isinstance(value, str) or math.isfinite(value), f"{name} is {value}"
            )
        require(bool(measure_layers(result.model)), "no layer has a row")
        return Ran(planned.stages, start, result, metrics)


@dataclass(frozen=True)
class Ran:
    """What a pipeline gave.

    Attributes:
        stages: of it.
        start: the source model.
        result: of the pipeline.
        metrics: of its final model.
    """

    stages: tuple[NamedStage, ...]
    start: ModelState
    result: PipelineResult
    metrics: dict[str, Any]

    @property
    def model(self) -> ModelState:
        return self.result.model


def disturbed(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors, with noise on every parameter."""
    generator = torch.Generator().manual_seed(SEED)
    parameters = {name for name, _ in module.named_parameters()}
    return {
        name: (
            tensor + 0.02 * torch.randn(tensor.shape, generator=generator)
            if name in parameters and tensor.is_floating_point()
            else tensor.clone()
        ).contiguous()
        for name, tensor in module.state_dict().items()
    }


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All values, float64 (n,)."""
    return torch.cat([tensor.double().reshape(-1) for tensor in tensors])


def require(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)
