"""LatencyTable against interpolation written by hand; files, refusals, warnings; what is
measured where.
"""

import itertools
import json
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress.int8.timing import in_integers
from compress.measure import exported_blocks
from compress.measure import table_measurement as latency_measure
from compress.measure.exported_blocks import ExportedBlocks
from compress.measure.latency_table import Fingerprint, LatencyTable
from compress.measure.options import RuntimeOptions
from compress.measure.table_measurement import default_grid, measure_table
from compress.runtimes.integer_nodes import for_onnxruntime
from compress.runtimes.interface import OnnxBased
from compress.runtimes.onnx_file import write_onnx
from compress.runtimes.onnx_sizes import unique_sizes
from trainers.models.arch import Arch
from trainers.models.from_timm import check_vit
from trainers.models.make import make_arch
from trainers.models.parameters import DIMENSIONS
from trainers.models.pruned_vit import PrunedBlock
from trainers.models.revit import revit_arch

CPU = torch.device("cpu")
AXES = ((16, 48, 64), (1, 4), (8, 24, 64), (8,), (1, 128, 256))


def make_table(seed: int = 0, axes: tuple[tuple[int, ...], ...] = AXES) -> LatencyTable:
    generator = np.random.default_rng(seed)
    shape = [len(axis) for axis in axes]
    return LatencyTable(
        tuple(np.array(axis) for axis in axes),
        generator.uniform(0.1, 9, shape),
        generator.uniform(0.1, 1, shape[0]),
        generator.uniform(0.1, 1, shape[0]),
        Fingerprint(num_tokens=65),
    )


def by_hand(table: LatencyTable, dims: tuple[float, ...]) -> float:
    """One axis after the other: the value between two neighbours on a straight line; below
    the first, the first.
    """

    def value(index: tuple[int, ...]) -> float:
        j = len(index)
        if j == len(DIMENSIONS):
            return float(table.block[index])
        axis, x = table.axes[j].tolist(), dims[j]
        if x <= axis[0]:
            return value((*index, 0))
        i = max(i for i, point in enumerate(axis) if point < x)
        share = (x - axis[i]) / (axis[i + 1] - axis[i])
        return value((*index, i)) * (1 - share) + value((*index, i + 1)) * share

    return value(())


