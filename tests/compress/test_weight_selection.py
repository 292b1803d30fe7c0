"""Weight selection against oracles in plain numpy, and exactness of the magnitude rule
where it can be exact.
"""

import re
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from compress.selection.elements import select, uniform_indices
from compress.selection.layers import map_layers
from compress.selection.random_init import RandomInit
from compress.selection.stage import WeightSelection
from compress.stage import Context
from trainers.data.splits import DataInfo
from trainers.models.arch import Arch, ModelState
from trainers.models.make import make_arch

CLASSES = 7


def info(image_size: int = 224, num_classes: int = CLASSES) -> DataInfo:
    return DataInfo(num_classes=num_classes, image_size=image_size, num_train=1)


def context(
    image_size: int = 224, seed: int = 0, num_classes: int = CLASSES
) -> Context:
    data = cast(Any, SimpleNamespace(info=info(image_size, num_classes)))
    return Context(data, torch.device("cpu"), seed, Path("unused"), cast(Any, None))


def dense(arch: Arch, seed: int = 0) -> ModelState:
    """Every tensor random, so that a wrong element is a different element (initialisers
    give constants).
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {n: (t.shape, t.dtype) for n, t in arch.build().state_dict().items()}
    weights = {}
    for name, (shape, dtype) in shapes.items():
        if dtype.is_floating_point:
            values = torch.randn(shape, generator=generator)
            weights[name] = (
                values.abs() + 0.5 if name.endswith("running_var") else values
            )
        else:
            weights[name] = torch.randint(1000, shape, generator=generator)
    return ModelState(arch, weights)


@cache
def teacher(name: str, image_size: int = 224, num_classes: int = 1000) -> ModelState:
    return dense(make_arch(name, num_classes=num_classes, image_size=image_size))


def small_vit(
    embed: int,
    heads: int,
    depth: int = 2,
    image_size: int = 32,
    name: str = "vit_tiny_patch16_224",
    **args: Any,
) -> Arch:
    args = {"embed_dim": embed, "num_heads": heads, "depth": depth, **args}
    return make_arch(name, num_classes=CLASSES, image_size=image_size, args=args)


def points(teacher_size: int, student_size: int) -> list[int]:
    """Every T/S-th index, else evenly spaced points from 0 to T-1 rounded half to even; in
    exact fractions.
    """
    if teacher_size % student_size == 0:
        return list(range(0, teacher_size, teacher_size // student_size))
    return [
        round(Fraction(i * (teacher_size - 1), student_size - 1))
        for i in range(student_size)
    ]


def cut(array: np.ndarray, shape: tuple[int, ...], rule: str) -> np.ndarray:
    if array.ndim == 2 and len(shape) == 4:
        array = array[:, :, None, None]
    axes = [
        points(t, s) if rule == "uniform" else list(range(s))
        for t, s in zip(array.shape, shape, strict=True)
    ]
    return array[np.ix_(*axes)] if axes else array


# ---- index rules
# -----------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.data())
def test_uniform_indices_are_the_rounded_evenly_spaced_points(
    t: int, data: st.DataObject
) -> None:
    s = data.draw(st.integers(1, t))
    assert uniform_indices(t, s, "exact").tolist() == points(t, s)


WIDTHS = (
    *(192, 256, 320, 384, 432, 480, 512, 576, 640, 704, 768, 832, 896, 960, 1024, 1152),
    *(
        1280,
        1408,
        1536,
        1664,
        1728,
        1792,
        2048,
        2304,
        2560,
        3072,
        3456,
        3840,
        4096,
        4608,
    ),
    *(5120, 5632, 6144, 8192),
)


def size_pairs() -> list[tuple[int, int]]:
    """All pairs of usual widths, and random ones: 8,488 with the teacher larger."""
    usual = [(t, s) for t in WIDTHS for s in WIDTHS if s < t]
    draw = np.random.default_rng(0)
    teachers = draw.integers(2, 8193, 8488 - len(usual))
    return usual + [(int(t), int(draw.integers(1, t))) for t in teachers]


def test_uniform_indices_are_those_of_float32_points() -> None:
    """The published rule: float32 points, rounded half to even. In exact arithmetic some pairs
    have another index, usual widths among them.
    """
    pairs = size_pairs()
    assert len(pairs) == 8488
    exact_differs = []
    for t, s in pairs:
        got = uniform_indices(t, s)
        published = np.rint(torch.linspace(0, t - 1, s).numpy())
        if t % s == 0:
            published = np.arange(0, t, t // s)
        assert np.array_equal(got.numpy(), published), (t, s)
        difference = (got - uniform_indices(t, s, "exact")).abs()
        assert difference.max() <= 1
        if difference.any():
            exact_differs.append((t, s))
    assert {(6144, 4096), (4608, 3072), (5120, 4608)} <= set(exact_differs)


def test_uniform_indices_by_hand() -> None:
    assert uniform_indices(6, 3).tolist() == [0, 2, 4]
    assert uniform_indices(5, 3).tolist() == [0, 2, 4]
    assert uniform_indices(4, 3).tolist() == [0, 2, 3]  # 1.5 → 2
    assert uniform_indices(8, 3).tolist() == [0, 4, 7]  # 3.5 → 4
    assert uniform_indices(6, 5).tolist() == [0, 1, 2, 4, 5]  # 1.25, 2.5 → 2, 3.75
    assert uniform_indices(9, 1).tolist() == [0]


def test_select_by_hand() -> None:
    tensor = torch.arange(24).reshape(4, 6)
    assert select(tensor, (2, 3), "uniform").tolist() == [[0, 2, 4], [12, 14, 16]]
    assert select(tensor, (2, 3), "consecutive").tolist() == [[0, 1, 2], [6, 7, 8]]
    assert select(tensor, (2, 3), "magnitude").tolist() == [[15, 16, 17], [21, 22, 23]]
    assert select(torch.tensor([1.0, -9.0, 3.0]), (2,), "magnitude").tolist() == [
        -9.0,
        3.0,
    ]


def test_select_copies() -> None:
    tensor = torch.zeros(3, 3)
    select(tensor, (3, 3), "uniform").fill_(1)
    assert tensor.abs().sum() == 0


def test_select_turns_linear_layers_into_1x1_convolutions_and_back() -> None:
    matrix = torch.randn(8, 4)
    assert torch.equal(
        select(matrix, (4, 2, 1, 1), "uniform"), matrix[::2, ::2, None, None]
    )
    assert torch.equal(
        select(matrix[:, :, None, None], (4, 2), "uniform"), matrix[::2, ::2]
    )


def test_select_names_the_tensor_and_both_shapes() -> None:
    with pytest.raises(
        ValueError,
        match=r"fc\.weight: student \(5, 2\), teacher \(4, 3\): .*larger in axis 0",
    ):
        select(torch.zeros(4, 3), (5, 2), "uniform", name="fc.weight")
    with pytest.raises(ValueError, match="another number of axes"):
        select(torch.zeros(4, 3, 3), (4, 3), "uniform")
    with pytest.raises(ValueError, match="'middle' is not one of uniform, consecutive"):
        select(torch.zeros(4), (2,), cast(Any, "middle"))


def chosen_axes(
    t: tuple[int, int], s: tuple[int, int], **kwargs: Any
) -> tuple[list[int], list[int]]:
    """Row and column indices that a rule chooses, read off a tensor that holds its own
    positions.
    """
    rows = torch.arange(t[0])[:, None].expand(t)
    columns = torch.arange(t[1])[None].expand(t)
    return (
        select(rows, s, **kwargs)[:, 0].tolist(),
        select(columns, s, **kwargs)[0].tolist(),
    )


@settings(max_examples=40)
@given(st.integers(1, 300), st.integers(1, 300), st.data(), st.integers(0, 2**62))
def test_random_shares_one_sorted_set_per_axis_size(
    t: int, other: int, data: st.DataObject, seed: int
) -> None:
    s, s_other = data.draw(st.integers(1, t)), data.draw(st.integers(1, other))
    rows, columns = chosen_axes(
        (t, other), (s, s_other), rule="random", seed=seed, name="a"
    )
    rows_b, columns_b = chosen_axes(
        (other, t), (s_other, s), rule="random", seed=seed, name="b"
    )
    assert rows == columns_b
    assert columns == rows_b
    assert rows == sorted(set(rows))
    assert len(rows) == s
    assert 0 <= rows[0] <= rows[-1] < t


def test_random_depends_on_the_seed_and_covers_the_axis() -> None:
    sets = [
        chosen_axes((40, 1), (20, 1), rule="random", seed=seed)[0] for seed in range(50)
    ]
    assert len({tuple(s) for s in sets}) == 50
    counts = np.bincount(np.concatenate(sets), minlength=40)
    assert (
        counts.min() > 8
    )  # binomial(50, 1/2): 8 is 4.8 standard deviations below the mean
    assert counts.max() < 42


def test_random_inconsistent_differs_between_tensors_and_axes() -> None:
    a = chosen_axes((64, 64), (32, 32), rule="random_inconsistent", seed=1, name="a")
    b = chosen_axes((64, 64), (32, 32), rule="random_inconsistent", seed=1, name="b")
    assert len({tuple(x) for x in (*a, *b)}) == 4
    assert a == chosen_axes(
        (64, 64), (32, 32), rule="random_inconsistent", seed=1, name="a"
    )


# ---- whole models
# ----------------------------------------------------------------------------------------

PAIRS = {
    "vit": ("vit_small_patch16_224", "vit_tiny_patch16_224", 224, r"head\."),
    "convnext": ("convnext_tiny", "convnext_femto", 224, r"head\."),
    "resnet": ("resnet34", "resnet18", 224, r"fc\."),
    "resnet_cifar": ("resnet56_cifar", "resnet20_cifar", 32, r"linear\."),
}
UNIFORM_BLOCKS = {
    "vit": {r"blocks": list(range(12))},
    "convnext": {
        r"stages\.0\.blocks": [0, 2],
        r"stages\.1\.blocks": [0, 2],
        r"stages\.2\.blocks": [0, 2, 3, 5, 6, 8],
        r"stages\.3\.blocks": [0, 2],
    },
    "resnet": {"layer1": [0, 2], "layer2": [0, 2], "layer3": [0, 3], "layer4": [0, 2]},
    "resnet_cifar": {f"layer{i}": [0, 3, 6] for i in (1, 2, 3)},
}


def source_name(name: str, blocks: dict[str, list[int]]) -> str:
    for prefix, chosen in blocks.items():
        match = re.match(rf"({prefix}\.)(\d+)(\..*)", name)
        if match:
            return f"{match[1]}{chosen[int(match[2])]}{match[3]}"
    return name


@pytest.mark.parametrize(
    ("family", "element_rule", "layer_rule"),
    [(f, e, "first") for f in PAIRS for e in ("uniform", "consecutive")]
    + [(f, "uniform", "uniform") for f in PAIRS],
)
def test_every_tensor_bit_for_bit(
    family: str, element_rule: Any, layer_rule: Any
) -> None:
    big, small, size, head = PAIRS[family]
    source = teacher(big, size)
    stage = WeightSelection(
        model=small, element_rule=element_rule, layer_rule=layer_rule
    )
    result = stage.run(source, context(size, seed=5))
    fresh = RandomInit(model=small).run(source, context(size, seed=5))

    assert result.arch == stage.check(source.arch, info(size)) == fresh.arch
    assert list(result.weights) == list(fresh.weights)
    heads = [name for name in result.weights if re.match(head, name)]
    assert len(heads) == (4 if family == "convnext" else 2)  # head.norm too
    for name, got in result.weights.items():
        if name in heads:
            assert torch.equal(got, fresh.weights[name])
            continue
        origin = (
            source_name(name, UNIFORM_BLOCKS[family])
            if layer_rule == "uniform"
            else name
        )
        expected = cut(source.weights[origin].numpy(), tuple(got.shape), element_rule)
        assert np.array_equal(got.numpy(), expected), name
        assert got.is_contiguous()
    result.build()


def test_the_fused_qkv_axis_is_one_axis() -> None:
    source = teacher("vit_small_patch16_224")
    result = WeightSelection(model="vit_tiny_patch16_224").run(source, context())
    qkv = source.weights["blocks.3.attn.qkv.weight"]
    assert torch.equal(result.weights["blocks.3.attn.qkv.weight"], qkv[::2, ::2])


def test_layer_map_and_rules_are_noted() -> None:
    stage = WeightSelection(model="resnet20_cifar", layer_rule="uniform")
    notes = stage.run(teacher("resnet56_cifar", 32), context(32)).meta[
        "weight_selection"
    ]
    assert notes["blocks"] == {
        "layer1": [0, 3, 6],
        "layer2": [0, 3, 6],
        "layer3": [0, 3, 6],
    }
    assert (notes["layer_rule"], notes["element_rule"], notes["teacher"]["name"]) == (
        "uniform",
        "uniform",
        "resnet56_cifar",
    )


@pytest.mark.parametrize(
    "rule", ["uniform", "consecutive", "random", "random_inconsistent", "magnitude"]
)
def test_input_not_mutated_and_result_seeded(rule: Any) -> None:
    source = dense(small_vit(48, 4))
    before = source.hash()
    stage = WeightSelection(
        element_rule=rule, args={"embed_dim": 24, "num_heads": 2, "depth": 1}
    )
    results = [stage.run(source, context(32, seed)) for seed in (3, 3, 4)]
    assert source.hash() == before
    assert results[0].hash() == results[1].hash() != results[2].hash()
    assert not {t.data_ptr() for t in results[0].weights.values()} & {
        t.data_ptr() for t in source.weights.values()
    }
    same = torch.equal(
        results[0].weights["norm.weight"], results[2].weights["norm.weight"]
    )
    assert same is not rule.startswith("random")


def test_random_is_one_set_across_a_model_and_random_inconsistent_is_not() -> None:
    source = dense(small_vit(48, 4))
    stream = torch.arange(48.0)
    weights = {
        n: t.copy_(stream) if t.shape[-1] == 48 else t
        for n, t in source.weights.items()
    }
    source = ModelState(source.arch, weights)
    args = {"embed_dim": 24, "num_heads": 2}
    sets = {}
    for rule in ("random", "random_inconsistent"):
        result = WeightSelection(element_rule=cast(Any, rule), args=args).run(
            source, context(32)
        )
        on_stream = [
            t
            for n, t in result.weights.items()
            if t.shape[-1] == 24 and "head" not in n
        ]
        sets[rule] = {tuple(t.reshape(-1, 24)[0].tolist()) for t in on_stream}
    assert len(sets["random"]) == 1
    assert len(sets["random_inconsistent"]) > 10


def test_without_a_model_name_the_teacher_shrinks_by_its_arguments() -> None:
    source = dense(small_vit(48, 4, image_size=64, qkv_bias=False))
    stage = WeightSelection(args={"embed_dim": 24, "num_heads": 2})
    arch = stage.check(source.arch, info(32))
    assert arch.name == source.arch.name
    assert arch.args == {
        "num_classes": CLASSES,
        "img_size": 32,
        "embed_dim": 24,
        "num_heads": 2,
        "depth": 2,
        "qkv_bias": False,
    }


def test_a_teacher_in_half_precision_gives_the_students_type() -> None:
    source = dense(small_vit(48, 4))
    half = ModelState(source.arch, {n: t.half() for n, t in source.weights.items()})
    result = WeightSelection(args={"embed_dim": 24, "num_heads": 2}).run(
        half, context(32)
    )
    assert {t.dtype for t in result.weights.values()} == {torch.float32}


# ---- classifier, tokens, positions
# -----------------------------------------------------------------------


def test_both_heads_of_a_distilled_model_are_left_alone_and_copied_on_demand() -> None:
    name = "deit_tiny_distilled_patch16_224"
    source = dense(small_vit(48, 4, name=name))
    args = {"embed_dim": 24, "num_heads": 2}
    fresh = RandomInit(args=args).run(source, context(32, seed=2))
    left = WeightSelection(args=args).run(source, context(32, seed=2))
    copied = WeightSelection(args=args, copy_head=True).run(source, context(32, seed=2))
    for head in ("head", "head_dist"):
        for leaf in ("weight", "bias"):
            key = f"{head}.{leaf}"
            assert torch.equal(left.weights[key], fresh.weights[key])
            assert np.array_equal(
                copied.weights[key],
                cut(
                    source.weights[key].numpy(),
                    tuple(fresh.weights[key].shape),
                    "uniform",
                ),
            )
    assert torch.equal(
        left.weights["dist_token"], source.weights["dist_token"][..., ::2]
    )
    assert torch.equal(left.weights["pos_embed"], source.weights["pos_embed"][..., ::2])


def test_copy_head_needs_the_same_classes() -> None:
    stage = WeightSelection(model="resnet20_cifar", copy_head=True)
    match = r"'linear\.weight': student \(10, 64\), teacher \(7, 64\): copy_head"
    with pytest.raises(ValueError, match=match):
        stage.check(
            make_arch("resnet56_cifar", num_classes=7, image_size=32), info(32, 10)
        )


@pytest.mark.parametrize(
    ("teacher_size", "student_size"), [(96, 32), (32, 96), (96, 64)]
)
def test_positions_are_resampled_where_the_grids_differ(
    teacher_size: int, student_size: int
) -> None:
    source = dense(small_vit(48, 4, image_size=teacher_size))
    got = (
        WeightSelection(args={"embed_dim": 24, "num_heads": 2})
        .run(source, context(student_size))
        .weights["pos_embed"]
    )

    t, s = teacher_size // 16, student_size // 16
    grid = source.weights["pos_embed"][0, 1:].T.reshape(1, 48, t, t)
    patches = F.interpolate(
        grid, (s, s), mode="bicubic", antialias=True, align_corners=False
    )
    expected = torch.cat(
        [source.weights["pos_embed"][0, :1], patches.reshape(48, s * s).T]
    )[:, ::2]
    torch.testing.assert_close(got[0], expected, rtol=0, atol=1e-6)


def test_a_plain_student_of_a_distilled_teacher_takes_the_class_position() -> None:
    source = dense(small_vit(48, 4, name="deit_tiny_distilled_patch16_224"))
    stage = WeightSelection(
        model="vit_tiny_patch16_224", args={"embed_dim": 24, "num_heads": 2, "depth": 2}
    )
    got = stage.run(source, context(32)).weights["pos_embed"]
    assert torch.equal(got, source.weights["pos_embed"][:, [0, 2, 3, 4, 5], ::2])


# ---- refusals
# --------------------------------------------------------------------------------------------


def refused(
    teacher_name: str, student: str | None, size: int = 224, **args: Any
) -> str:
    arch = make_arch(
        teacher_name,
        num_classes=1000,
        image_size=224 if size == 32 and "cifar" not in teacher_name else size,
    )
    with pytest.raises(ValueError, match="weight selection from") as caught:
        WeightSelection(model=student, args=args).check(arch, info(size))
    return str(caught.value)


def test_refusals_name_the_parameter_and_both_shapes() -> None:
    text = refused("vit_tiny_patch16_224", "vit_small_patch16_224")
    assert (
        "'cls_token': student (1, 1, 384), teacher (1, 1, 192): the student is larger"
        " in axis 2" in text
    )
    text = refused("resnet20_cifar", "resnet56_cifar", 32)
    assert (
        "'layer1.3.conv1.weight': student (16, 16, 3, 3), the teacher has no"
        " 'layer1.3.conv1.weight'" in text
    )
    text = refused("vit_small_patch16_224", "convnext_femto")
    assert "VisionTransformer and ConvNeXt are different families" in text
    assert "'stem.0.weight': student (48, 3, 4, 4), teacher none" in text
    text = refused("resnet34", "resnet20_cifar", 32)
    assert "ResNet and ResNetCifar are different families" in text
    assert "'conv1.weight': student (16, 3, 3, 3), teacher (64, 3, 7, 7)" in text
    text = refused("resnet50", "resnet18")
    assert (
        "'layer1.0.conv1.weight': student (64, 64, 3, 3), teacher (64, 64, 1, 1)"
        in text
    )
    text = refused("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224")
    assert "'dist_token': student (1, 1, 192), the teacher has no 'dist_token'" in text


def test_a_table_that_cannot_be_resampled_is_refused() -> None:
    teacher_arch = make_arch("levit_128s", num_classes=10, image_size=224)
    with pytest.raises(ValueError, match="weight selection from") as caught:
        WeightSelection(model="levit_128s").check(teacher_arch, info(160))
    assert (
        "attention_biases': student (4, 100), teacher (4, 196): the teacher has places 196"
        " there, the student 100, and they cannot be resampled" in str(caught.value)
    )


def test_kernels_of_another_size_are_refused() -> None:
    text = refused("convnext_tiny", "convnext_femto", kernel_sizes=5)
    assert "conv_dw.weight': student (48, 1, 5, 5), teacher (96, 1, 7, 7)" in text
    assert "places 7 × 7 there, the student 5 × 5, and they cannot be resampled" in text


SWIN: dict[str, Any] = {
    "depths": [1, 1],
    "num_heads": [2, 4],
    "embed_dim": 16,
    "patch_size": 4,
}


def swin(window: int, image_size: int = 56, **args: Any) -> Arch:
    return make_arch(
        "swin_tiny_patch4_window7_224",
        num_classes=CLASSES,
        image_size=image_size,
        args={**SWIN, "window_size": window, **args},
    )


TABLE = "layers.0.blocks.0.attn.relative_position_bias_table"


@pytest.mark.parametrize(("teacher_window", "student_window"), [(7, 4), (4, 7)])
def test_relative_position_tables_are_resampled_as_maps(
    teacher_window: int, student_window: int
) -> None:
    """A map keeps its symmetry and its order of values; rows of the flattened table would not."""
    source = dense(swin(teacher_window))
    offsets = torch.arange(1.0 - teacher_window, teacher_window)
    maps = {
        "even": offsets[:, None].abs() + 0 * offsets,  # |rows|
        "odd": offsets[:, None] - 2 * offsets,  # rows - 2 columns
    }
    stage = WeightSelection(
        args=SWIN | {"window_size": student_window, "embed_dim": 8, "num_heads": [1, 2]}
    )
    side = 2 * student_window - 1
    found = {}
    for name, values in maps.items():
        table = torch.stack([values.flatten()] * 2, dim=1)
        state = ModelState(source.arch, {**source.weights, TABLE: table})
        got = stage.run(state, context(56)).weights[TABLE]
        assert got.shape == (side * side, 1)
        found[name] = got[:, 0].view(side, side)
    even, odd, middle = found["even"], found["odd"], side // 2
    torch.testing.assert_close(even, even.flip(0))
    torch.testing.assert_close(even, even[:, :1].expand(-1, side))
    assert (even[middle:, 0].diff() >= 0).all()
    torch.testing.assert_close(odd, -odd.flip((0, 1)))
    assert (odd[:, middle].diff() >= 0).all()
    assert (odd[middle].diff() <= 0).all()
    assert even[middle, 0] == 0 < even[-1, 0]


def test_a_table_of_the_same_window_is_selected_by_heads_alone() -> None:
    source = dense(swin(7))
    stage = WeightSelection(
        args={**SWIN, "window_size": 7, "embed_dim": 8, "num_heads": [1, 2]}
    )
    got = stage.run(source, context(56)).weights
    assert torch.equal(got[TABLE], source.weights[TABLE][:, ::2])


def test_a_patch_kernel_of_another_size_is_resampled() -> None:
    """Patches that are resized by the same factor keep their embedding (FlexiViT)."""
    teacher_arch = small_vit(48, 4, image_size=64, patch_size=8)
    source = dense(teacher_arch)
    args = {"embed_dim": 48, "num_heads": 4, "depth": 2, "patch_size": 16}
    got = WeightSelection(args=args).run(source, context(64)).weights
    kernel = got["patch_embed.proj.weight"]
    assert kernel.shape == (48, 3, 16, 16)
    assert got["pos_embed"].shape == (1, 17, 48)
    patch = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    larger = F.interpolate(patch, (16, 16), mode="bicubic", antialias=True)
    torch.testing.assert_close(
        (kernel * larger).sum((1, 2, 3)),
        (source.weights["patch_embed.proj.weight"] * patch).sum((1, 2, 3)),
        rtol=1e-3,
        atol=1e-3,
    )


def test_config_is_strict() -> None:
    for bad in (
        {"element_rule": "middle"},
        {"layers": "first"},
        {"args": {"num_classes": 3}},
    ):
        with pytest.raises(ValidationError):
            WeightSelection.model_validate(bad)
    with pytest.raises(ValueError, match="unknown model"):
        WeightSelection(model="vit_huge_nonsense").check(
            make_arch("resnet20_cifar", num_classes=7, image_size=32), info(32)
        )


# ---- other families by name
# ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("big", "small", "expected"),
    [
        (
            "efficientnet_b1",
            "efficientnet_b0",
            {"blocks.5": [0, 1, 3, 4]},
        ),  # 5 → 4: 0, 4/3, 8/3, 4
        ("regnety_008", "regnety_008", {}),
        ("wide_resnet50_2", "resnet50", {"layer3": [0, 1, 2, 3, 4, 5]}),
    ],
)
def test_other_families_map_by_name(
    big: str, small: str, expected: dict[str, list[int]]
) -> None:
    with torch.device("meta"):
        modules = [
            make_arch(name, num_classes=7, image_size=224).build()
            for name in (small, big)
        ]
    WeightSelection(model=small).check(
        make_arch(big, num_classes=7, image_size=224), info()
    )
    found = map_layers(modules[0], modules[1], "uniform")
    assert expected.items() <= found.blocks.items()


def test_magnitude_of_an_unknown_family_keeps_one_set_per_axis_size() -> None:
    name, shape = (
        "swin_tiny_patch4_window7_224",
        {
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 1, 1],
        },
    )
    source = dense(
        make_arch(
            name, num_classes=CLASSES, image_size=56, args={"embed_dim": 16, **shape}
        )
    )
    alive = {
        size: scattered(size // 2, size, size) for size in (16, 32, 64, 128, 256, 512)
    }
    for key, tensor in source.weights.items():
        for axis, size in enumerate(tensor.shape):
            parts = 3 if "qkv" in key and axis == 0 else 1
            for part, width in enumerate([size // parts] * parts):
                if width in alive and not key.startswith("head"):
                    dead = torch.tensor(
                        [i for i in range(width) if i not in alive[width].tolist()]
                    )
                    tensor.index_fill_(axis, dead + part * width, 1e-4)
    stage = WeightSelection(args={"embed_dim": 8}, element_rule="magnitude")
    result = stage.run(source, context(56))
    assert result.meta["weight_selection"]["grouping"] == "axis sizes"
    for key, tensor in result.weights.items():
        if not key.startswith("head"):
            assert not (tensor == 1e-4).any(), key
    assert torch.equal(
        result.weights["norm.weight"], source.weights["norm.weight"][alive[128]]
    )
    key = "layers.1.blocks.0.attn.qkv.weight"
    rows = torch.cat([alive[32], alive[32] + 32, alive[32] + 64])
    assert torch.equal(result.weights[key], source.weights[key][rows][:, alive[32]])


# ---- magnitude: a teacher with idle channels shrinks to the network that it hides
# --------------------------


def scattered(live: int, total: int, seed: int) -> torch.Tensor:
    return (
        torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:live]
        .sort()
        .values
    )


def spread(
    tensor: torch.Tensor,
    axis: int,
    size: int,
    live: torch.Tensor,
    *,
    twin: bool = False,
) -> torch.Tensor:
    """Put `tensor` at positions `live` of a longer axis; elsewhere 0, or (twin) its own
    values again.
    """
    shape = list(tensor.shape)
    shape[axis] = size
    wide = torch.zeros(shape, dtype=tensor.dtype).index_copy_(axis, live, tensor)
    if twin:
        idle = torch.tensor([i for i in range(size) if i not in live.tolist()])
        wide.index_copy_(axis, idle, tensor)
    return wide


def assert_recovered(
    hidden: ModelState, wide: ModelState, image_size: int, args: dict[str, Any]
) -> None:
    """`wide` computes what `hidden` does; the magnitude rule finds exactly `hidden` in it."""
    images = torch.randn(
        4, 3, image_size, image_size, generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        expected = wide.build()(images)
        torch.testing.assert_close(
            hidden.build()(images), expected, rtol=1e-4, atol=1e-4
        )
    stage = WeightSelection(args=args, element_rule="magnitude", copy_head=True)
    found = stage.run(wide, context(image_size))
    for name, tensor in hidden.weights.items():
        assert torch.equal(found.weights[name], tensor), name
    assert found.meta["weight_selection"]["grouping"] == "axis roles"


def test_magnitude_finds_the_vit_inside_a_wider_one() -> None:
    """Layer norm averages over channels, so idle channels repeat the live ones (same mean
    and variance) and nothing reads them; heads and hidden units that do nothing are
    zero."""
    hidden = dense(small_vit(24, 2), seed=3)
    live, heads = scattered(24, 48, 1), torch.tensor([1, 2])
    by_head = (heads[:, None] * 12 + torch.arange(12)).flatten()
    of_qkv = torch.cat([by_head + 48 * i for i in range(3)])
    weights = {}
    for name, tensor in hidden.weights.items():
        writes = (
            re.search(r"token|pos_embed|patch_embed|attn\.proj|fc2", name) is not None
        )
        stream = {
            "cls_token": 2,
            "pos_embed": 2,
            "patch_embed.proj.weight": 0,
            "patch_embed.proj.bias": 0,
        }.get(name)
        if re.search(r"norm|attn\.proj|fc2", name):
            stream = 0
        elif re.search(r"(qkv|fc1|head)\.weight", name):
            stream = 1
        tensor = tensor * 0.1 if writes else tensor
        hidden.weights[name] = tensor
        if stream is not None:
            tensor = spread(tensor, stream, 48, live, twin=writes)
        if "qkv" in name:
            tensor = spread(tensor, 0, 144, of_qkv)
        elif name.endswith("attn.proj.weight"):
            tensor = spread(tensor, 1, 48, by_head)
        elif "mlp.fc1" in name or name.endswith("fc2.weight"):
            hidden_axis, block = int("fc2" in name), int(name.split(".")[1])
            tensor = spread(tensor, hidden_axis, 192, scattered(96, 192, 10 + block))
        weights[name] = tensor
    assert_recovered(
        hidden,
        ModelState(small_vit(48, 4), weights),
        32,
        {"embed_dim": 24, "num_heads": 2},
    )


def test_magnitude_finds_the_convnext_inside_a_wider_one() -> None:
    small, big = [4, 6, 8, 10], [8, 12, 16, 20]
    hidden = dense(
        make_arch(
            "convnext_femto",
            num_classes=CLASSES,
            image_size=64,
            args={"depths": [1, 1, 2, 1], "dims": small},
        )
    )
    live = [scattered(s, b, i) for i, (s, b) in enumerate(zip(small, big, strict=True))]
    weights = {}
    for name, tensor in hidden.weights.items():
        parts = name.split(".")
        stage = 0 if parts[0] == "stem" else 3 if parts[0] == "head" else int(parts[1])
        reads_before = re.search(r"downsample\.0", name) is not None
        stage -= reads_before
        writes = re.search(r"stem|gamma|conv_dw|fc2|downsample\.1", name) is not None
        tensor = tensor * 0.1 if writes else tensor
        hidden.weights[name] = tensor
        if not re.search(r"fc1\.bias|head\.fc", name) and "fc1" not in name:
            tensor = spread(tensor, 0, big[stage], live[stage], twin=writes)
        if re.search(r"(fc1|head\.fc)\.weight", name):
            tensor = spread(tensor, 1, big[stage], live[stage])
        if name.endswith("downsample.1.weight"):
            tensor = spread(tensor, 1, big[stage - 1], live[stage - 1])
        if "mlp.fc1" in name or name.endswith("mlp.fc2.weight"):
            seed = 20 + 5 * stage + int(parts[3])
            tensor = spread(
                tensor,
                int("fc2" in name),
                4 * big[stage],
                scattered(4 * small[stage], 4 * big[stage], seed),
            )
        weights[name] = tensor
    wide = make_arch(
        "convnext_femto",
        num_classes=CLASSES,
        image_size=64,
        args={"depths": [1, 1, 2, 1], "dims": big},
    )
    assert_recovered(hidden, ModelState(wide, weights), 64, {"dims": small})


def spread_resnet(
    hidden: ModelState, streams: dict[str, torch.Tensor], widths: dict[str, int]
) -> dict[str, torch.Tensor]:
    """Zero channels everywhere: `streams` gives live positions by `stem`, `layer1`, …,
    `widths` the sizes.
    """
    inner: dict[str, torch.Tensor] = {}
    weights = {}
    for name, tensor in hidden.weights.items():
        match = re.match(r"layer(\d)\.(\d+)\.(conv1|bn1|conv2|bn2|downsample)", name)
        if name.endswith("num_batches_tracked"):
            weights[name] = tensor
            continue
        if re.match(r"(fc|linear)\.", name):
            last = list(streams)[-1]
            weights[name] = (
                spread(tensor, 1, widths[last], streams[last])
                if tensor.ndim == 2
                else tensor
            )
            continue
        if match is None:
            out = "stem"
        else:
            stage, block, layer = match.groups()
            out = f"layer{stage}"
            before = (
                out
                if block != "0"
                else "stem"
                if stage == "1"
                else f"layer{int(stage) - 1}"
            )
            if layer in ("conv1", "bn1"):
                size = widths[out]
                positions = inner.setdefault(
                    f"{stage}.{block}",
                    scattered(len(streams[out]), size, 50 + len(inner)),
                )
                tensor = spread(tensor, 0, size, positions)
                weights[name] = (
                    spread(tensor, 1, widths[before], streams[before])
                    if layer == "conv1"
                    else tensor
                )
                continue
            if layer == "conv2":
                tensor = spread(tensor, 1, widths[out], inner[f"{stage}.{block}"])
            elif tensor.ndim == 4:
                tensor = spread(tensor, 1, widths[before], streams[before])
        weights[name] = spread(tensor, 0, widths[out], streams[out])
    for name, tensor in weights.items():
        if name.endswith(
            "running_mean"
        ):  # no effect where the scale is zero, and no part of a score
            idle = weights[name.replace("running_mean", "weight")] == 0
            weights[name] = tensor.masked_fill(idle, 1e4)
    return weights


def test_magnitude_finds_the_resnet_inside_a_wider_one() -> None:
    small, big, layers = [4, 6, 8, 10], [8, 12, 16, 20], [1, 2, 1, 1]

    def arch(channels: list[int]) -> Arch:
        args = {"channels": channels, "layers": layers}
        return make_arch("resnet18", num_classes=CLASSES, image_size=64, args=args)

    hidden = dense(arch(small))
    streams = {
        f"layer{i + 1}": scattered(s, b, i)
        for i, (s, b) in enumerate(zip(small, big, strict=True))
    }
    widths = {f"layer{i + 1}": b for i, b in enumerate(big)}
    stem = {"stem": torch.arange(64)}
    wide = ModelState(
        arch(big), spread_resnet(hidden, {**stem, **streams}, {"stem": 64, **widths})
    )
    assert_recovered(hidden, wide, 64, {"channels": small})


def test_magnitude_follows_option_a_shortcuts() -> None:
    """Channel c of a stage is channel c + pad of the next, so the live positions of stages
    depend on each other.
    """

    def arch(width: int) -> Arch:
        return make_arch(
            "resnet20_cifar", num_classes=CLASSES, image_size=16, args={"width": width}
        )

    hidden = dense(arch(4))
    one = scattered(4, 8, 1)
    two = torch.cat([scattered(2, 4, 2), one + 4, scattered(2, 4, 3) + 12])
    three = torch.cat([scattered(4, 8, 4), two + 8, scattered(4, 8, 5) + 24])
    streams = {"stem": one, "layer1": one, "layer2": two, "layer3": three}
    wide = ModelState(
        arch(8),
        spread_resnet(
            hidden, streams, {"stem": 8, "layer1": 8, "layer2": 16, "layer3": 32}
        ),
    )
    assert_recovered(hidden, wide, 16, {"width": 4})


def test_magnitude_keeps_q_k_and_v_of_the_same_heads_and_dimensions() -> None:
    """Rows that hold their own positions: q and k keep the same ones, v those that proj reads."""
    source = dense(small_vit(48, 4))
    stage = WeightSelection(
        args={"embed_dim": 24, "num_heads": 3}, element_rule="magnitude"
    )
    position = torch.arange(144.0)
    for block in (0, 1):
        source.weights[f"blocks.{block}.attn.qkv.bias"] = position + 1
        source.weights[f"blocks.{block}.attn.proj.weight"] = (
            position[:48].expand(48, 48) + 1
        )
    result = stage.run(source, context(32))
    for block in (0, 1):
        q, k, v = (
            (result.weights[f"blocks.{block}.attn.qkv.bias"] - 1).reshape(3, 24).int()
        )
        assert torch.equal(k - 48, q)
        assert torch.equal(
            v - 96, (result.weights[f"blocks.{block}.attn.proj.weight"][0] - 1).int()
        )
        for index in (q, v - 96):
            heads = index.reshape(3, 8) // 12
            assert torch.equal(heads, heads[:, :1].expand(3, 8))
            assert (index.diff() > 0).all()
        assert torch.equal(q.reshape(3, 8) // 12, (v - 96).reshape(3, 8) // 12)


def test_magnitude_takes_the_largest_sum_over_the_residual_stream() -> None:
    source = dense(small_vit(48, 4))
    total = np.zeros(48)
    axis_of = {"cls_token": 2, "pos_embed": 2}
    for name, tensor in source.weights.items():
        array = np.abs(tensor.double().numpy())
        if name.startswith("head"):
            continue
        axis = axis_of.get(name)
        if axis is None and re.search(r"norm|patch_embed|attn\.proj|fc2", name):
            axis = 0
        elif axis is None and re.search(r"(qkv|fc1)\.weight", name):
            axis = 1
        if axis is not None:
            total += array.sum(tuple(a for a in range(array.ndim) if a != axis))
    expected = np.sort(np.argsort(-total)[:24])
    result = WeightSelection(
        args={"embed_dim": 24, "num_heads": 2}, element_rule="magnitude"
    ).run(source, context(32))
    assert np.array_equal(
        result.weights["norm.weight"].numpy(),
        source.weights["norm.weight"].numpy()[expected],
    )
    assert np.array_equal(
        result.weights["cls_token"][0, 0].numpy(),
        source.weights["cls_token"][0, 0].numpy()[expected],
    )


def test_magnitude_by_role_from_linear_layers_to_1x1_convolutions() -> None:
    weights = dict(teacher("convnext_tiny").weights)
    block = "stages.1.blocks.0"
    weights[f"{block}.mlp.fc1.bias"], weights[f"{block}.gamma"] = (
        torch.arange(768.0),
        torch.arange(192.0),
    )
    source = ModelState(teacher("convnext_tiny").arch, weights)
    result = WeightSelection(model="convnext_femto", element_rule="magnitude").run(
        source, context()
    )
    assert result.meta["weight_selection"]["grouping"] == "axis roles"
    hidden, stream = (
        result.weights[f"{block}.mlp.fc1.bias"].int(),
        result.weights[f"{block}.gamma"].int(),
    )
    expected = weights[f"{block}.mlp.fc1.weight"][hidden][:, stream]
    assert torch.equal(result.weights[f"{block}.mlp.fc1.weight"][:, :, 0, 0], expected)
