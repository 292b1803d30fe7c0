"""What a student takes from a teacher: found from shapes, checked, and cut out of the weights.

Legend
    W, W'    teacher's and student's tensor: W' = W[I_0, I_1, …], one index set an axis

Three steps (Xu et al., ICLR 2024, section 3)
    layers      student block j takes teacher block j (`first`) or
                uniform_indices(N_teacher, N_student)[j] (`uniform`), separately in each
                list of blocks (in each stage of a staged model)
    components  by name after the block map, buffers too; never the classifier and what else
                is in a module called head (ConvNeXt's head.norm), unless `copy_head`
    elements    one index set for each axis, by the rules of `compress.selection.elements`.
                All rules but `magnitude` treat a fused qkv axis as one axis, as the paper
                does

What is laid out over places in an image (position embeddings, relative position tables, patch
kernels) is resampled where the places differ, and only its other axes are selected; see
`positions`. Other tensors whose shape follows the image size are refused.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.selection.axes import magnitude_indices
from compress.selection.elements import (
    ElementRule,
    Rounding,
    same_rank,
    size_fault,
    take,
    tensor_indices,
)
from compress.selection.layers import LayerMap, LayerRule, map_layers
from compress.selection.positions import on_students_places
from trainers.models.parameters import classifier_parameters

Shape = tuple[int, ...]
_MOST_FAULTS = 4


@dataclass(frozen=True)
class Transfer:
    """Which tensors of a student come from a teacher. Both modules may be on the meta device.

    Attributes:
        layers: which module of the teacher each module of the student takes.
        shapes: the student's shape of every tensor that is taken.
    """

    student: nn.Module
    teacher: nn.Module
    layers: LayerMap
    shapes: dict[str, Shape]

    def cut(
        self,
        weights: Mapping[str, Tensor],
        rule: ElementRule,
        seed: int,
        rounding: Rounding = "float32",
    ) -> tuple[dict[str, Tensor], str | None]:
        """The student's tensors out of the teacher's weights.

        Args:
            weights: the teacher's, by the teacher's names, on the CPU.
            rule: which elements of each axis.
            seed: of the random rules.
            rounding: of the rule `uniform`.

        Returns:
            Contiguous tensors by the student's names; and, for the rule `magnitude`, how the
            axes were grouped ("axis roles" or "axis sizes"), else None.

        Raises:
            ValueError: the rule `activation`, which needs images.
        """
        if rule == "activation":
            raise ValueError(
                "the element rule activation needs images, which only the stage"
                " weight_selection has; use magnitude, or the stage"
            )
        tensors = self.prepared(weights)
        indices, grouping = self.indices(tensors, rule, seed, rounding)
        chosen = {name: take(tensor, indices[name]) for name, tensor in tensors.items()}
        return _contiguous(chosen), grouping

    def indices(
        self,
        tensors: Mapping[str, Tensor],
        rule: ElementRule,
        seed: int,
        rounding: Rounding = "float32",
    ) -> tuple[dict[str, list[Tensor]], str | None]:
        """Student's name → indices along each axis; and the grouping, as for `cut`.

        Args:
            tensors: what is selected from, by the student's names (for the rule `activation`
                already weighed by what the layers see).
            rule, seed, rounding: as for `cut`.
        """
        if rule in ("magnitude", "activation"):
            return magnitude_indices(tensors, self.shapes, self.student, self._heads())
        found = {
            name: tensor_indices(
                tensor.shape, self.shapes[name], rule, seed, name, rounding
            )
            for name, tensor in tensors.items()
        }
        return found, None

    def prepared(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The teacher's tensors by the student's names, of the student's rank and on its
        places.
        """
        return {
            name: self._placed(name, weights[self.layers.teacher_name(name)])
            for name in self.shapes
        }

    def _placed(self, name: str, tensor: Tensor) -> Tensor:
        shape = self.shapes[name]
        path = self.layers.teacher_name(name).rpartition(".")[0]
        ranked = same_rank(tensor, len(shape))
        return on_students_places(name, ranked, shape, self.student, self.teacher, path)

    def _heads(self) -> dict[str, tuple[int, int]]:
        """Attention block → numbers of heads in teacher and student."""
        counts: dict[str, tuple[int, int]] = {}
        for path, module in self.student.named_modules():
            if path.endswith(".attn") and hasattr(module, "num_heads"):
                theirs: Any = self.teacher.get_submodule(self.layers.paths[path])
                ours: Any = module
                block = path.removesuffix(".attn")
                counts[block] = (theirs.num_heads, ours.num_heads)
        return counts

    def faults(self, heads: Collection[str], sized: Collection[str]) -> list[str]:
        """One line for each tensor that cannot be selected.

        Args:
            heads: names of the classifier's tensors.
            sized: names of tensors whose shape follows the image size.
        """
        theirs = shapes_of(self.teacher)
        found = []
        for name, shape in self.shapes.items():
            other = self.layers.teacher_name(name)
            if other not in theirs:
                found.append(f"{name!r}: student {shape}, the teacher has no {other!r}")
                continue
            fault = self._fault(name, theirs[other], heads, sized)
            if fault:
                found.append(
                    f"{name!r}: student {shape}, teacher {theirs[other]}: {fault}"
                )
        return found

    def _fault(
        self, name: str, theirs: Shape, heads: Collection[str], sized: Collection[str]
    ) -> str | None:
        shape = self.shapes[name]
        ranked = same_rank(torch.empty(theirs, device="meta"), len(shape)).shape
        if name in heads and ranked[:1] != shape[:1]:
            return "copy_head needs the same classes; set it to false"
        try:
            placed = tuple(self._placed(name, torch.zeros(theirs)).shape)
        except ValueError as error:
            return str(error)
        if name in sized and placed == ranked != shape:
            return (
                "its shape follows the image size and cannot be resampled; use images"
                " of the teacher's size"
            )
        return size_fault(placed, shape)


