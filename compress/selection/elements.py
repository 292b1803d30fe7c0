"""The choice of elements along each axis of one tensor.

Legend
    T, S     size of one axis in the teacher and in the student, S <= T
    I        the S teacher indices that the student takes along this axis, ascending

Rules
    uniform               I = 0, T/S, 2T/S, … where S divides T, else S evenly spaced
                          positions from 0 to T-1, rounded half to even; they are computed
                          in float32 as in the published code, or exactly (Rounding), which
                          differ by one index in some pairs, 6144 → 4096 for example
    consecutive           I = 0 … S-1
    random                one I for each (T, S) and seed
    random_inconsistent   a fresh I for every tensor and axis
    magnitude             the S largest L1 norms
    activation            the same of |w| · root mean square of the input that w is multiplied with
                          (the score of Wanda, Sun et al., arXiv:2306.11695, for whole channels)
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from trainers.seeding import derive_seed

ElementRule = Literal[
    "uniform", "consecutive", "random", "random_inconsistent", "magnitude", "activation"
]


Rounding = Literal["float32", "exact"]


def select(
    tensor: Tensor,
    shape: Sequence[int],
    rule: ElementRule = "uniform",
    *,
    seed: int = 0,
    name: str = "",
    rounding: Rounding = "float32",
) -> Tensor:
    """The part of a teacher's tensor that a student's tensor of `shape` starts from (a copy).

    Args:
        tensor: the teacher's; trailing axes of size 1 may be more or fewer than in `shape`.
        shape: the student's, in no axis larger.
        rule: `magnitude` takes each axis by itself here; a whole model needs
            `compress.selection.axes`.
        seed: of the random rules.
        name: the tensor's name, which makes `random_inconsistent` differ between tensors.
        rounding: of the rule `uniform`.

    Raises:
        ValueError: `shape` is larger in some axis, or has other axes.
    """
    tensor = same_rank(tensor, len(shape))
    fault = size_fault(tuple(tensor.shape), tuple(shape))
    if fault:
        raise ValueError(
            f"{name or 'tensor'}: student {tuple(shape)}, teacher"
            f" {tuple(tensor.shape)}: {fault}"
        )
    if rule == "magnitude":
        norms = [l1_norms(tensor, axis) for axis in range(tensor.ndim)]
        return take(
            tensor, [strongest(norm, s) for norm, s in zip(norms, shape, strict=True)]
        )
    return take(tensor, tensor_indices(tensor.shape, shape, rule, seed, name, rounding))


def tensor_indices(
    teacher: Sequence[int],
    student: Sequence[int],
    rule: ElementRule,
    seed: int = 0,
    name: str = "",
    rounding: Rounding = "float32",
) -> list[Tensor]:
    """Indices along each axis by a rule that looks at shapes alone; see `select`."""
    return [
        uniform_indices(t, s, rounding)
        if rule == "uniform"
        else _axis_indices(t, s, rule, seed, f"{name}#{axis}")
        for axis, (t, s) in enumerate(zip(teacher, student, strict=True))
    ]


def take(tensor: Tensor, indices: Sequence[Tensor]) -> Tensor:
    """tensor[I_0, I_1, …] as an outer product of index sets; always a copy."""
    out = tensor.clone()
    for axis, index in enumerate(indices):
        if len(index) != out.shape[axis]:
            out = out.index_select(axis, index)
    return out


def same_rank(tensor: Tensor, rank: int) -> Tensor:
    """Add or drop trailing axes of size 1: a 1×1 convolution and a linear layer hold the
    same matrix.
    """
    if tensor.ndim > rank and all(size == 1 for size in tensor.shape[rank:]):
        return tensor.reshape(tensor.shape[:rank])
    if 2 <= tensor.ndim < rank:
        return tensor.reshape(*tensor.shape, *[1] * (rank - tensor.ndim))
    return tensor


def size_fault(teacher: tuple[int, ...], student: tuple[int, ...]) -> str | None:
    """Why a student's tensor cannot be a part of a teacher's, by their shapes; else None."""
    if len(teacher) != len(student):
        return "another number of axes"
    larger = [
        str(axis)
        for axis, (t, s) in enumerate(zip(teacher, student, strict=True))
        if s > t
    ]
    return f"the student is larger in axis {', '.join(larger)}" if larger else None


def uniform_indices(
    teacher_size: int, student_size: int, rounding: Rounding = "float32"
) -> Tensor:
    """(S,) ascending indices into an axis of size T: every T/S-th, else evenly spaced,
    rounded half to even.
    """
    t = teacher_size
    s = student_size
    if t % s == 0:
        return torch.arange(s) * (t // s)
    if rounding == "float32":
        return torch.linspace(0, t - 1, s, dtype=torch.float32).round().long()
    # in integers: floating-point points may miss a half by an ulp and round the other way
    whole = torch.arange(s) * (t - 1) // (s - 1)
    rest = torch.arange(s) * (t - 1) % (s - 1)
    up = (2 * rest > s - 1) | ((2 * rest == s - 1) & (whole % 2 == 1))
    return whole + up


def random_indices(
    teacher_size: int, student_size: int, seed: int, salt: str = ""
) -> Tensor:
    """(S,) ascending random indices, a function of the arguments alone."""
    generator = torch.Generator().manual_seed(
        derive_seed(seed, teacher_size, student_size, salt)
    )
    return (
        torch.randperm(teacher_size, generator=generator)[:student_size].sort().values
    )


def _axis_indices(t: int, s: int, rule: ElementRule, seed: int, salt: str) -> Tensor:
    match rule:
        case "consecutive":
            return torch.arange(s)
        case "random":
            return random_indices(t, s, seed)
        case "random_inconsistent":
            return random_indices(t, s, seed, salt)
        case _:
            raise ValueError(
                f"element rule {rule!r} is not one of"
                f" {', '.join(get_args(ElementRule))}"
            )


def l1_norms(tensor: Tensor, axis: int) -> Tensor:
    """(size of the axis,) sum of |w| over all other axes, float64."""
    others = [a for a in range(tensor.ndim) if a != axis]
    return (
        tensor.abs().sum(others, dtype=torch.float64)
        if others
        else tensor.abs().double()
    )


def strongest(scores: Tensor, count: int) -> Tensor:
    """Ascending indices of the `count` largest entries of `scores`; ties go to the lower index."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values
