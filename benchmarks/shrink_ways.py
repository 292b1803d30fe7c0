"""The ways of `benchmarks/shrink.py`: each makes a file that OpenVINO executes out of one goal."""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from int8_compare import loaded
from prune_channels import whole_layers
from shrink_table import Row, wanted
from torch import Tensor, nn

from compress.finetune import Finetune
from compress.int8.stage import Int8
from compress.measure.latency import times_in_turns
from compress.measure.options import RuntimeName, RuntimeOptions
from compress.runtimes.interface import Session
from compress.runtimes.registry import runtime
from compress.stage import Context
from sweeps.shrink.look import Look, data_section, look, source_section
from sweeps.shrink.methods import training_config
from sweeps.shrink.request import Goal, max_loss
from trainers.config import DataConfig
from trainers.data.splits import Data, Split, TrainBatches, eval_batches, load_data
from trainers.files import default_data_cache
from trainers.models.arch import ModelState

CPU = torch.device("cpu")
CALIBRATION_IMAGES = 128
PRUNING_STEPS = 105
MOST_PRUNED = 0.9975
PRUNING_ROUNDS = 50
_UNLIMITED = 10**9
"""Images of a training that ends by the clock."""
_WARMUP = 0.1
"""Of a tuning's time, as in `sweeps shrink`."""
_SPARE = 0.98
"""Of the limit, for the scatter of timings."""


@dataclass(frozen=True)
class Costs:
    """Of a file and of the source's: `ms` of one image on one thread, and bytes."""

    ms: float
    source_ms: float
    bytes: int
    source_bytes: int


@dataclass(frozen=True)
class Executed:
    """A file, and what executes it."""

    path: Path
    session: Session

    @property
    def bytes(self) -> int:
        """With OpenVINO's second file, where there is one."""
        parts = [self.path, *self.path.parent.glob(f"{self.path.stem}.bin")]
        return sum(part.stat().st_size for part in parts)


@dataclass(frozen=True)
class Task:
    """One goal of a pair, with one seed.

    Attributes:
        folder: a model of ours.
        data_file: the section `data` of a spec.
        goals: quantity → limit, as options of `sweeps shrink`.
        loss: what may be lost, as --max-loss.
        seconds: for a way that uses all of its time.
        olive_python: of an environment where Olive is installed.
    """

    folder: Path
    data_file: Path
    goals: dict[str, str]
    seed: int
    loss: str
    seconds: float
    olive_python: Path | None = None

    @cached_property
    def training(self) -> Finetune:
        """How `sweeps shrink` would train this model on these data."""
        return Finetune.model_validate(training_config(self._seen, _UNLIMITED))

    @cached_property
    def _seen(self) -> Look:
        source = source_section(str(self.folder), None)
        return look(source, data_section(str(self.data_file)))

    @cached_property
    def config(self) -> DataConfig:
        """With the preprocessing that `sweeps shrink` gives the model, too."""
        return DataConfig.model_validate(self._seen.data)

    @cached_property
    def data(self) -> Data:
        return load_data(self.config, default_data_cache())

    @cached_property
    def state(self) -> ModelState:
        return ModelState.load(self.folder)

    @property
    def size(self) -> int:
        return self.data.info.image_size

    @property
    def wanted(self) -> list[Goal]:
        return wanted(self.goals)

    def overrun(self, costs: Costs | Row) -> float:
        """The largest of the costs over its limit: at most 1 where all goals are kept."""
        found = []
        for wish in self.wanted:
            cost, whole = costs.bytes, costs.source_bytes
            if wish.quantity == "latency":
                cost, whole = costs.ms, costs.source_ms
            limit = wish.bound if wish.times is None else wish.times * whole
            found.append(cost / limit if limit else 0.0)
        return max(found)

    @property
    def allowed(self) -> float:
        """Points of accuracy that may be lost, as a share."""
        return float(max_loss(self.loss, "fraction")["loss"])

    def context(self, folder: Path) -> Context:
        return Context(self.data, CPU, self.seed, folder, lambda name, file: self.state)

    def calibration(self) -> list[Tensor]:
        with tempfile.TemporaryDirectory() as folder:
            batches = self.context(Path(folder)).images(CALIBRATION_IMAGES)
            return [image for batch in batches for image in batch.split(1)]

    def batches(self, split: Split) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for images, labels in eval_batches(self.data, split, 64, CPU):
            yield images.numpy(), labels.numpy()


def by_shrink(task: Task, folder: Path) -> Path:
    """The command as a user gives it."""
    words = [sys.executable, "-m", "sweeps", "shrink", str(task.folder)]
    words += ["--data", str(task.data_file)]
    for name, value in task.goals.items():
        words += [f"--{name}", value]
    words += ["--max-loss", task.loss, "--hours", str(task.seconds / 3600)]
    words += ["--runtime", "openvino", "--seed", str(task.seed), "-o", str(folder)]
    done = subprocess.run(words, check=False)
    file = folder / "model" / "model.xml"
    if done.returncode not in (0, 1) or not file.is_file():
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}")
    return file


