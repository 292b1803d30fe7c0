"""What initialisers of a named student share: its name, its builder's arguments, its
architecture.
"""

from dataclasses import replace
from typing import Any

from pydantic import Field, field_validator

from compress.stage import Stage
from trainers.data.splits import DataInfo
from trainers.models.arch import Arch, buildable
from trainers.models.make import make_arch


class StudentStage(Stage):
    """A stage that returns a model of another (or the same) named architecture.

    The student's classes and image size are those of the data.
    """

    model: str | None = Field(
        None,
        description=(
            "the student: a timm name, a CIFAR ResNet or revit; default: the incoming"
            " model's name"
        ),
    )
    args: dict[str, Any] = Field(
        default_factory=dict,
        description=(
            "arguments of the student's builder; without `model`, they replace those of"
            " the incoming model one by one"
        ),
    )

    @field_validator("args")
    @classmethod
    def _classes_come_from_data(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "num_classes" in value:
            raise ValueError("args: num_classes comes from the data; remove it")
        return value

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        """The student's architecture.

        Raises:
            ValueError: no such model, or arguments that it does not take.
        """
        if self.model is None and arch.dims:  # a shape that its name does not tell
            sizes = {"num_classes": data.num_classes, "img_size": data.image_size}
            sizes = {name: n for name, n in sizes.items() if name in arch.args}
            return buildable(replace(arch, args={**arch.args, **sizes, **self.args}))
        inherited: dict[str, Any] = {}
        if self.model is None:
            inherited = {
                k: v
                for k, v in arch.args.items()
                if k not in ("num_classes", "img_size")
            }
        return make_arch(
            self.model or arch.name,
            num_classes=data.num_classes,
            image_size=data.image_size,
            args={**inherited, **self.args},
        )
