"""Runtimes: each gives the module's logits, says what it really computes in, and refuses what it
cannot do.
"""

import ctypes
import gc
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from compress.measure.options import RuntimeOptions
from compress.runtimes import interface, onnx_file
from compress.runtimes.interface import type_of
from compress.runtimes.onnx_file import SpelledAttention
from compress.runtimes.registry import RUNTIMES, runtime, session
from compress.runtimes.torch_onnx_internals import operators_read_once
from trainers.models.arch import Arch, ModelState

SMALL = Arch("resnet_cifar", "resnet20_cifar", {"num_classes": 7, "width": 4})
IMAGES = np.random.default_rng(0).normal(size=(5, 3, 16, 16)).astype(np.float32)


class SignalStack(ctypes.Structure):
    """`stack_t` of sigaltstack(2)."""

    _fields_ = (
        ("start", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("size", ctypes.c_size_t),
    )


@pytest.fixture(scope="module")
def state() -> ModelState:
    return ModelState.initialised(SMALL, 0)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "executorch"])
def test_a_damaged_file_is_refused(
    name: str, state: ModelState, tmp_path: Path
) -> None:
    if runtime(name).missing():
        pytest.skip(f"{name} is not installed")
    options = RuntimeOptions(runtime=name, batch_size=2, threads=1)
    file = runtime(name).write(state, tmp_path, 16, options)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=f"^runtime {name}: "):
        runtime(name).load(file, options)


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_gives_the_modules_logits(name: str, state: ModelState, tmp_path: Path) -> None:
    """Five images pass in batches of two."""
    if runtime(name).missing():
        pytest.skip(f"{name} is not installed")
    options = RuntimeOptions(runtime=name, batch_size=2, threads=1)
    loaded = session(state, 16, options, tmp_path / "new")
    with torch.no_grad():
        wanted = state.build()(torch.from_numpy(IMAGES)).numpy()
    assert np.abs(loaded.run(IMAGES) - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert loaded.precision == "float32"
    assert loaded.timed_pass(IMAGES[:2])() > 0
    assert (tmp_path / "new" / runtime(name).file).exists()
    assert bool(loaded.kernels()) == (name != "torch")


def test_a_models_file_is_the_same_every_time(
    state: ModelState, tmp_path: Path
) -> None:
    """Its size is a metric that is reproduced to the byte."""
    pytest.importorskip("openvino")
    options = RuntimeOptions(runtime="openvino", batch_size=2)
    written = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        file = runtime("openvino").write(state, tmp_path / name, 32, options)
        written.append([each.read_bytes() for each in sorted(file.parent.iterdir())])
    assert written[0] == written[1]


def test_an_onnx_file_says_nothing_of_the_machine_that_wrote_it(
    state: ModelState, tmp_path: Path
) -> None:
    """The exporter notes source files and lines at each node; it must be there to be taken out."""
    onnx = pytest.importorskip("onnx")
    options = RuntimeOptions(runtime="onnxruntime", batch_size=2)
    file = runtime("onnxruntime").write(state, tmp_path, 32, options)
    content = file.read_bytes()
    for trace in (b"stack_trace", b".py", b"site-packages"):
        assert trace not in content
    graph = onnx.load(str(file)).graph
    values = [*graph.node, *graph.value_info, *graph.input, *graph.initializer]
    assert len(values) > 10
    assert not any(len(value.metadata_props) for value in values)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sessions_leave_a_stack_for_signals(state: ModelState) -> None:
    """Python's handlers run on it: without, a Ctrl-C after two sessions was the process' end."""
    pytest.importorskip("openvino")
    options = RuntimeOptions(runtime="openvino", batch_size=1, threads=1)
    sessions = [session(state, 32, options) for _ in range(2)]
    while sessions:
        del sessions[0]
    gc.collect()
    found = SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0] for line in lines]
    mapped = [tuple(int(end, 16) for end in span.split("-")) for span in spans]
    is_there = any(start <= (found.start or 0) < end for start, end in mapped)
    assert is_there or found.start is None


def test_exports_share_the_table_of_operators() -> None:
    """And what one of them adds to it stays its own."""
    pytest.importorskip("onnxscript")
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    own = ONNXRegistry.from_torchlib(opset_version=18)
    with operators_read_once():
        first = ONNXRegistry.from_torchlib(opset_version=18)
        first.register_op(torch.ops.aten.relu.default, lambda x: x)
        second = ONNXRegistry.from_torchlib(opset_version=18)
    assert len(first.functions["aten::relu"]) == len(own.functions["aten::relu"]) + 1
    assert {k: len(v) for k, v in second.functions.items()} == {
        k: len(v) for k, v in own.functions.items()
    }
    shared = [v[-1] is first.functions[k][-1] for k, v in second.functions.items()]
    assert all(shared), "read once"
    assert not all(v[-1] is own.functions[k][-1] for k, v in second.functions.items())


