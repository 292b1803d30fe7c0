"""What a student takes from a teacher: found from shapes, checked, and cut out of the weights.

Legend
    W, W'    teacher's and student's tensor: W' = W[I_0, I_1, …], one index set an axis

Three steps (Xu et al., ICLR 2024, section 3)
    layers      student block j takes teacher block j (`first`) or
                uniform_indices(N_teacher, N_student)[j] (`uniform`), separately in each
                list of blocks (in each stage of a staged model)
    components  by name after the block map, buffers too; never the classifier, unless
                `copy_head`
    elements    one index set for each axis, by the rules of `compress.selection.elements`.
                All rules but `magnitude` treat a fused qkv axis as one axis, as the paper
                does

Positions are no elements to choose from: where the grids of patches differ, the teacher's
position embedding is resampled (bicubic, antialiased: timm's `resample_abs_pos_embed`) and
only its embedding axis is selected. Prefix tokens (class, distillation, registers) go by
name. Other tensors whose shape follows the image size are refused.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.selection.axes import magnitude_indices
from compress.selection.elements import (
    ElementRule,
    same_rank,
    select,
    size_fault,
    take,
)
from compress.selection.layers import LayerMap, LayerRule, map_layers
from compress.selection.positions import resample_positions
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
        self, weights: Mapping[str, Tensor], rule: ElementRule, seed: int
    ) -> tuple[dict[str, Tensor], str | None]:
        """The student's tensors out of the teacher's weights.

        Args:
            weights: the teacher's, by the teacher's names, on the CPU.
            rule: which elements of each axis.
            seed: of the random rules.

        Returns:
            Contiguous tensors by the student's names; and, for the rule `magnitude`, how the
            axes were grouped ("axis roles" or "axis sizes"), else None.
        """
        tensors = self._prepared(weights)
        if rule != "magnitude":
            chosen = {
                name: select(tensor, self.shapes[name], rule, seed=seed, name=name)
                for name, tensor in tensors.items()
            }
            return _contiguous(chosen), None
        indices, grouping = magnitude_indices(
            tensors, self.shapes, self.student, self._heads()
        )
        chosen = {name: take(tensor, indices[name]) for name, tensor in tensors.items()}
        return _contiguous(chosen), grouping

    def _prepared(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The teacher's tensors by the student's names, of the student's rank and on its
        positions.
        """
        tensors = {}
        for name, shape in self.shapes.items():
            tensor = weights[self.layers.teacher_name(name)]
            if self._is_positions(name):
                tensor = resample_positions(tensor, self.student, self.teacher)
            tensors[name] = same_rank(tensor, len(shape))
        return tensors

    def _is_positions(self, name: str) -> bool:
        """Whether this is a position embedding over a known grid of patches."""
        patches = getattr(self.student, "patch_embed", None)
        has_grid = hasattr(patches, "grid_size")
        return name == "pos_embed" and len(self.shapes[name]) == 3 and has_grid

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
        if self._is_positions(name):
            return self._position_fault(theirs, shape)
        if name in heads and ranked[:1] != shape[:1]:
            return "copy_head needs the same classes; set it to false"
        if name in sized and ranked != shape:
            return (
                "its shape follows the image size and cannot be resampled; use images"
                " of the teacher's size"
            )
        return size_fault(tuple(ranked), shape)

    def _position_fault(self, theirs: Shape, shape: Shape) -> str | None:
        try:
            resampled = resample_positions(
                torch.zeros(theirs), self.student, self.teacher
            )
        except ValueError as error:
            return str(error)
        return size_fault(tuple(resampled.shape), shape)


def plan_transfer(
    student: nn.Module,
    teacher: nn.Module,
    *,
    layer_rule: LayerRule,
    heads: Collection[str],
    copy_head: bool,
    sized: Collection[str] = (),
    title: str = "weight selection",
) -> Transfer:
    """Find what the student takes, and refuse what does not fit.

    Args:
        student, teacher: on any device, the meta device too; only shapes are looked at.
        layer_rule: which blocks of the teacher.
        heads: state-dict names of the student's classifier.
        copy_head: whether the classifier is taken too.
        sized: names of the student's tensors whose shape follows the image size.
        title: what errors start with.

    Raises:
        ValueError: another family, a parameter that the teacher lacks, or a student that is
            larger in some axis; names the parameters and both shapes.
    """
    shapes = {
        name: shape
        for name, shape in shapes_of(student).items()
        if copy_head or name not in heads
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