@st.composite
def tables(draw: st.DrawFn) -> LatencyTable:
    axes = [
        tuple(sorted(draw(st.sets(st.integers(1, 200), min_size=1, max_size=size))))
        for size in (3, 2, 3, 2, 3)
    ]
    return make_table(draw(st.integers(0, 99)), tuple(axes))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_between_and_at_grid_points(data: st.DataObject) -> None:
    table = data.draw(tables())
    every = np.array(list(itertools.product(*table.axes)))
    assert np.array_equal(table.block_ms(every), table.block.reshape(-1)), (
        "to the last bit"
    )
    dims = np.array(
        [[data.draw(st.integers(1, axis[-1])) for axis in table.axes] for _ in range(5)]
    )
    expected = [by_hand(table, tuple(row)) for row in dims]
    np.testing.assert_allclose(table.block_ms(dims), expected, rtol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_gradient_is_one_unit_fewer(data: st.DataObject) -> None:
    table = data.draw(tables())
    dims = np.array(
        [[data.draw(st.integers(1, axis[-1])) for axis in table.axes] for _ in range(3)]
    )
    gradient = table.gradient(dims)
    assert gradient.shape == (3, 5)
    for row, j in itertools.product(range(3), range(5)):
        fewer = dims[row].copy()
        fewer[j] -= 1
        difference = by_hand(table, tuple(dims[row])) - by_hand(table, tuple(fewer))
        assert gradient[row, j] == pytest.approx(difference, abs=1e-12)
        if dims[row, j] <= table.axes[j][0]:
            assert gradient[row, j] == 0, "nothing is saved below the grid"


def test_width_and_mlp_may_go_to_zero_below_the_grid() -> None:
    """As in NViT's code: linearly, so that each unit fewer saves the same."""
    table = replace(
        make_table(3, ((256, 512), (2, 4), (8, 64), (8, 64), (128, 256))),
        below="to_zero",
    )
    least = table.block[0, 0, 0, 0, 0]
    dims = np.array(
        [[16, 2, 8, 8, 128], [256, 2, 8, 8, 32], [16, 2, 8, 8, 32], [256, 1, 4, 4, 128]]
    )
    expected = least * np.array([1 / 16, 1 / 4, 1 / 64, 1])
    np.testing.assert_allclose(table.block_ms(dims), expected, rtol=1e-12)
    saved = table.gradient(np.array([[16, 2, 8, 8, 128], [256, 2, 8, 8, 32]]))
    assert saved[0, 0] == pytest.approx(least / 256)
    assert saved[1, 4] == pytest.approx(least / 128)
    on_the_grid = np.array(list(itertools.product(*table.axes)))
    assert np.array_equal(table.block_ms(on_the_grid), table.block.reshape(-1))
    assert table.model_ms(16, dims[:1, 1:]) == pytest.approx(
        least / 16 + table.stem[0] + table.head[0]
    )


def test_model_is_stem_blocks_and_head() -> None:
    table = make_table()
    blocks = np.array([[1, 8, 8, 1], [4, 64, 8, 256], [2, 16, 8, 100]])
    expected = sum(by_hand(table, (56, *row)) for row in blocks)
    expected += (table.stem[1] + table.stem[2]) / 2 + (
        table.head[1] + table.head[2]
    ) / 2
    assert table.model_ms(56, blocks) == pytest.approx(expected, rel=1e-12)
    below = (
        sum(by_hand(table, (16, *row)) for row in blocks)
        + table.stem[0]
        + table.head[0]
    )
    assert table.model_ms(4, blocks) == pytest.approx(below, rel=1e-12)


def test_refuses_other_shapes() -> None:
    table = make_table()
    with pytest.raises(
        ValueError,
        match=r"covers qk from 8 to 64, the model has 65; measure .*latency-table",
    ):
        table.block_ms(np.array([[64, 4, 64, 8, 256], [64, 4, 65, 8, 256]]))
    table.check_covers(np.array([[64, 4, 64, 8, 256], [48, 1, 8, 8, 1]]), 65)
    with pytest.raises(
        ValueError, match=r"covers embed from 16 to 64, the model has 8;"
    ):
        table.check_covers(np.array([[16, 4, 64, 8, 256], [8, 4, 64, 8, 256]]))
    with pytest.raises(
        ValueError, match=r"covers mlp from 1 to 256, the model has 300;"
    ):
        table.check_covers(np.array([[16, 4, 64, 8, 300]]))
    with pytest.raises(
        ValueError, match=r"measured at 65 tokens .*the model has 197; measure"
    ):
        table.check_covers(np.array([[16, 4, 64, 8, 256]]), 197)
    replace(table, fingerprint=Fingerprint()).check_covers(
        np.array([[16, 4, 64, 8, 256]]), 197
    )


def nvit_json(table: LatencyTable) -> dict[str, Any]:
    """The layout that NViT publishes: nested keys, seconds."""
    e_axis, h_axis, qk_axis, v_axis, m_axis = (axis.tolist() for axis in table.axes)

    def seconds(*point: int) -> float:
        index = tuple(
            axis.tolist().index(x) for axis, x in zip(table.axes, point, strict=True)
        )
        return float(table.block[index]) / 1000

    return {
        f"EMB_{e}": {
            f"QK_{h}_{qk}": {
                f"V_{v}": {
                    f"MLP_{m}": seconds(e, h, qk, v, m) for m in reversed(m_axis)
                }
                for v in v_axis
            }
            for h in h_axis
            for qk in qk_axis
        }
        for e in e_axis
    }


def test_reads_nvits_json(tmp_path: Path) -> None:
    table = make_table(axes=((256, 768), (1, 12), (1, 64), (1, 64), (1, 128, 3072)))
    content = nvit_json(table)
    (tmp_path / "v100.json").write_text(json.dumps(content))
    read = LatencyTable.read(tmp_path / "v100.json")
    assert [axis.tolist() for axis in read.axes] == [
        axis.tolist() for axis in table.axes
    ]
    for e, h, qk, v, m in itertools.product(*(axis.tolist() for axis in table.axes)):
        published = content[f"EMB_{e}"][f"QK_{h}_{qk}"][f"V_{v}"][f"MLP_{m}"]
        assert read.block_ms(np.array([[e, h, qk, v, m]]))[0] == 1000 * published
    deit_base = np.array([[12, 64, 64, 3072]] * 12)
    one = 1000 * content["EMB_768"]["QK_12_64"]["V_64"]["MLP_3072"]
    assert read.model_ms(768, deit_base) == pytest.approx(12 * one, rel=1e-14)
    assert read.fingerprint == Fingerprint()


@pytest.mark.parametrize("damage", ["missing", "key", "value", "text"])
def test_damaged_json_is_refused(damage: str, tmp_path: Path) -> None:
    content = nvit_json(make_table())
    path = tmp_path / "table.json"
    match damage:
        case "missing":
            del content["EMB_48"]["QK_4_8"]
        case "key":
            content["EMB_48"]["QK_4"] = {}
        case "value":
            content["EMB_48"]["QK_4_8"]["V_8"]["MLP_1"] = -1.0
    path.write_text(json.dumps(content) if damage != "text" else "{")
    expected = {
        "missing": "no full grid",
        "key": "QK_4",
        "value": "positive",
        "text": "Expecting",
    }[damage]
    with pytest.raises(
        ValueError, match=rf"table.json: not a latency table .*{expected}"
    ):
        LatencyTable.read(path)


def test_parquet_round_trip(tmp_path: Path) -> None:
    mark = Fingerprint("a GPU", "555.1", "2.13", 64, "float16", True, [32, 64], 33, 0)
    table = replace(make_table(), fingerprint=mark)
    path = tmp_path / "new" / "table.parquet"
    table.write(path)
    read = LatencyTable.read(path)
    assert all(np.array_equal(a, b) for a, b in zip(read.axes, table.axes, strict=True))
    for name in ("block", "stem", "head"):
        assert np.array_equal(getattr(read, name), getattr(table, name)), name
    assert read.fingerprint == mark
    assert [p.name for p in path.parent.iterdir()] == ["table.parquet"]
    with pytest.raises(ValueError, match="is written as"):
        table.write(tmp_path / "table.json")


def test_other_parquet_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    with pytest.raises(ValueError, match="not a latency table"):
        LatencyTable.read(path)
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="not a latency table"):
        LatencyTable.read(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(ValueError, match="lacks the metadata"):
        LatencyTable.read(path)
    make_table().write(path)
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(ValueError, match="no full grid"):
        LatencyTable.read(path)


def test_warns_of_another_device(caplog: pytest.LogCaptureFixture) -> None:
    table = make_table()
    own = Fingerprint(
        device_name=latency_measure.device_name(CPU),
        num_threads=torch.get_num_threads(),
    )
    assert replace(table, fingerprint=own).warn_other_device(CPU) is None
    assert not caplog.records
    for mark, text in (
        (replace(own, device_name="Tesla V100"), "measured on Tesla V100;"),
        (replace(own, num_threads=77), "with 77 threads"),
        (Fingerprint(), "does not say"),
    ):
        caplog.clear()
        message = replace(table, fingerprint=mark).warn_other_device(CPU)
        assert message is not None
        assert text in message
        assert caplog.messages == [message]


def test_monotonicity(caplog: pytest.LogCaptureFixture) -> None:
    axes = tuple(np.array(axis) for axis in AXES)
    rising = sum(np.meshgrid(*axes, indexing="ij")).astype(float)
    table = replace(make_table(), block=rising)
    assert table.check_monotone() == []
    assert not caplog.records
    bumpy = rising.copy()
    bumpy[2, 0, 1, 0, 1] *= 0.25  # below its smaller neighbours in embed, qk and mlp
    bumpy[0, 0, 0, 0, 2] = bumpy[0, 0, 0, 0, 1] * 0.99  # noise
    with caplog.at_level(logging.WARNING):
        found = replace(table, block=bumpy).check_monotone()
    assert len(caplog.messages) == 1
    assert "3 places" in caplog.messages[0]
    assert [v.fall for v in found] == sorted((v.fall for v in found), reverse=True)
    by_name = {v.dimension: v for v in found}
    assert set(by_name) == {"embed", "qk", "mlp"}
    assert by_name["embed"].small == (48, 1, 24, 8, 128)
    assert by_name["embed"].large == (64, 1, 24, 8, 128)
    assert by_name["embed"].fall == pytest.approx(1 - 0.25 * 225 / 209)


def test_default_grid() -> None:
    deit = check_vit(
        make_arch("deit_base_distilled_patch16_224", num_classes=1000, image_size=224)
    )
    grid = default_grid(deit)
    assert grid["embed"] == [16, 272, 512, 768]
    assert grid["heads"] == [2, 6, 12] or grid["heads"] == [2, 8, 12]
    assert grid["qk"] == grid["v"] == [8, 40, 64] or grid["qk"] == grid["v"] == [
        8,
        32,
        64,
    ]
    assert len(grid["mlp"]) == 4
    assert (grid["mlp"][0], grid["mlp"][-1]) == (16, 3072)
    revit = default_grid(
        revit_arch(176, num_classes=10, img_size=224).dims,
        points={"mlp": 2},
        groups={"embed": 32},
    )
    assert revit["heads"][-1] == 10, "the largest block"
    assert revit["mlp"] == [16, 1056]
    assert revit["embed"][0] == 32
    assert default_grid({"embed": 8, "heads": [1], "qk": [8], "v": [8], "mlp": [9]})[
        "embed"
    ] == [8]
    for more in (
        {"points": {"width": 3}},
        {"groups": {"width": 3}},
        {"points": {"v": 1}},
        {"groups": {"v": 0}},
    ):
        with pytest.raises(
            ValueError, match=r"no dimension 'width'|v: at least 2 points"
        ):
            default_grid(deit, **more)  # type: ignore[arg-type]


TINY = Arch(
    "pruned_vit",
    "tiny",
    {
        "num_classes": 3,
        "img_size": 16,
        "patch_size": 8,
        "scale": 0.3,
        "distilled": True,
    },
    {"embed": 16, "heads": [1, 3], "qk": [4, 2], "v": [2, 6], "mlp": [5, 9]},
)
GRID = {"embed": [8, 16], "heads": [1, 3], "qk": [2, 4], "v": [2, 6], "mlp": [3, 9]}


def test_measures_each_point_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """With time replaced by what is asked to run, the table holds exactly the blocks' own numbers.

    The device is three times slower at every third visit, which changes nothing.
    """
    visits: list[Any] = []

    def fake(
        module: nn.Module, x: torch.Tensor, device: torch.device, pool: Any
    ) -> Any:
        module(x)  # it runs
        parts: Any = module
        if isinstance(module, PrunedBlock):
            attn, embed = parts.attn, parts.norm1.normalized_shape[0]
            assert x.shape == (5, 4 + 2, embed)
            assert not module.training
            key = (
                embed,
                attn.num_heads,
                attn.qk_dim,
                attn.v_dim,
                parts.mlp.fc1.out_features,
            )
            assert attn.scale == 0.3
            value = sum((i + 1) * 100.0**i * n for i, n in enumerate(key))
        else:
            key = ("stem" if x.ndim == 4 else "head", parts.vit.embed_dim)
            assert tuple(x.shape) == (
                (5, 3, 16, 16) if x.ndim == 4 else (5, 6, parts.vit.embed_dim)
            )
            value = parts.vit.embed_dim + (0.25 if x.ndim == 4 else 0.5)
        visits.append(key)
        samples = itertools.chain(
            [1e9], itertools.cycle([value * 0.9, value, value + 5])
        )  # the first is warm-up
        if len(visits) == 1:  # the block beside all others
            samples = itertools.cycle([value])
        return lambda: next(samples) * (3 if len(visits) % 3 == 0 else 1)

    monkeypatch.setattr(latency_measure, "replayed_pass", fake)
    monkeypatch.setattr(latency_measure, "_WARM_SECONDS", 0.0)
    counts: list[tuple[int, int]] = []
    table = measure_table(
        TINY,
        CPU,
        batch_size=5,
        grid=GRID,
        rounds=3,
        passes=3,
        on_point=lambda *count: counts.append(count),
    )
    for point in itertools.product(*GRID.values()):
        expected = sum((i + 1) * 100.0**i * n for i, n in enumerate(point))
        assert table.block_ms(np.array([point]))[0] == pytest.approx(
            expected, rel=1e-12
        )
    assert table.stem.tolist() == pytest.approx([8.25, 16.25])
    assert table.head.tolist() == pytest.approx([8.5, 16.5])
    total = 3 * (32 + 4)
    assert counts == [(i + 1, total) for i in range(total)]
    rounds = np.array_split(
        np.array([str(v) for v in visits[1:]]), 3
    )  # the first is the block beside all others
    assert not np.array_equal(rounds[0], rounds[1]), "another order each round"
    assert all(Counter(r.tolist()) == Counter(rounds[0].tolist()) for r in rounds)
    mark = table.fingerprint
    assert (mark.batch_size, mark.dtype, mark.image_size, mark.num_tokens) == (
        5,
        "float32",
        16,
        6,
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_measures(dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_measure, "_WARM_SECONDS", 0.01)
    before = torch.backends.cuda.matmul.allow_tf32
    table = measure_table(
        TINY,
        "cpu",
        batch_size=2,
        dtype=dtype,
        grid=GRID,
        rounds=1,
        passes=1,
        tf32=not before,
    )
    assert torch.backends.cuda.matmul.allow_tf32 == before
    assert table.block.shape == (2, 2, 2, 2, 2)
    assert (table.stem > 0).all()
    assert (table.head > 0).all()
    table.write(tmp_path / "t.parquet")
    assert LatencyTable.read(tmp_path / "t.parquet").warn_other_device(CPU) is None


def test_a_runtime_loads_each_point_once_from_few_exports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Blocks, stems and heads are exported once each, at sizes of their own; what is loaded has the
    sizes of the point.
    """
    onnx = pytest.importorskip("onnx")
    exports: list[nn.Module] = []
    loaded: list[int] = []

    class Fake(OnnxBased):
        name = "openvino"
        needs = ()

        def convert(self, *_: Any) -> Any:
            raise NotImplementedError

        def load(self, *_: Any) -> Any:
            raise NotImplementedError

        def load_onnx(self, file: Path, options: Any, device: str = "cpu") -> Any:
            assert options.precision == "bfloat16"
            graph = onnx.load(str(file)).graph
            loaded.append(graph.input[0].type.tensor_type.shape.dim[-1].dim_value)
            nothing = [n.op_type for n in graph.node] == ["Neg"]
            return SimpleNamespace(timed_pass=lambda _: lambda: 0.5 if nothing else 2.0)

    def count(module: nn.Module, *given: Any) -> None:
        exports.append(module)
        write_onnx(module, *given)

    monkeypatch.setattr(latency_measure, "_WARM_SECONDS", 0.0)
    monkeypatch.setattr(latency_measure, "runtime_of", lambda name: Fake())
    monkeypatch.setattr(exported_blocks, "write_onnx", count)
    table = measure_table(
        TINY,
        CPU,
        batch_size=2,
        dtype="bfloat16",
        grid=GRID,
        rounds=2,
        runtime="openvino",
    )
    assert len(exports) == 4
    # images are 16 px wide, and so the input of both stems
    assert Counter(loaded) == {8: 16 + 2, 16: 16 + 2 + 2}
    assert table.fingerprint.runtime == "openvino"
    assert (table.block == 1.5).all(), "without what a call takes that computes nothing"
    assert table.head.tolist() == [1.5, 1.5]
    assert table.stem.tolist() == [2.0, 2.0]


def test_only_runtimes_of_files_execute_integers() -> None:
    with pytest.raises(ValueError, match="torch does not execute integers"):
        measure_table(TINY, CPU, batch_size=2, grid=GRID, quantiser=lambda m, x: m)


@pytest.mark.parametrize("integers", [False, True])
def test_a_resized_block_is_the_block_of_that_size(
    tmp_path: Path, integers: bool
) -> None:
    """The same nodes, and weights of the same shapes."""
    onnx = pytest.importorskip("onnx")
    if integers:
        pytest.importorskip("nncf")
    tokens, dims = 6, (16, 3, 4, 2, 9)

    def build(job: Any) -> tuple[nn.Module, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        block = PrunedBlock(*job, scale=0.3).eval()
        for parameter in block.parameters():
            nn.init.normal_(parameter, generator=generator)
        return block, torch.randn(2, tokens, job[0], generator=generator)

    class Fake:
        onnx_precision = staticmethod(lambda options: "float32")
        rewrite = staticmethod(for_onnxruntime)

        def load_onnx(self, file: Path, options: Any) -> Any:
            return onnx.load(str(file)).graph

    quantiser = in_integers if integers else None
    blocks = ExportedBlocks(Fake(), RuntimeOptions(), build, {1, 2, tokens}, quantiser)  # type: ignore[arg-type]
    found: Any = blocks.session(dims)
    with torch.no_grad():
        module, inputs = build(dims)
        if integers:
            real, module = module, in_integers(module, inputs)
            error = (module(inputs) - real(inputs)).square().mean().sqrt()
            assert 0 < error < 0.05 * real(inputs).square().mean().sqrt()
        file = tmp_path / "block.onnx"
        write_onnx(module, inputs, file, {}, rewrite=for_onnxruntime)
    wanted = onnx.load(str(file)).graph
    assert [n.op_type for n in found.node] == [n.op_type for n in wanted.node]
    for one, other in zip(found.initializer, wanted.initializer, strict=True):
        assert (one.dims, one.data_type) == (other.dims, other.data_type)
        if one.data_type == onnx.TensorProto.INT64:
            assert one.raw_data == other.raw_data


def test_sizes_that_stand_for_themselves() -> None:
    found = unique_sizes(5, {1, 2, 5, 77})
    assert found == [7, 13, 17, 19, 23]
    products = [a * b for a in found for b in found]
    assert not {5, 77} & {*found, *products}


def test_measures_vits_only() -> None:
    with pytest.raises(ValueError, match="resnet18: it is a ResNet"):
        measure_table(
            make_arch("resnet18", num_classes=3, image_size=32), "cpu", batch_size=1
        )