def test_an_operator_that_comes_later_is_exported() -> None:
    """torch leaves what does not exist yet out of its table, and a table is kept for all exports:
    torchao brings its operators when it converts, after other models were exported.
    """
    pytest.importorskip("onnxscript")
    from torch.onnx._internal.exporter import _registration

    def table() -> Any:
        with operators_read_once():
            return _registration.ONNXRegistry.from_torchlib(opset_version=18)

    before = table()
    assert table().functions["aten::relu"] == before.functions["aten::relu"]
    library = torch.library.Library("tests_of_runtimes", "DEF")
    library.define("comes_later(Tensor x) -> Tensor")
    after = table().functions["aten::relu"]
    assert after[-1] is not before.functions["aten::relu"][-1], "read again"


def test_refuses_before_anything_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interface, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError,
        match=r"^runtime openvino needs openvino, onnx, onnxscript; pip install"
        r" 'compression-sweeps\[deploy\]'$",
    ):
        runtime("openvino").check(RuntimeOptions())
    monkeypatch.setattr(interface, "find_spec", lambda name: object())
    with pytest.raises(
        ValueError, match="does not compute in bfloat16; valid: float32"
    ):
        runtime("onnxruntime").check(RuntimeOptions(precision="bfloat16"))
    with pytest.raises(ValueError, match="openvino does not run on cuda"):
        runtime("openvino").check(RuntimeOptions(), "cuda")
    for name in RUNTIMES:
        assert runtime(name).name == name


def test_executorch_takes_batches_of_one_size(
    state: ModelState, tmp_path: Path
) -> None:
    if runtime("executorch").missing():
        pytest.skip("executorch is not installed")
    options = RuntimeOptions(runtime="executorch", batch_size=2, threads=1)
    loaded = session(state, 16, options, tmp_path)
    with torch.no_grad():
        wanted = state.build()(torch.from_numpy(IMAGES)).numpy()
    assert np.abs(loaded.run(IMAGES) - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert loaded.timed_pass(IMAGES[:2])() > 0
    more = options.model_copy(update={"batch_size": 3})
    with pytest.raises(ValueError, match="for batches of 2, not of 3"):
        runtime("executorch").load(tmp_path / "model.pte", more)


def test_executorch_refuses_integers() -> None:
    arch = Arch("int8", "resnet20_cifar", {"num_classes": 7}, {"inner": {}})
    with pytest.raises(
        ValueError, match="int8 are not offered, they would be computed"
    ):
        runtime("executorch").check_model(arch)
    runtime("openvino").check_model(arch)


def test_integers_count_before_floats() -> None:
    names = {"f32": "float32", "i8": "int8"}
    assert type_of({"Convolution f32": 3, "Add ?": 1}, names, "x") == "float32"
    assert type_of({"Convolution f32": 3, "MatMul i8": 1}, names, "x") == "int8"
    assert type_of({}, names, "float16") == "float16"


def test_attention_over_windows_is_spelled_out() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 2, 5, 8, generator=generator)
    seen: list[Any] = []

    class Seen(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    attention = torch.nn.functional.scaled_dot_product_attention
    with Seen(), SpelledAttention():
        found = attention(query, key, value, scale=0.5)
        attention(query[:, 0], key[:, 0], value[:, 0])
    torch.testing.assert_close(found, attention(query, key, value, scale=0.5))
    assert seen.count(attention) == 1


def test_no_activation_works_in_place_while_a_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And all do afterwards, a file or none; a module of others' is left alone."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")

    class Others(nn.Module):
        inplace = True

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mul(2.0)

    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(inplace=True), Others()).eval()
    seen: list[list[bool]] = []
    export = torch.onnx.export

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append([module[1].inplace, module[2].inplace])
        return export(*args, **kwargs)

    monkeypatch.setattr(torch.onnx, "export", watched)
    images, file = torch.randn(2, 3, 8, 8), tmp_path / "m.onnx"
    onnx_file.write_onnx(module, images, file, {})
    assert seen == [[False, True]]
    assert module[1].inplace
    assert [n.op_type for n in onnx.load(file).graph.node] == ["Conv", "Clip", "Mul"]

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(ValueError, match="no such operator"):
        onnx_file.write_onnx(module, images, file, {})
    assert module[1].inplace
