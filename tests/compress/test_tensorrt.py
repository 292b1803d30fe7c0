"""TensorRT as far as it can be tested without it: a stand-in of the library executes what is
asked of it by ONNX Runtime, on the CPU.
"""

import ctypes
import json
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from compress.measure.options import RuntimeOptions
from compress.runtimes import tensorrt as ours
from compress.runtimes.registry import runtime, session
from trainers.models.arch import Arch, ModelState

SMALL = Arch("resnet_cifar", "resnet20_cifar", {"num_classes": 7, "width": 4})
IMAGES = np.random.default_rng(0).normal(size=(5, 3, 16, 16)).astype(np.float32)
OPTIONS = RuntimeOptions(runtime="tensorrt", batch_size=2)
CLASSES = 7


def values(address: int, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 values at an address, to be read and written."""
    count = int(np.prod(shape))
    array = (ctypes.c_float * count).from_address(address)
    return np.ctypeslib.as_array(array).reshape(shape)


class Network:
    def get_input(self, index: int) -> Any:
        return SimpleNamespace(shape=(-1, 3, 16, 16))


class Parser:
    def __init__(self, network: Any, log: Any) -> None:
        self.network = network

    def parse_from_file(self, file: str) -> bool:
        self.network.content = Path(file).read_bytes()
        return True


class Builder:
    def __init__(self, log: Any) -> None:
        self.shapes: list[Any] = []

    def create_network(self, flags: int) -> Network:
        assert flags == 1 << 3, "strongly typed"
        return Network()

    def create_builder_config(self) -> Any:
        cleared: list[str] = []
        return SimpleNamespace(
            clear_flag=cleared.append, cleared=cleared, add_optimization_profile=id
        )

    def create_optimization_profile(self) -> Any:
        def set_shape(name: str, *shapes: Any) -> None:
            assert name == "images"
            self.shapes += shapes

        return SimpleNamespace(set_shape=set_shape)

    def build_serialized_network(self, network: Any, config: Any) -> bytes:
        assert config.cleared == ["TF32"]
        assert set(self.shapes) == {(2, 3, 16, 16)}
        return bytes(network.content)


class Context:
    def __init__(self, plan: bytes) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(plan)
        self.places: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape[0], CLASSES

    def set_tensor_address(self, name: str, address: int) -> None:
        self.places[name] = address

    def execute_async_v3(self, stream: int) -> None:
        images = values(self.places["images"], self.shape)
        found = self.session.run(None, {"images": images})[0]
        values(self.places["logits"], found.shape)[:] = found


class Engine:
    def __init__(self, plan: bytes) -> None:
        self.plan = plan

    def create_execution_context(self) -> Context:
        return Context(self.plan)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 3, 16, 16)

    def create_engine_inspector(self) -> Any:
        layers = [
            {"LayerType": "conv", "Outputs": [{"Format/Datatype": "Row major Half"}]},
            {"LayerType": "NoOp", "Outputs": []},
        ]
        text = json.dumps({"Layers": layers})
        return SimpleNamespace(get_engine_information=lambda form: text)


class Runtime:
    def __init__(self, log: Any) -> None:
        pass

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        return Engine(plan) if plan != b"of another GPU" else None


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("onnxruntime")

    def logger(level: int) -> None:
        return None

    logger.ERROR = 1  # type: ignore[attr-defined]
    stand_in: Any = module_from_spec(ModuleSpec("tensorrt", None))
    stand_in.Logger = logger
    stand_in.Builder = Builder
    stand_in.OnnxParser = Parser
    stand_in.Runtime = Runtime
    stand_in.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=3)
    stand_in.BuilderFlag = SimpleNamespace(TF32="TF32")
    stand_in.ProfilingVerbosity = SimpleNamespace(DETAILED=2)
    stand_in.LayerInformationFormat = SimpleNamespace(JSON=1)
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in)
    monkeypatch.setattr(ours.TensorRt, "devices", ("cpu", "cuda"))
    monkeypatch.setattr(ours, "_stream", lambda device: 0)
    return stand_in


def test_gives_the_modules_logits(
    library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = ModelState.initialised(SMALL, 0)
    loaded = session(state, 16, OPTIONS, tmp_path)
    with torch.no_grad():
        wanted = state.build()(torch.from_numpy(IMAGES)).numpy()
    assert np.abs(loaded.run(IMAGES) - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert loaded.precision == "float16", "what the engine says, not what was asked"
    assert loaded.kernels() == {"conv Half": 1}
    assert loaded.timed_pass(IMAGES[:2])() > 0
    (tmp_path / "model.plan").write_bytes(b"of another GPU")
    with pytest.raises(ValueError, match="no engine for this GPU and version"):
        runtime("tensorrt").load(tmp_path / "model.plan", OPTIONS, "cpu")


def test_a_model_that_cannot_be_parsed(library: Any, tmp_path: Path) -> None:
    error = SimpleNamespace(desc=lambda: "no importer for Einsum")

    class Refusing(Parser):
        def parse_from_file(self, file: str) -> bool:
            return False

        def get_error(self, index: int) -> Any:
            return error

    library.OnnxParser = Refusing
    with pytest.raises(ValueError, match=r"^runtime tensorrt: no importer for Einsum$"):
        runtime("tensorrt").convert(tmp_path / "m.onnx", tmp_path, OPTIONS, {})


def test_it_needs_a_gpu_and_its_library() -> None:
    chosen = runtime("tensorrt")
    if chosen.missing():
        with pytest.raises(ValueError, match=r"compression-sweeps\[tensorrt\]"):
            chosen.check(OPTIONS, "cuda")
    assert chosen.devices == ("cuda",)
