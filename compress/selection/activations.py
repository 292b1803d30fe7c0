"""Selection by what a teacher's layers see, and weights that make up for what is left out.

Legend
    W        weight of a layer of the teacher (outputs, inputs, kernel places)
    x        its input, or the patch that a convolution sees; r = root mean square of x
    S        the inputs that the student keeps

Scores are |W| · r (Wanda, Sun et al. 2023, arXiv:2306.11695). Compensation is that of
`compress.compensation`: what the inputs that are left out would have given is predicted from those
that stay, by ridge regression on the teacher's activations, and folded into weights and biases.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compress.compensation import corrected_tensors, input_moments, mendable
from compress.rounding import GroupedMoments
from compress.selection.transfer import Transfer


def _layers(module: nn.Module) -> list[str]:
    """Paths of Linear layers and 2-D convolutions."""
    kinds = (nn.Linear, nn.Conv2d)
    return [path for path, layer in module.named_modules() if isinstance(layer, kinds)]


@torch.no_grad()
def weighed(
    transfer: Transfer,
    tensors: Mapping[str, Tensor],
    teacher: nn.Module,
    images: Iterable[Tensor],
) -> dict[str, Tensor]:
    """The student's tensors as they are scored: weights of layers times what these see.

    Args:
        transfer: what the student takes.
        tensors: the teacher's, by the student's names (`Transfer.prepared`); not changed.
        teacher: the teacher itself, left in eval mode.
        images: batches without labels on its device; read once.
    """
    found = input_moments(
        teacher,
        _layers(teacher),
        images,
        lambda layer, size: GroupedMoments(size, getattr(layer, "groups", 1)),
    )
    result = dict(tensors)
    for name, tensor in tensors.items():
        path = transfer.layers.teacher_name(name).removesuffix(".weight")
        moments = found.moments.get(path)
        if moments is None or not name.endswith(".weight"):
            continue
        seen = (
            moments.second(centred=False).diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
        )
        groups, inputs = len(seen), tensor.shape[1]
        each = seen.reshape(
            groups, inputs, -1
        )  # channel by channel: one for all places
        if each.shape[2] not in (1, tensor[0, 0].numel()):
            continue  # a kernel that was resampled
        flat = tensor.double().reshape(groups, -1, inputs, tensor[0, 0].numel())
        result[name] = (flat * each[:, None]).reshape(tensor.shape)
    return result


@torch.no_grad()
def compensated_tensors(
    transfer: Transfer,
    indices: Mapping[str, list[Tensor]],
    teacher: nn.Module,
    images: Iterable[Tensor],
) -> dict[str, Tensor]:
    """Student's tensors that change so that layers do best on the inputs that they keep.

    Args:
        transfer: what the student takes.
        indices: which elements, by the student's names.
        teacher: the teacher itself, left in eval mode.
        images: batches without labels on its device; read once.

    Returns:
        Weights, biases and running means of layers that lose inputs, in the student's shapes.
    """
    state = teacher.state_dict()
    kept: dict[str, Tensor] = {}
    for name in transfer.shapes:
        path = transfer.layers.teacher_name(name).removesuffix(".weight")
        layer: Any = teacher.get_submodule(path) if f"{path}.weight" in state else None
        if not isinstance(layer, nn.Linear | nn.Conv2d) or not name.endswith(".weight"):
            continue
        places = 1 if layer.weight.ndim == 2 else layer.weight[0, 0].numel()
        student_places = torch.Size(transfer.shapes[name][2:]).numel()
        if len(indices[name][1]) < layer.weight.shape[1] and places == student_places:
            kept[path] = indices[name][1]
    inputs = input_moments(teacher, mendable(teacher, kept), images)
    corrected = corrected_tensors(teacher, kept, inputs)
    changed: dict[str, Tensor] = {}
    for name, shape in transfer.shapes.items():
        tensor = corrected.get(transfer.layers.teacher_name(name))
        if tensor is not None:
            outputs = tensor.index_select(0, indices[name][0])
            changed[name] = outputs.reshape(shape).contiguous()
    return changed
