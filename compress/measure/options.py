"""How the final model of a trial is measured: the section `measure` of a spec."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator

from trainers.config import Config
from trainers.hashing import LATER

Precision = Literal["float32", "bfloat16", "float16"]
"""Floating-point types in which a model is measured; each is the name of a torch dtype."""

RuntimeName = Literal[
    "torch", "torch_compile", "onnxruntime", "openvino", "executorch", "tensorrt"
]
"""What can execute a model; each is in `compress.runtimes.registry.RUNTIMES`."""


class RuntimeOptions(Config):
    """What executes a model, and how."""

    runtime: RuntimeName = Field(
        "torch",
        description=(
            "what executes the model. torch: eagerly; torch_compile: by torch.compile;"
            " the others: the file that `sweeps export` writes"
        ),
    )
    batch_size: int = Field(64, ge=1, description="images of a pass")
    precision: Precision = Field(
        "float32",
        description="of all that a quantize stage did not make integers",
    )
    threads: int | None = Field(
        None, ge=1, description="of the CPU; default: those of the trial"
    )


MeasurementName = Annotated[
    str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)
]


class MeasureConfig(RuntimeOptions):
    """How the final model's latency and memory are measured, on the trial's device."""

    also: dict[MeasurementName, RuntimeOptions] = Field(
        default_factory=dict,
        description=(
            "further runtimes: name → options, {ort: {runtime: onnxruntime}}; their metrics"
            " begin with the name, ort_latency_ms"
        ),
    )

    evaluate_in: Annotated[Literal["torch", "runtime"], LATER] = Field(
        "torch",
        description=(
            "what predicts the images of the validation part and the test set. torch: the"
            " module, which simulates the integers of a quantised model; runtime: the deployed"
            " file, on the CPU in far less time where it executes integers"
        ),
    )
    latency: bool = Field(True, description="measure latency and memory at all")
    alone: bool = Field(
        True,
        description=(
            "measure latency as the only one on the node, while other trials that share its"
            " cores or GPU stand still between two steps"
        ),
    )
    warmup: int = Field(
        3,
        ge=0,
        json_schema_extra={"unit": "passes"},
        description="forward passes before the clock",
    )
    repeats: int = Field(
        30,
        ge=3,
        json_schema_extra={"unit": "passes"},
        description="timed forward passes; their median counts",
    )
    max_seconds: float = Field(
        10.0, gt=0, description="stop repeating after this long, with at least 3"
    )
    samples: int = Field(
        12,
        ge=0,
        le=100,
        json_schema_extra={"unit": "images"},
        description=(
            "of the validation part, those with the largest loss, which each trial keeps as"
            " thumbnails of some 2 kB for its page in the report. 0: no images, confusion and"
            " calibration neither"
        ),
    )

    @field_validator("also")
    @classmethod
    def _no_name_is_taken(
        cls, also: dict[str, RuntimeOptions]
    ) -> dict[str, RuntimeOptions]:
        taken = sorted({"test", "p95"} & also.keys())
        if taken:
            raise ValueError(f"{taken[0]!r} begins other metrics; choose another name")
        return also

    @property
    def runtimes(self) -> dict[str, RuntimeOptions]:
        """What begins a runtime's metrics → its options: "" and `also`'s names with "_"."""
        return {"": self} | {f"{name}_": each for name, each in self.also.items()}