def by_int8(task: Task, folder: Path) -> Path:
    """The stage alone, with its defaults."""
    stage = Int8(images=CALIBRATION_IMAGES)
    return written(stage.run(task.state, task.context(folder / "int8")), task, folder)


def by_nncf(task: Task, folder: Path) -> Path:
    """NNCF's quantisation with accuracy control: layers go back to float until it is kept."""
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    model = openvino.Core().read_model(written(task.state, task, folder / "float"))
    validation = list(task.batches("val"))
    is_transformer = any(
        isinstance(m, nn.LayerNorm) for m in task.state.build().modules()
    )

    def accuracy(compiled: Any, batches: Any) -> float:
        rights = [compiled(x)[0].argmax(1) == y for x, y in batches]
        return float(np.concatenate(rights).mean())

    found = nncf.quantize_with_accuracy_control(
        model,
        nncf.Dataset([one.numpy() for one in task.calibration()]),
        nncf.Dataset(validation),
        validation_fn=accuracy,
        max_drop=task.allowed,
        subset_size=CALIBRATION_IMAGES,
        model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
    )
    return saved(found, task, folder)


def by_olive(task: Task, folder: Path) -> Path:
    """Olive's static quantisation of the ONNX file, as it is; OpenVINO executes the result."""
    if task.olive_python is None:
        raise SystemExit("olive: give --olive-python, the Python where it is installed")
    floats = written(task.state, task, folder / "float", "onnxruntime")
    images = folder / "calibration.npy"
    np.save(images, np.concatenate([one.numpy() for one in task.calibration()]))
    config = folder / "olive.json"
    config.write_text(json.dumps(olive_config(floats, images, folder), indent=1))
    words = [str(task.olive_python), "-m", "olive", "run", "--config", str(config)]
    quiet = os.environ | {"OLIVE_DISABLE_TELEMETRY": "1"}
    subprocess.run(words, check=True, cwd=folder, env=quiet)
    (found,) = (folder / "olive").rglob("*.onnx")
    return found


def olive_config(floats: Path, images: Path, folder: Path) -> dict[str, Any]:
    """A workflow of one pass, whose options are Olive's defaults."""
    calibration = {
        "name": "calibration",
        "user_script": str(Path(__file__).absolute().with_name("shrink_olive.py")),
        "load_dataset_config": {
            "type": "calibration_images",
            "params": {"file": str(images.absolute())},
        },
        "dataloader_config": {"params": {"batch_size": 1}},
    }
    quantisation = {"type": "OnnxStaticQuantization", "data_config": "calibration"}
    return {
        "input_model": {"type": "ONNXModel", "model_path": str(floats.absolute())},
        "data_configs": [calibration],
        "passes": {"quantisation": quantisation},
        "output_dir": str((folder / "olive").absolute()),
        "cache_dir": str((folder / "olive-cache").absolute()),
    }


def by_torch_pruning(task: Task, folder: Path) -> Path:
    """Pruned to the goal's cost, then tuned for the rest of the time, in float."""
    begun = time.monotonic()
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)  # `shrink` uses all cores, too
    try:
        module = pruned(task, folder)
        tune(module, task, task.seconds - (time.monotonic() - begun))
    finally:
        torch.set_num_threads(threads)
    return written_module(module, task, folder)


def pruned(task: Task, folder: Path) -> nn.Module:
    """By torch-pruning's group Taylor, until the file keeps the goal's limits.

    The next file is measured where the limit would be reached if the cost were proportional to
    the operations (to the parameters, where bytes are the goal); most cost more than that.
    """
    import torch_pruning

    module, example = task.state.build(), torch.zeros(1, 3, task.size, task.size)
    for images, labels in task.context(folder / "grads").batches(4, 128):
        nn.functional.cross_entropy(module(images), labels).backward()
    attentions: list[Any] = [m for m in module.modules() if hasattr(m, "qkv")]
    # operations, or parameters where bytes are the goal
    counted = int(task.wanted[0].quantity == "bytes")

    def left() -> float:
        return float(torch_pruning.utils.count_ops_and_params(module, example)[counted])

    source = executed(written(task.state, task, folder / "source"))
    pruner = pruner_of(module, example, attentions, task)
    look_at = left()
    for _ in range(PRUNING_STEPS):
        pruner.step()
        for m in attentions:  # as its own example for timm's ViTs
            m.num_heads = pruner.num_heads[m.qkv]
            m.attn_dim = m.qkv.out_features // 3
            m.head_dim = m.attn_dim // m.num_heads
        if left() > look_at:
            continue
        file = executed(written_module(module, task, folder / "pruned"))
        costs = costs_of(file, source, example.numpy(), PRUNING_ROUNDS)
        overrun = task.overrun(costs) / _SPARE
        if overrun <= 1:
            break
        look_at = left() / overrun
    return module


