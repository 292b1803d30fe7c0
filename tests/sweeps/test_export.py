"""Exports: every format gives the model's logits in its own runtime, and says plainly when
it cannot.
"""

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from compress.cache import Artifact, StageCache
from compress.codec.file import decode
from compress.keys import content_key
from compress.measure.options import MeasureConfig, RuntimeOptions
from compress.runtimes.registry import runtime
from sweeps.cli.main import app
from sweeps.export import card, formats
from sweeps.export.formats import EXPORTERS, export, measured_options, write_model
from sweeps.export.preprocessing import FILE as SCRIPT_FILE
from sweeps.export.preprocessing import notes_of
from sweeps.run.record import TrialRecord
from tests.sweeps.helpers import plan
from trainers import plugins
from trainers.config import DataConfig
from trainers.data.augment import EvalTransform
from trainers.data.info import DataInfo
from trainers.data.splits import eval_batches, load_data
from trainers.files import default_data_cache
from trainers.models.arch import Arch, ModelState
from trainers.timm_internals import eval_transform

VIT_ARGS = {"num_classes": 7, "img_size": 16, "patch_size": 8}
ARCHS = {
    "timm": Arch(
        "timm",
        "vit_tiny_patch16_224",
        {**VIT_ARGS, "embed_dim": 24, "depth": 1, "num_heads": 3},
    ),
    "resnet20": Arch("resnet_cifar", "resnet20_cifar", {"num_classes": 7, "width": 4}),
    "pruned_vit": Arch(
        "pruned_vit",
        "vit_tiny_patch16_224",
        {**VIT_ARGS, "scale": 0.25},
        {"embed": 24, "heads": [3, 1], "qk": [8, 4], "v": [4, 8], "mlp": [20, 12]},
    ),
}


STAGE_ROW = {
    "index": 0,
    "name": "quantize",
    "stage": "kmeans_quant",
    "phase": "quantize",
    "key": "",
    "cached": False,
    "seconds": 1.0,
    "seconds_full": 1.0,
}


def write_run(folder: Path, state: ModelState, **changes: Any) -> Path:
    """A run folder with one complete trial whose model is `state`."""
    key = content_key("export", state.hash())
    StageCache(folder.parent / "_cache").publish(key, Artifact(state, 1.0))
    record = {
        "schema": 1,
        "trial_id": "00000",
        "number": 0,
        "replicate": 0,
        "seed": 3,
        "status": "complete",
        "attempts": 1,
        "config": {"quantize": "kmeans_quant"},
        "params": {
            "stages.quantize.clusters": 8,
            "stages.quantize.layers_source[3 onto 2 #0]": 0.75,
        },
        "error": None,
        "source": {
            "model": state.arch.name,
            "pretrained": False,
            "checkpoint": "teacher.safetensors",
        },
        "data": {
            "dataset": "digits",
            "val_fraction": 0.25,
            "image_size": 16,
            "mean": [0.1] * 3,
            "std": [0.3] * 3,
        },
        "pipeline": [
            {
                "name": "quantize",
                "stage": "kmeans_quant",
                "config": {"clusters": 8, "layers_source": [0, 0, 1]},
            }
        ],
        "stages": [
            STAGE_ROW | {"key": key},
        ],
        "metrics": {"accuracy": 0.75, "test_accuracy": 0.7, "note": "a | b\n<b>"},
        "inputs": {"data": "d" * 64},
        "started": "2026-03-04T09:00:00+00:00",
        "ended": "2026-03-04T09:01:00+00:00",
        "seconds": 60.0,
        "versions": {"torch": "2.13"},
        "device": {"type": "cpu", "name": "EPYC", "threads": 1},
        "world_size": 1,
        "code": {"commit": "c" * 40, "dirty": True},
    }
    home = folder / "trials" / "00000"
    home.mkdir(parents=True)
    (home / "record.json").write_text(json.dumps(record | changes))
    (folder / "run.json").write_text(
        json.dumps({"schema": 1, "command": "sweeps run small", "objectives": []})
    )
    return folder


def model(name: str) -> ModelState:
    """Weights and statistics that are nowhere zero or one, so that an export that drops any
    shows.
    """
    state = ModelState.initialised(ARCHS[name], 0)
    generator = torch.Generator().manual_seed(1)
    weights = {
        k: (
            v + 0.1 * torch.rand(v.shape, generator=generator)
            if v.is_floating_point() and v.ndim < 2
            else v
        )
        for k, v in state.weights.items()
    }
    return ModelState(state.arch, weights)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("exports")
    return {
        name: write_run(root / name / "runs" / "small", model(name)) for name in ARCHS
    }


