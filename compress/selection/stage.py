"""Weight selection: a small student starts from a subset of a larger pretrained teacher's weights.

Xu et al., "Initializing Models with Larger Ones", ICLR 2024 (arXiv 2311.18823), section 3.
No training, no data.

Legend
    T, S     size of one axis in the teacher and in the student, S <= T
    I        the S teacher indices that the student takes along this axis, ascending
    W, W'    teacher's and student's tensor: W' = W[I_0, I_1, …], one index set an axis

Three steps
    layers      student block j takes teacher block j (`first`) or
                uniform_indices(N_teacher, N_student)[j] (`uniform`), separately in each
                list of blocks (in each stage of a staged model)
    components  by name after the block map, buffers too; never the classifier, unless `copy_head`
    elements    `uniform`: I = 0, T/S, 2T/S, … where S divides T, else S evenly spaced
                points from 0 to T-1 rounded half to even; `consecutive`: I = 0 … S-1;
                `random`: one I per (T, S) and seed; `random_inconsistent`: a fresh I for
                every tensor; `magnitude`: the largest L1 norms, see
                `weight_selection_axes`. All but `magnitude` see a fused qkv axis as one
                axis, as in the paper.

Positions are not elements to pick from: where the grids of patches differ, the teacher's
position embedding is resampled (bicubic, antialiased: timm's `resample_abs_pos_embed`) and
only its embedding axis is selected. Prefix tokens (class, distillation, registers) go by
name. Other tensors whose shape follows the image size are refused.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.selection.axes import l1_norms, magnitude_indices, strongest
from compress.stage import Context, Phase
from compress.student import StudentStage
from trainers.data.splits import DataInfo
from trainers.models.arch import Arch, ModelState
from trainers.seeding import derive_seed
from trainers.timm_library import timm

LayerRule = Literal["first", "uniform"]
ElementRule = Literal[
    "uniform", "consecutive", "random", "random_inconsistent", "magnitude"
]


def uniform_indices(teacher_size: int, student_size: int) -> Tensor:
    """(S,) ascending indices into an axis of size T: every T/S-th, else evenly spaced,
    rounded half to even.
    """
    t, s = teacher_size, student_size
    if t % s == 0:
        return torch.arange(s) * (t // s)
    # in integers: floating-point points may miss a half by an ulp and round the other way
    whole, rest = (
        torch.arange(s) * (t - 1) // (s - 1),
        torch.arange(s) * (t - 1) % (s - 1),
    )
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


def same_rank(tensor: Tensor, rank: int) -> Tensor:
    """Add or drop trailing axes of size 1: a 1×1 convolution and a linear layer hold the
    same matrix.
    """
    if tensor.ndim > rank and all(size == 1 for size in tensor.shape[rank:]):
        return tensor.reshape(tensor.shape[:rank])
    if 2 <= tensor.ndim < rank:
        return tensor.reshape(*tensor.shape, *[1] * (rank - tensor.ndim))
    return tensor


def select(
    tensor: Tensor,
    shape: Sequence[int],
    rule: ElementRule = "uniform",
    *,
    seed: int = 0,
    name: str = "",
) -> Tensor:
    """The part of a teacher's tensor that a student's tensor of `shape` starts from (a copy).

    Args:
        tensor: the teacher's; trailing axes of size 1 may be more or fewer than in `shape`.
        shape: the student's, in no axis larger.
        rule: `magnitude` takes each axis by itself here; a whole model needs
            `weight_selection_axes`.
        seed: of the random rules.
        name: the tensor's name, which makes `random_inconsistent` differ between tensors.

    Raises:
        ValueError: `shape` is larger in some axis, or has other axes.
    """
    tensor = same_rank(tensor, len(shape))
    fault = _fault(tuple(tensor.shape), tuple(shape))
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
    sizes = enumerate(zip(tensor.shape, shape, strict=True))
    return take(
        tensor,
        [_axis_indices(t, s, rule, seed, f"{name}#{axis}") for axis, (t, s) in sizes],
    )


def take(tensor: Tensor, indices: Sequence[Tensor]) -> Tensor:
    """tensor[I_0, I_1, …] as an outer product of index sets; always a copy."""
    out = tensor.clone()
    for axis, index in enumerate(indices):
        if len(index) != out.shape[axis]:
            out = out.index_select(axis, index)
    return out


def _axis_indices(t: int, s: int, rule: ElementRule, seed: int, salt: str) -> Tensor:
    match rule:
        case "uniform":
            return uniform_indices(t, s)
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


def _fault(teacher: tuple[int, ...], student: tuple[int, ...]) -> str | None:
    if len(teacher) != len(student):
        return "another number of axes"
    larger = [
        str(axis)
        for axis, (t, s) in enumerate(zip(teacher, student, strict=True))
        if s > t
    ]
    return f"the student is larger in axis {', '.join(larger)}" if larger else None


def _block_lists(module: nn.Module) -> dict[str, list[int]]:
    """Numbered children that have children themselves: prefix (empty in a list) → numbers
    in order.
    """
    lists: dict[str, list[int]] = {}
    for name, child in module.named_children():
        numbered = re.fullmatch(r"(\D*)(\d+)", name)
        if numbered and any(True for _ in child.children()):
            lists.setdefault(numbered[1], []).append(int(numbered[2]))
    return lists


@dataclass
class LayerMap:
    """Student's module path → teacher's, and for each list of blocks the teacher's block
    numbers.
    """

    paths: dict[str, str]
    blocks: dict[str, list[int]]

    def teacher_name(self, name: str) -> str:
        """The teacher's name of a student's parameter or buffer."""
        path, _, leaf = name.rpartition(".")
        return f"{self.paths[path]}.{leaf}" if path else leaf


def map_layers(student: nn.Module, teacher: nn.Module, rule: LayerRule) -> LayerMap:
    """Which teacher block each student block takes. Where the teacher has too few, names
    stay as they are.
    """
    found = LayerMap({}, {})

    def walk(s: nn.Module, t: nn.Module, s_path: str, t_path: str) -> None:
        found.paths[s_path.rstrip(".")] = t_path.rstrip(".")
        renamed: dict[str, str] = {}
        t_lists = _block_lists(t)
        for prefix, numbers in _block_lists(s).items():
            available = t_lists.get(prefix, [])
            if len(available) < len(numbers):
                continue
            count = len(numbers)
            places = (
                uniform_indices(len(available), count).tolist()
                if rule == "uniform"
                else range(count)
            )
            chosen = [available[place] for place in places]
            renamed |= {
                f"{prefix}{n}": f"{prefix}{m}"
                for n, m in zip(numbers, chosen, strict=True)
            }
            if not prefix or len(available) != count:
                found.blocks[(s_path + prefix).rstrip(".")] = chosen
        children = dict(t.named_children())
        for name, child in s.named_children():
            other = renamed.get(name, name)
            walk(
                child,
                children.get(other, nn.Identity()),
                f"{s_path}{name}.",
                f"{t_path}{other}.",
            )

    walk(student, teacher, "", "")
    return found


def classifier_names(module: nn.Module) -> set[str]:
    """State-dict names of the classifying layers (both of a distilled model), by timm's
    `get_classifier`.

    Raises:
        ValueError: the model does not say which layers classify.
    """
    get_classifier = getattr(module, "get_classifier", None)
    if get_classifier is None:
        raise ValueError(
            f"{type(module).__name__} has no get_classifier; its classifier is not"
            " known"
        )
    heads = get_classifier()
    heads = heads if isinstance(heads, tuple | list) else (heads,)
    paths = [
        path
        for path, child in module.named_modules()
        if any(child is head for head in heads)
    ]
    return {
        name
        for name in module.state_dict()
        if any(name.startswith(f"{path}.") for path in paths)
    }


def _prefix_tokens(module: nn.Module) -> tuple[list[str], tuple[int, int]]:
    """Names of the tokens before the patches in `pos_embed`, and the grid of patches."""
    grid: Any = module.get_submodule("patch_embed").grid_size
    names: list[str] = []
    for leaf in ("cls_token", "dist_token", "reg_token"):
        token = getattr(module, leaf, None)
        names += [f"{leaf} {i}" for i in range(0 if token is None else token.shape[1])]
    embedded = module.get_parameter("pos_embed").shape[1] - grid[0] * grid[1]
    return names[:embedded], (grid[0], grid[1])


def resample_positions(
    pos_embed: Tensor, student: nn.Module, teacher: nn.Module
) -> Tensor:
    """Teacher's position embedding (1, N_T, D_T) on the student's tokens, (1, N_S, D_T).

    Patches are resampled from grid to grid; tokens before them are taken by name.

    Raises:
        ValueError: the student has a prefix token that the teacher has no position for.
    """
    (names, grid), (t_names, t_grid) = _prefix_tokens(student), _prefix_tokens(teacher)
    lacking = [name for name in names if name not in t_names]
    if lacking:
        raise ValueError(f"the teacher has no position for {', '.join(lacking)}")
    prefix = pos_embed[:, [t_names.index(name) for name in names]]
    patches = pos_embed[:, len(t_names) :]
    if grid != t_grid:
        patches = timm.layers.resample_abs_pos_embed(
            patches, grid, t_grid, num_prefix_tokens=0
        )
    return torch.cat([prefix, patches], 1)


@dataclass
class _Plan:
    """What is copied: everything that both `check` and `run` need to know, found from
    shapes alone.
    """

    arch: Arch
    student: nn.Module
    teacher: nn.Module
    layers: LayerMap
    shapes: dict[str, tuple[int, ...]]

    def is_positions(self, name: str) -> bool:
        """Whether this is a position embedding over a known grid of patches."""
        patches = getattr(self.student, "patch_embed", None)
        return (
            name == "pos_embed"
            and len(self.shapes[name]) == 3
            and hasattr(patches, "grid_size")
        )

    def prepared(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The teacher's tensors by the student's names, of the student's rank and on its
        positions.
        """
        tensors = {}
        for name, shape in self.shapes.items():
            tensor = weights[self.layers.teacher_name(name)]
            if self.is_positions(name):
                tensor = resample_positions(tensor, self.student, self.teacher)
            tensors[name] = same_rank(tensor, len(shape))
        return tensors

    def heads(self) -> dict[str, tuple[int, int]]:
        """Attention block → numbers of heads in teacher and student."""
        counts: dict[str, tuple[int, int]] = {}
        for path, module in self.student.named_modules():
            if path.endswith(".attn") and hasattr(module, "num_heads"):
                pair: Any = self.teacher.get_submodule(self.layers.paths[path]), module
                counts[path.removesuffix(".attn")] = (
                    pair[0].num_heads,
                    pair[1].num_heads,
                )
        return counts


