"""`int8` beside what its neighbours do alone: NNCF, onnxruntime's static quantisation, torchao.

    python benchmarks/int8_compare.py MODEL DATA.yaml [--images 128] [--test 2000] [--time]

MODEL is a folder that `ModelState.save` wrote (`sweeps export --format safetensors` too), DATA.yaml
the `data` part of its spec. All calibrate on the same training images; accuracy and AUROC (two
classes) are of the test set through each runtime. `--time` alternates passes of one image, one
thread; nothing else should run. What has been made stays in the folder `--cache`: a second call
with `--test 0 --time` only times it. NNCF compiles a C++ extension for its own simulation once.
"""

import argparse
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from compress.int8.stage import Int8
from compress.measure.latency import times_in_turns
from compress.measure.options import RuntimeOptions
from compress.runtimes.interface import Session
from compress.runtimes.onnx_file import write_onnx
from compress.runtimes.registry import runtime, session
from compress.stage import Context
from trainers.config import DataConfig
from trainers.data.splits import Data, eval_batches, load_data
from trainers.models.arch import ModelState

CPU = torch.device("cpu")


def options_of(name: str) -> RuntimeOptions:
    """One image a pass, one thread, float32 where not integers."""
    return RuntimeOptions(runtime=name, batch_size=1, threads=1)


def loaded(name: str, file: Path) -> Session:
    """A file in the runtime of this name."""
    return runtime(name).load(file, options_of(name))


def by_nncf(
    state: ModelState, calibration: list[Tensor], folder: Path
) -> dict[str, Session]:
    """`nncf.quantize` as it is, in OpenVINO."""
    file = folder / "nncf.xml"
    if not file.exists():
        _write_by_nncf(state, calibration, file)
    return {"nncf alone, OpenVINO": loaded("openvino", file)}


def _write_by_nncf(state: ModelState, calibration: list[Tensor], file: Path) -> None:
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    transformer = any(isinstance(m, nn.LayerNorm) for m in state.build().modules())
    model = nncf.quantize(
        state.build(),
        nncf.Dataset(calibration),
        subset_size=len(calibration),
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
    )
    converted = openvino.convert_model(model, example_input=calibration[0])
    converted.reshape(list(calibration[0].shape))  # else the kernels take any size
    openvino.save_model(converted, file, compress_to_fp16=False)


def by_onnxruntime(
    file: Path, calibration: list[Tensor], folder: Path
) -> dict[str, Session]:
    """onnxruntime's `quantize_static`: QDQ, weights per channel."""
    quantised = folder / "static.onnx"
    if not quantised.exists():
        _write_by_onnxruntime(file, calibration, quantised)
    return {
        "onnxruntime static alone, onnxruntime": loaded("onnxruntime", quantised),
        "onnxruntime static alone, OpenVINO": loaded("openvino", quantised),
    }


def _write_by_onnxruntime(
    file: Path, calibration: list[Tensor], quantised: Path
) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[Tensor] = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            images = next(self.left, None)
            return None if images is None else {"images": images.numpy()}

    prepared = quantised.with_name("prepared.onnx")
    quant_pre_process(str(file), str(prepared))
    quantize_static(
        str(prepared),
        str(quantised),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def by_torchao(
    state: ModelState, calibration: list[Tensor], folder: Path
) -> dict[str, Session]:
    """torchao's PT2E with its quantiser for x86, written as ONNX."""
    file = folder / "torchao.onnx"
    if not file.exists():
        _write_by_torchao(state, calibration, file)
    return {
        "torchao alone, onnxruntime": loaded("onnxruntime", file),
        "torchao alone, OpenVINO": loaded("openvino", file),
    }


def _write_by_torchao(state: ModelState, calibration: list[Tensor], file: Path) -> None:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    two = torch.cat([calibration[0], calibration[0]])
    shapes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(
        state.build(), (two,), dynamic_shapes=shapes
    ).module()
    quantiser = x86.X86InductorQuantizer()
    quantiser.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantiser)
    with torch.no_grad():
        for images in calibration:
            prepared(torch.cat([images, images]))
    write_onnx(convert_pt2e(prepared), two, file, {})