def logits_of(folder: Path, name: str, images: Tensor) -> Tensor:
    """What the format's own runtime gives, loaded as the card says; nothing of `sweeps` is used."""
    with torch.no_grad():
        if name == "safetensors":
            return ModelState.load(folder).build()(images)
        if name == "packed":
            return decode(folder / "model.wfn").build()(images)
        if name == "torchscript":
            return torch.jit.load(str(folder / "model.pt"))(images)
        if name == "torch_export":
            return torch.export.load(folder / "model.pt2").module()(images)
    if name == "openvino":
        import openvino

        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.compile_model(folder / "model.xml", "CPU", settings)
        return torch.from_numpy(compiled(images.numpy())[0])
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return torch.from_numpy(
        session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    )


CASES = [
    (arch, name)
    for arch in ARCHS
    for name in EXPORTERS
    if name not in ("executorch", "tensorrt")  # tests/compress has theirs
]
SLOW = [
    ("timm", "onnx"),
    ("timm", "openvino"),
    ("pruned_vit", "openvino"),
    ("resnet20", "torch_export"),
]  # 5 s each; the others take the same ways


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] if case in SLOW else [])
        for case in CASES
    ],
)
def test_each_format_gives_the_models_logits(
    runs: dict[str, Path], tmp_path: Path, arch: str, name: str
) -> None:
    done = export(runs[arch], "00000", name, tmp_path / "out")
    assert EXPORTERS[name].file in [path.name for path in done.files]
    images = torch.from_numpy(
        np.random.default_rng(0).normal(size=(5, 3, 16, 16)).astype(np.float32)
    )
    with torch.no_grad():
        wanted = model(arch).build()(images)
    found = logits_of(done.folder, name, images)
    assert wanted.std() > 1e-3
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    if name in ("safetensors", "packed"):
        assert torch.equal(found, wanted)