def plan_transfer(
    student: nn.Module,
    teacher: nn.Module,
    *,
    layer_rule: LayerRule,
    heads: set[str],
    copy_head: bool,
    sized: Collection[str] = (),
    title: str = "weight selection",
) -> Transfer:
    """Find what the student takes, and refuse what does not fit.

    Args:
        student, teacher: on any device, the meta device too; only shapes are looked at.
        layer_rule: which blocks of the teacher.
        heads: state-dict names of the student's classifier.
        copy_head: whether the classifier, and what else its head has, is taken too.
        sized: names of the student's tensors whose shape follows the image size.
        title: what errors start with.

    Raises:
        ValueError: another family, a parameter that the teacher lacks, or a student that is
            larger in some axis; names the parameters and both shapes.
    """
    left = set() if copy_head else heads | _rest_of_head(student, heads)
    shapes = {
        name: shape for name, shape in shapes_of(student).items() if name not in left
    }
    layers = map_layers(student, teacher, layer_rule)
    transfer = Transfer(student, teacher, layers, shapes)
    if not isinstance(student, type(teacher)) and not isinstance(
        teacher, type(student)
    ):
        raise ValueError(f"{title}: {_other_family(transfer)}")
    faults = transfer.faults(heads, sized)
    if faults:
        raise ValueError(
            f"{title}: {_listed(faults)}. The student must be a smaller model of one"
            " design"
        )
    return transfer


@torch.no_grad()
def initialise(
    student: nn.Module,
    teacher: nn.Module,
    *,
    element_rule: ElementRule = "uniform",
    layer_rule: LayerRule = "first",
    copy_head: bool = False,
    classifier: Sequence[str] | None = None,
    seed: int = 0,
) -> list[str]:
    """Give a student the selected weights of its teacher, in place.

    The classifier keeps its own initialisation, unless `copy_head`.

    Args:
        student: a module of the teacher's class that is no larger in any axis.
        teacher: not changed.
        element_rule: which elements along each axis.
        layer_rule: which blocks of the teacher: the first ones, or evenly spaced ones.
        copy_head: whether the classifier is selected too (the same classes in both).
        classifier: paths of the student's classifying layers (`["fc"]`); default: what its
            method `get_classifier` returns, which all timm models have.
        seed: of the random rules.

    Returns:
        Names of the tensors that were taken.

    Raises:
        ValueError: the two do not fit, or it is not known which layers classify.
    """
    heads = head_tensors(student, classifier)
    transfer = plan_transfer(
        student, teacher, layer_rule=layer_rule, heads=heads, copy_head=copy_head
    )
    weights = {name: value.cpu() for name, value in teacher.state_dict().items()}
    chosen, _ = transfer.cut(weights, element_rule, seed)
    own = student.state_dict()
    for name, tensor in chosen.items():
        own[name].copy_(tensor)
    return list(chosen)


def head_tensors(
    module: nn.Module, classifier: Sequence[str] | None = None
) -> set[str]:
    """State-dict names of a module's classifier.

    Args:
        classifier: paths of the classifying layers, where the module does not say.

    Raises:
        ValueError: no such layer, or it is not known which layers classify.
    """
    if classifier is None:
        return classifier_parameters(module)
    names = {
        name
        for name in module.state_dict()
        if any(name.startswith(f"{path}.") for path in classifier)
    }
    if classifier and not names:
        raise ValueError(
            f"classifier {list(classifier)}: {type(module).__name__} has no such layers;"
            f" it has {', '.join(name for name, _ in module.named_children())}"
        )
    return names


def _rest_of_head(module: nn.Module, heads: Collection[str]) -> set[str]:
    """What else is in the modules called head that hold the classifier: ConvNeXt's head.norm."""
    modules = {name.partition(".")[0] for name in heads} & {"head", "head_dist"}
    return {name for name in module.state_dict() if name.partition(".")[0] in modules}


def shapes_of(module: nn.Module) -> dict[str, Shape]:
    """Shape of every parameter and buffer in the state dict."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _other_family(transfer: Transfer) -> str:
    """How two models that share no design differ, by one tensor as an example."""
    shapes = transfer.shapes
    theirs = shapes_of(transfer.teacher)
    name = next((n for n in shapes if theirs.get(n) != shapes[n]), next(iter(shapes)))
    teacher = type(transfer.teacher).__name__
    student = type(transfer.student).__name__
    return (
        f"{teacher} and {student} are different families ({name!r}: student"
        f" {shapes[name]}, teacher {theirs.get(name, 'none')}). Choose models of one"
        " family"
    )


def _listed(faults: Sequence[str]) -> str:
    more = len(faults) - _MOST_FAULTS
    rest = f"; and {more} more" if more > 0 else ""
    return "; ".join(faults[:_MOST_FAULTS]) + rest