def ours(
    state: ModelState, data: Data, options: dict[str, Any], size: int, folder: Path
) -> dict[str, Session]:
    """The stage, as torch simulates it and in both runtimes."""
    if not (folder / "int8").exists():
        context = Context(data, CPU, 1, folder / "work", lambda *_: state)
        found = Int8.model_validate(options).run(state, context)
        print("int8 reports", context.reported, flush=True)
        found.save(folder / "int8")
    made = ModelState.load(folder / "int8")
    return {
        "int8, simulated": session(made, size, options_of("torch")),
        "int8, onnxruntime": session(made, size, options_of("onnxruntime")),
        "int8, OpenVINO": session(made, size, options_of("openvino")),
    }


def print_accuracy(runs: dict[str, Session], data: Data, count: int) -> None:
    """Accuracy (%), AUROC (%) and first choices that differ from eager float's."""
    batches: list[tuple[np.ndarray, np.ndarray]] = []
    for images, labels in eval_batches(data, "test", 50, CPU):
        batches.append((images.numpy(), labels.numpy()))
        if 50 * len(batches) >= count:
            break
    truth = np.concatenate([labels for _, labels in batches])
    first: np.ndarray | None = None
    for name, run in runs.items():
        logits = np.concatenate([run.run(images) for images, _ in batches])
        first = logits if first is None else first
        auroc = ""
        if logits.shape[1] == 2:
            auroc = f"{100 * roc_auc_score(truth, logits[:, 1] - logits[:, 0]):.2f}"
        accuracy = 100 * (logits.argmax(1) == truth).mean()
        changed = 100 * (logits.argmax(1) != first.argmax(1)).mean()
        print(f"{name:40} {accuracy:6.2f} {auroc:6} {changed:6.2f}", flush=True)


def print_times(runs: dict[str, Session], size: int) -> None:
    """Quartiles of the time of one image, ms; passes alternate."""
    image = np.random.default_rng(0).standard_normal((1, 3, size, size), np.float32)

    passes = [each.timed_pass(image) for each in runs.values()]
    times = times_in_turns(passes, warmup=5, rounds=200, max_seconds=60)
    for name, seen in zip(runs, times, strict=True):
        low, middle, high = np.percentile(seen, [25, 50, 75])
        print(f"{name:40} {middle:8.3f} ms ({low:.3f} to {high:.3f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=128, help="for calibration")
    parser.add_argument("--test", type=int, default=2000, help="test images")
    parser.add_argument("--options", default="{}", help="of int8, as YAML")
    parser.add_argument(
        "--beside", nargs="*", default=["nncf", "onnxruntime", "torchao"]
    )
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--no-simulation", action="store_true", help="which is slow")
    parser.add_argument("--cache", type=Path, default=Path("int8_compare"))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    given.cache.mkdir(parents=True, exist_ok=True)
    state = ModelState.load(given.model)
    config = DataConfig.model_validate(yaml.safe_load(given.data.read_text()))
    data = load_data(config, given.cache / "data")
    size = data.info.image_size
    calibration = [
        images
        for (images, _), _ in zip(
            eval_batches(data, "train", 1, CPU), range(given.images), strict=False
        )
    ]
    file = given.cache / "float.onnx"
    if not file.exists():
        write_onnx(state.build(), torch.cat(calibration[:2]), file, {})
    options = {"images": given.images, **yaml.safe_load(given.options)}
    runs = {
        "float, eager": session(state, size, options_of("torch")),
        "float, onnxruntime": loaded("onnxruntime", file),
        "float, OpenVINO": loaded("openvino", file),
        **ours(state, data, options, size, given.cache),
    }
    if "nncf" in given.beside:
        runs |= by_nncf(state, calibration, given.cache)
    if "onnxruntime" in given.beside:
        runs |= by_onnxruntime(file, calibration, given.cache)
    if "torchao" in given.beside:
        runs |= by_torchao(state, calibration, given.cache)
    if given.no_simulation:
        del runs["int8, simulated"]
    if given.test:
        print_accuracy(runs, data, given.test)
    if given.time:
        print_times({n: run for n, run in runs.items() if "simulated" not in n}, size)


if __name__ == "__main__":
    main()