def pruner_of(
    module: nn.Module, example: Tensor, attentions: list[Any], task: Task
) -> Any:
    """Torch-pruning's, of a module with gradients; it leaves the head and `whole_layers`."""
    import torch_pruning

    classes = task.data.info.num_classes
    heads = [
        layer
        for layer in module.modules()
        if isinstance(layer, nn.Linear) and layer.out_features == classes
    ]
    return torch_pruning.pruner.MetaPruner(
        module,
        example,
        importance=torch_pruning.importance.GroupTaylorImportance(),
        pruning_ratio=MOST_PRUNED,
        iterative_steps=PRUNING_STEPS,
        global_pruning=True,
        ignored_layers=[*heads, *whole_layers(task.state, module)],
        num_heads={m.qkv: m.num_heads for m in attentions},
    )


def tune(module: nn.Module, task: Task, seconds: float) -> None:
    """Train a module towards labels and the source for so long, warm-up and cosine by the clock.

    Batches, augmentation, learning rate and memory format are those of `sweeps shrink`.
    """
    teacher, options = task.state.build().eval(), task.training
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    for each in (module, teacher):
        each.to(memory_format=layout)
    batches = TrainBatches(
        task.data,
        options.augment,
        batch_size=options.batch_size,
        seed=task.seed,
        device=CPU,
    )
    optimiser = torch.optim.AdamW(module.parameters(), lr=options.lr)
    begun, epoch = time.monotonic(), 0
    while True:
        for images, labels in batches.epoch(epoch):
            gone = (time.monotonic() - begun) / max(seconds, 1e-9)
            if gone >= 1:
                module.eval().to(memory_format=torch.contiguous_format)
                return
            for group in optimiser.param_groups:
                falling = (1 + np.cos(np.pi * gone)) / 2
                group["lr"] = options.lr * min(1.0, gone / _WARMUP) * falling
            seen = images.to(memory_format=layout)
            distil(module.train(), teacher, seen, labels).backward()
            optimiser.step()
            optimiser.zero_grad()
        epoch += 1


def distil(
    module: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor
) -> Tensor:
    """Half cross-entropy, half the teacher's soft labels at temperature 2."""
    with torch.no_grad():
        soft = (teacher(images) / 2).softmax(1)
    logits = module(images)
    loss = nn.functional.cross_entropy(logits, labels)
    divergence = nn.functional.cross_entropy(logits / 2, soft)
    return 0.5 * loss + 0.5 * 4 * divergence


def written(
    state: ModelState, task: Task, folder: Path, name: RuntimeName = "openvino"
) -> Path:
    """A model's file as a runtime has it."""
    folder.mkdir(parents=True, exist_ok=True)
    options = RuntimeOptions(runtime=name, batch_size=1, threads=1)
    return runtime(name).write(state, folder, task.size, options)


def costs_of(file: Executed, source: Executed, image: np.ndarray, rounds: int) -> Costs:
    """A file's and the source's, timed in turns on one image on one thread; medians."""
    passes = [each.session.timed_pass(image) for each in (file, source)]
    times = times_in_turns(passes, warmup=20, rounds=rounds, max_seconds=60)
    ms, source_ms = (float(np.median(each)) for each in times)
    return Costs(ms, source_ms, file.bytes, source.bytes)


def executed(path: Path) -> Executed:
    """A file in OpenVINO; an ONNX file that OpenVINO refuses, in ONNX Runtime."""
    try:
        return Executed(path, loaded("openvino", path))
    except ValueError:
        if path.suffix != ".onnx":
            raise
        return Executed(path, loaded("onnxruntime", path))


def written_module(module: nn.Module, task: Task, folder: Path) -> Path:
    import openvino

    folder.mkdir(parents=True, exist_ok=True)
    example = torch.zeros(1, 3, task.size, task.size)
    found = openvino.convert_model(module.eval(), example_input=example)
    return saved(found, task, folder)


def saved(model: Any, task: Task, folder: Path) -> Path:
    """OpenVINO's model as a file for images of one size: else its kernels take any."""
    import openvino

    model.reshape([-1, 3, task.size, task.size])
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    return folder / "model.xml"


WAYS: dict[str, Callable[[Task, Path], Path]] = {
    "shrink": by_shrink,
    "int8": by_int8,
    "nncf": by_nncf,
    "olive": by_olive,
    "torch_pruning": by_torch_pruning,
}