def _on_meta(arch: Arch) -> nn.Module:
    with torch.device("meta"):
        return arch.build()


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


class WeightSelection(StudentStage):
    """A student of the teacher's family from a subset of the teacher's weights.

    The incoming model is the teacher. The classifier keeps the student's initialisation
    from the stage's seed.
    """

    phase: ClassVar[Phase] = "init"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Xu et al., Initializing Models with Larger Ones, ICLR 2024"

    layer_rule: LayerRule = Field(
        "first", description="teacher blocks: the first ones, or evenly spaced ones"
    )
    element_rule: ElementRule = Field(
        "uniform", description="elements along each axis; uniform is the paper's"
    )
    copy_head: bool = Field(
        False,
        description=(
            "teacher and student share the label set: select the classifier too"
        ),
    )

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        """The student's architecture.

        Raises:
            ValueError: another family, a parameter that the teacher lacks, or a student
                that is larger in some axis; names the parameters and both shapes.
        """
        return self._plan(arch, data).arch

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        plan = self._plan(model.arch, ctx.data.info)
        start = ModelState.initialised(plan.arch, ctx.seed)
        tensors = plan.prepared(model.weights)
        notes: dict[str, Any] = {
            "teacher": model.arch.to_json(),
            "layer_rule": self.layer_rule,
            "element_rule": self.element_rule,
            "copy_head": self.copy_head,
            "blocks": plan.layers.blocks,
        }
        if self.element_rule == "magnitude":
            indices, notes["grouping"] = magnitude_indices(
                tensors, plan.shapes, plan.student, plan.heads()
            )
            chosen = {
                name: take(tensor, indices[name]) for name, tensor in tensors.items()
            }
        else:
            chosen = {
                name: select(
                    tensor,
                    plan.shapes[name],
                    self.element_rule,
                    seed=ctx.seed,
                    name=name,
                )
                for name, tensor in tensors.items()
            }
        chosen = {
            name: tensor.to(start.weights[name].dtype).contiguous()
            for name, tensor in chosen.items()
        }
        return replace(
            start, weights={**start.weights, **chosen}, meta={"weight_selection": notes}
        )

    def _plan(self, arch: Arch, data: DataInfo) -> _Plan:
        target = super().check(arch, data)
        student, teacher = _on_meta(target), _on_meta(arch)
        layers = map_layers(student, teacher, self.layer_rule)
        heads = classifier_names(student)
        shapes = {
            n: s
            for n, s in _shapes(student).items()
            if self.copy_head or n not in heads
        }
        plan = _Plan(target, student, teacher, layers, shapes)

        title = f"weight selection from {arch.name} to {target.name}"
        if not isinstance(student, type(teacher)) and not isinstance(
            teacher, type(student)
        ):
            theirs, families = (
                _shapes(teacher),
                f"{type(teacher).__name__} and {type(student).__name__}",
            )
            name = next(
                (n for n in shapes if theirs.get(n) != shapes[n]), next(iter(shapes))
            )
            example = (
                f"{name!r}: student {shapes[name]}, teacher {theirs.get(name, 'none')}"
            )
            raise ValueError(
                f"{title}: {families} are different families ({example}). Choose models"
                " of one family"
            )
        faults = self._faults(plan, arch, heads)
        if faults:
            raise ValueError(
                f"{title}: {_listed(faults)}. The student must be a smaller model of"
                " one design"
            )
        return plan

    def _faults(self, plan: _Plan, teacher_arch: Arch, heads: set[str]) -> list[str]:
        """One line for each parameter that cannot be selected."""
        theirs, faults = _shapes(plan.teacher), []
        sized = _sized_by_image(plan, teacher_arch)
        for name, shape in plan.shapes.items():
            other = plan.layers.teacher_name(name)
            if other not in theirs:
                faults.append(
                    f"{name!r}: student {shape}, the teacher has no {other!r}"
                )
                continue
            ranked = tuple(
                same_rank(torch.empty(theirs[other], device="meta"), len(shape)).shape
            )
            fault = _fault(ranked, shape)
            if plan.is_positions(name):
                fault = _position_fault(plan, theirs[other], shape)
            elif name in heads and ranked[:1] != shape[:1]:
                fault = "copy_head needs the same classes; set it to false"
            elif name in sized and ranked != shape:
                fault = (
                    "its shape follows the image size and cannot be resampled; use"
                    " images of the teacher's size"
                )
            if fault:
                faults.append(
                    f"{name!r}: student {shape}, teacher {theirs[other]}: {fault}"
                )
        return faults


def _position_fault(
    plan: _Plan, theirs: tuple[int, ...], shape: tuple[int, ...]
) -> str | None:
    try:
        resampled = resample_positions(torch.zeros(theirs), plan.student, plan.teacher)
    except ValueError as error:
        return str(error)
    return _fault(tuple(resampled.shape), shape)


def _sized_by_image(plan: _Plan, teacher_arch: Arch) -> set[str]:
    """Student's tensors whose shape would differ at the teacher's image size."""
    size, other = plan.arch.args.get("img_size"), teacher_arch.args.get("img_size")
    if other is None or size == other:
        return set()
    at_teacher = _shapes(
        _on_meta(replace(plan.arch, args={**plan.arch.args, "img_size": other}))
    )
    return {
        name for name, shape in plan.shapes.items() if at_teacher.get(name) != shape
    }


def _listed(faults: list[str], most: int = 4) -> str:
    more = f"; and {len(faults) - most} more" if len(faults) > most else ""
    return "; ".join(faults[:most]) + more