def test_card_says_what_the_model_is(runs: dict[str, Path], tmp_path: Path) -> None:
    arguments = [
        "export",
        str(runs["timm"]),
        "00000",
        "-o",
        str(tmp_path / "m"),
        "--license",
        "CC-BY-4.0",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert {p.name for p in (tmp_path / "m").iterdir()} == {
        "README.md",
        "model.json",
        "model.safetensors",
    }
    text = (tmp_path / "m" / "README.md").read_text()
    assert "#0]" not in text, "Optuna's own names of a layer map"
    _, header, body = text.split("---\n", 2)
    front = yaml.safe_load(header)
    assert (front["license"], front["datasets"], front["tags"]) == (
        "cc-by-4.0",
        ["digits"],
        ["kmeans_quant"],
    )
    assert front["model-index"][0]["results"][1]["metrics"] == [
        {"type": "accuracy", "value": 0.7}
    ]
    for part in (
        *(
            "Deep Compression",
            "`teacher.safetensors`",
            "stages.quantize.clusters=8",
            "| `test_accuracy` | 0.7 | fraction |",
            "stages.quantize.layers_source=[0, 0, 1]",
        ),
        *(
            "sweeps run small",
            f"sweeps reproduce {runs['timm']} 00000",
            "d" * 64,
            f"`{'c' * 40} with changes`",
        ),
        *(
            "weights: `CC-BY-4.0` (as given at the export)",
            "code that made them: `Apache-2.0`",
            "(batch, 3, 16, 16)",
        ),
    ):
        assert part in body
    assert "`a \\| b <b>`" in body


def test_mistakes_leave_nothing_behind(runs: dict[str, Path], tmp_path: Path) -> None:
    run, out = runs["resnet20"], tmp_path / "out"
    full = tmp_path / "full"
    full.mkdir()
    (full / "a").touch()
    failed = write_run(tmp_path / "other" / "small", model("resnet20"), status="failed")
    hostile = write_run(
        tmp_path / "hostile" / "small",
        model("resnet20"),
        stages=[STAGE_ROW | {"key": "../../full"}],
    )
    nowhere = {"dataset": "folder", "root": str(tmp_path / "gone"), "image_size": None}
    unknown = write_run(tmp_path / "unknown" / "small", model("resnet20"), data=nowhere)
    for arguments, message in [
        ([str(run), "00009"], "no trial '00009'; its trials: 00000"),
        ([str(failed), "00000"], "trial 00000 is failed"),
        ([str(hostile), "00000"], "is no key of the stage cache"),
        (
            [str(run), "00000", "--format", "tflite"],
            "no export format 'tflite'; valid: safetensors, onnx, openvino",
        ),
        ([str(run), "00000", "-o", str(full)], "exists and is not an empty folder"),
        ([str(unknown), "00000"], "give --image-size"),
    ]:
        result = CliRunner().invoke(app, ["export", "-o", str(out), *arguments])
        assert result.exit_code == 2
        assert message in result.output.replace("\n", " ")
        assert not out.exists()
    assert [p.name for p in full.iterdir()] == ["a"]
    assert export(unknown, "00000", "safetensors", out, image_size=16).difference == 0


def test_missing_package_is_named(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        formats, "find_spec", lambda name: None if name == "onnxruntime" else name
    )
    with pytest.raises(
        ValueError,
        match=r"onnx needs onnxruntime; pip install 'compression-sweeps\[export\]'",
    ):
        export(runs["timm"], "00000", "onnx", tmp_path / "out")


PLUGIN = """
from sweeps.export.formats import EXPORTERS as OURS, Format

plain = OURS["safetensors"]
EXPORTERS = {"plain": Format(plain.file, plain.write, plain.run, "unzip", library="zip")}
"""


def test_a_format_of_a_plugin(runs: dict[str, Path], tmp_path: Path) -> None:
    """It is written, loaded again and described like ours, and only if the user gives it."""
    file, out = tmp_path / "plain.py", tmp_path / "out"
    file.write_text(PLUGIN)
    arguments = [
        "export",
        str(runs["timm"]),
        "00000",
        "--format",
        "plain",
        "-o",
        str(out),
    ]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert "there is no export format 'plain'; valid: safetensors" in refused.output
    try:
        done = CliRunner().invoke(app, [*arguments, "--plugin", str(file)])
    finally:
        plugins.forget()
    assert done.exit_code == 0, done.output
    assert "library_name: zip" in (out / "README.md").read_text()
    assert (out / "model.safetensors").exists()


def test_an_export_that_computes_otherwise_is_refused(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = EXPORTERS["safetensors"]
    wrong = type(form)(
        form.file,
        form.write,
        lambda folder, images: form.run(folder, images) + 0.01,
        form.usage,
    )
    monkeypatch.setitem(EXPORTERS, "safetensors", wrong)
    with pytest.raises(ValueError, match=r"differs from the model by 0\.01"):
        export(runs["timm"], "00000", "safetensors", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


ALONE = [
    "-c",
    """
import runpy, sys
ours = ["sweeps", "compress", "trainers", "analysis"]
for name in [*ours, "torch", "torchvision", "timm", "onnx", "pandas", "scipy"]:
    sys.modules[name] = None
runpy.run_path("product/predict.py")
""",
]
"""Runs the script where there is nothing but the runtime, NumPy and Pillow."""


@pytest.mark.parametrize("name", ["onnx", "openvino", "executorch"])
def test_script_predicts_as_the_product(tmp_path: Path, name: str) -> None:
    """Square pictures, and upright and wide ones that are larger."""
    if any(find_spec(module) is None for module in EXPORTERS[name].needs):
        pytest.skip(f"{name} is not installed")
    data = DataConfig(dataset="digits", image_size=48, crop_fraction=0.875)
    generator = np.random.default_rng(0)
    transform = eval_transform(data, 48)
    normalise = EvalTransform(data, 48, torch.device("cpu")).normalise
    ready = []
    for index, shape in enumerate([(54, 54), (90, 61), (70, 120), (60, 60)]):
        pixels = generator.integers(0, 256, (index + 2, index + 3, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize(shape, Image.Resampling.BILINEAR)
        image.save(tmp_path / f"{index}.png")
        ready.append(torch.as_tensor(np.asarray(transform(image))))
    state = model("resnet20")
    with torch.no_grad():
        logits = state.build()(normalise(torch.stack(ready)))
    bias = [key for key in state.weights if key.endswith("bias")][-1]
    state.weights[bias] -= logits.mean(0)  # or one class would win everywhere
    chosen = (logits - logits.mean(0)).argmax(1).tolist()
    assert len(set(chosen)) > 1
    notes = notes_of(data, 48, DataInfo(7, 48, 1, tuple("abcdefg")))
    product = tmp_path / "product"
    product.mkdir()
    write_model(state, name, product, image_size=48, notes=notes)
    wanted = [f"{index}.png {'abcdefg'[best]}" for index, best in enumerate(chosen)]
    files = ["0.png", "1.png", "missing.png", "2.png", "3.png"]
    script = [f"product/{SCRIPT_FILE}"]
    done = subprocess.run(
        # ExecuTorch's own Python interface takes tensors of torch
        [sys.executable, *(script if name == "executorch" else ALONE), *files],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.stdout.splitlines() == wanted, done.stderr
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("missing.png: not read: ")
    assert "Traceback" not in done.stderr


def test_the_file_has_the_precision_that_was_measured(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    half = RuntimeOptions(runtime="onnxruntime", precision="float16", batch_size=4)
    measured = MeasureConfig(runtime="torch", also={"ort": half})
    options = measured_options(EXPORTERS["onnx"], measured)
    assert options == half
    unmeasured = measured_options(EXPORTERS["openvino"], measured)
    assert unmeasured == RuntimeOptions(runtime="openvino", batch_size=1)
    assert measured_options(EXPORTERS["packed"], measured) is None
    state = model("resnet20")
    difference = write_model(state, "onnx", tmp_path, image_size=16, options=options)
    assert 1e-4 < difference < 0.1
    graph = onnx.load(str(tmp_path / "model.onnx")).graph
    kinds = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) > 1}
    assert kinds == {onnx.TensorProto.FLOAT16}


def test_verified_file_and_its_card(runs: dict[str, Path], tmp_path: Path) -> None:
    if runtime("onnxruntime").missing():
        pytest.skip("onnxruntime is not installed")
    arguments = ["export", str(runs["resnet20"]), "00000", "-o", str(tmp_path / "m")]
    done = CliRunner().invoke(app, [*arguments, "--format", "onnx", "--verify"])
    assert done.exit_code == 0, done.output
    config = DataConfig(
        dataset="digits",
        val_fraction=0.25,
        image_size=16,
        mean=(0.1,) * 3,
        std=(0.3,) * 3,
    )
    data = load_data(config, default_data_cache())
    module, right = model("resnet20").build(), 0
    with torch.no_grad():
        for images, labels in eval_batches(data, "val", 64, torch.device("cpu")):
            right += int((module(images).argmax(1) == labels).sum())
    said = f"accuracy {right / data.size('val'):.4f}"
    assert f"validation part through the file: {said}" in done.output
    text = (tmp_path / "m" / "README.md").read_text()
    assert f"- {said} of the validation part, of this very file" in text
    assert "- the trial was not measured in ONNX Runtime" in text
    arguments[-1] = str(tmp_path / "other")
    refused = CliRunner().invoke(app, [*arguments, "--format", "packed", "--verify"])
    assert refused.exit_code == 2
    assert "--verify: no runtime executes packed" in refused.output


def test_card_says_what_was_measured_in_the_runtime(tmp_path: Path) -> None:
    options = RuntimeOptions(runtime="openvino", batch_size=2, threads=1)
    also = {"ov": options.model_dump()}
    record = TrialRecord.begin(tmp_path, plan(measure={"also": also}))
    metrics = {
        "ov_latency_ms": 1.2345,
        "ov_latency_p25_ms": 1.2,
        "ov_latency_p75_ms": 1.3,
        "ov_latency_ratio": 0.5,
        "ov_runtime_accuracy": 0.875,
        "ov_latency_dtype": "int8",
    }
    lines = card._in_runtime(record, options, metrics)
    assert lines[0] == "in OpenVINO, which computes in `int8`:"
    assert lines[1].startswith(
        "latency 1.234 ms (quartiles 1.2 to 1.3) for a batch of 2, 1 thread of `"
    )
    assert lines[1].endswith("; 0.5 of the source model's")
    assert lines[2].startswith("accuracy 0.8750 of the validation part")


def test_push_goes_through_the_hubs_library(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    calls: list[Any] = []

    class Hub:
        def create_repo(self, name: str, **options: Any) -> None:
            calls.append((name, options))

        def upload_folder(self, repo_id: str, folder_path: Path) -> Any:
            calls.append((repo_id, sorted(p.name for p in folder_path.iterdir())))
            return SimpleNamespace(commit_url="https://hub/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    arguments = ["export", str(runs["resnet20"]), "00000", "-o", str(tmp_path / "m")]
    done = CliRunner().invoke(app, [*arguments, "--push", "hf://me/small"])
    assert "uploaded: https://hub/commit/1" in done.output
    assert calls[0] == ("me/small", {"exist_ok": True, "private": True})
    assert calls[1][1] == ["README.md", "model.json", "model.safetensors"]
    refused = CliRunner().invoke(app, [*arguments, "--push", "me/small"])
    assert refused.exit_code == 2
    assert "is not of the form hf://OWNER/NAME" in refused.output


def test_a_format_that_cannot_hold_a_model_says_why_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*given: Any) -> None:
        try:
            raise AssertionError("only 4 axes are supported!\nand a second line")
        except AssertionError as error:
            raise RuntimeError("\x1b[96mThis is step 3/3\x1b[0m. Next steps") from error

    monkeypatch.setitem(EXPORTERS, "onnx", replace(EXPORTERS["onnx"], write=write))
    with pytest.raises(ValueError, match="cannot be exported") as caught:
        write_model(model("resnet20"), "onnx", tmp_path, image_size=16, title="it")
    assert str(caught.value) == (
        "it cannot be exported as model.onnx: only 4 axes are supported; try another"
        " format"
    )
