"""How the final model of a trial is measured: the section `measure` of a spec."""

from typing import Literal

from pydantic import Field

from trainers.config import Config

Precision = Literal["float32", "bfloat16", "float16"]
"""Floating-point types in which a model is measured; each is the name of a torch dtype."""

RuntimeName = Literal[
    "torch", "torch_compile", "onnxruntime", "openvino", "tensorrt", "executorch"
]
"""What can execute a model; each is a key of `compress.runtimes.RUNTIMES`."""


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


class MeasureConfig(RuntimeOptions):
    """How the final model's latency and memory are measured, on the trial's device."""

    latency: bool = True
    alone: bool = Field(
        True,
        description=(
            "measure latency as the only one on the node, while other trials that share its"
            " cores or GPU stand still between two steps"
        ),
    )
    warmup: int = Field(3, ge=0, description="forward passes before the clock")
    repeats: int = Field(
        30, ge=3, description="timed forward passes; their median counts"
    )
    max_seconds: float = Field(
        10.0, gt=0, description="stop repeating after this long, with at least 3"
    )
