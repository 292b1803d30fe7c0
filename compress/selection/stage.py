"""Weight selection: a small student starts from a subset of a larger pretrained teacher's weights.

Xu et al., "Initializing Models with Larger Ones", ICLR 2024 (arXiv 2311.18823), section 3.
No training, and no data but for the rule `activation` and with `compensate`. The maths is in
`transfer` (what is taken), `elements` (the rules along one axis), `axes` (which axes carry the same
channels) and `activations` (what looks at images).
"""

from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import Field

from compress.compensation import COMPENSATE_IMAGES
from compress.selection.activations import compensated_tensors, weighed
from compress.selection.elements import ElementRule, Rounding, take
from compress.selection.layers import LayerRule
from compress.selection.transfer import (
    Transfer,
    plan_transfer,
    shapes_of,
)
from compress.stage import Context, Phase
from compress.student import StudentStage
from trainers.data.splits import DataInfo
from trainers.hashing import LATER
from trainers.models.arch import Arch, ModelState, shared_on_meta
from trainers.models.parameters import classifier_parameters


class WeightSelection(StudentStage):
    """A student of the teacher's family from a subset of the teacher's weights.

    The incoming model is the teacher. The classifier, and what else is in a module called
    head, keeps the student's initialisation from the stage's seed.
    """

    phase: ClassVar[Phase] = "init"
    version: ClassVar[int] = 2
    paper: ClassVar[str] = "Xu et al., Initializing Models with Larger Ones, ICLR 2024"

    layer_rule: LayerRule = Field(
        "first", description="teacher blocks: the first ones, or evenly spaced ones"
    )
    element_rule: ElementRule = Field(
        "uniform",
        description=(
            "elements along each axis; uniform is the paper's. activation: the largest weights"
            " times what they are multiplied with, on selection_images"
        ),
    )
    selection_rounding: Rounding = Field(
        "float32",
        description=(
            "how evenly spaced elements are computed before they are rounded. float32: as"
            " in the published code; exact: in whole numbers"
        ),
    )
    copy_head: bool = Field(
        False,
        description=(
            "teacher and student share the label set: select the classifier too, and what"
            " else is in a module called head"
        ),
    )
    compensate: Annotated[bool, LATER] = Field(
        False,
        description=(
            "weights that stay make up for the inputs that are left out, by a regression on"
            " what the teacher's layers see of selection_images"
        ),
    )
    selection_images: Annotated[int, LATER] = Field(
        COMPENSATE_IMAGES,
        ge=1,
        description="training images without labels, for activation and compensate",
    )

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        """The student's architecture.

        Raises:
            ValueError: another family, a parameter that the teacher lacks, or a student
                that is larger in some axis; names the parameters and both shapes.
        """
        target = super().check(arch, data)
        self._transfer(arch, target)
        return target

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        target = super().check(model.arch, ctx.data.info)
        transfer = self._transfer(model.arch, target)
        start = ModelState.initialised(target, ctx.seed)
        tensors = transfer.prepared(model.weights)
        teacher = model.build().to(ctx.device)
        scored = tensors
        if self.element_rule == "activation":
            images = ctx.images(self.selection_images)
            scored = weighed(transfer, tensors, teacher, images)
        indices, grouping = transfer.indices(
            scored, self.element_rule, ctx.seed, self.selection_rounding
        )
        chosen = {name: take(tensor, indices[name]) for name, tensor in tensors.items()}
        if self.compensate:
            images = ctx.images(self.selection_images)
            chosen |= compensated_tensors(transfer, indices, teacher, images)
        weights = start.weights | {
            name: tensor.to(start.weights[name].dtype).contiguous()
            for name, tensor in chosen.items()
        }
        notes: dict[str, Any] = {
            "teacher": model.arch.to_json(),
            "layer_rule": self.layer_rule,
            "element_rule": self.element_rule,
            "copy_head": self.copy_head,
            "blocks": transfer.layers.blocks,
        }
        if grouping is not None:
            notes["grouping"] = grouping
        return replace(start, weights=weights, meta={"weight_selection": notes})

    def _transfer(self, arch: Arch, target: Arch) -> Transfer:
        """What a student of architecture `target` takes from a teacher of `arch`."""
        student = shared_on_meta(target)
        return plan_transfer(
            student,
            shared_on_meta(arch),
            layer_rule=self.layer_rule,
            heads=classifier_parameters(student),
            copy_head=self.copy_head,
            sized=_sized_by_image(target, arch),
            title=f"weight selection from {arch.name} to {target.name}",
        )


def _sized_by_image(student: Arch, teacher: Arch) -> set[str]:
    """Student's tensors whose shape would differ at the teacher's image size."""
    size = student.args.get("img_size")
    other = teacher.args.get("img_size")
    if size is None or other is None or size == other:
        return set()
    shapes = shapes_of(shared_on_meta(student))
    resized = replace(student, args={**student.args, "img_size": other})
    at_teacher = shapes_of(shared_on_meta(resized))
    return {name for name, shape in shapes.items() if at_teacher.get(name) != shape}
