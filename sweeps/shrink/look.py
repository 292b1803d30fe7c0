"""What `sweeps shrink` looks at before it plans: the model, the data, the machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from analysis.contract import RUN_FILE
from compress.measure.latency import times_in_turns
from compress.measure.memory import MEGABYTE, peak_memory_bytes, training_bytes
from compress.measure.model import PASS_ERRORS, count_gmacs
from compress.measure.options import RuntimeName, RuntimeOptions
from compress.runtimes.onnx_file import example_images
from compress.runtimes.registry import runtime, session
from sweeps.check_pipelines import known_info
from sweeps.spec.yaml_text import SpecError, Tree, did_you_mean, parse_yaml, read_text
from trainers.config import DataConfig, SourceConfig
from trainers.data.open import openers
from trainers.data.splits import DataInfo
from trainers.machine import usable_cores
from trainers.models.arch import Arch, ModelState, shared_on_meta
from trainers.models.parameters import linear_and_conv_parameters
from trainers.models.source import SourceFacts, load_source, source_facts
from trainers.timm_library import timm
from trainers.words import one_line

PREFERRED: tuple[RuntimeName, ...] = ("openvino", "onnxruntime", "torch")
"""Runtimes of deployment, the first that is installed is taken unless the user says another."""
LARGE_PX = 96
"""Images beyond it are photos, as a pretrained model's preprocessing expects them."""
_FEW_IMAGES = 5000
_MOST_BYTES_IN_MEMORY = 1_500_000_000
WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".npz")
"""Suffixes of files of weights."""
_TIMED_IMAGES = 8
_CHANNELS = 3
"""Of an image as every reader of data gives it; grey ones have the same values in each."""


@dataclass(frozen=True)
class Speed:
    """What the source takes on this machine, one thread each.

    Attributes:
        latency_ms: of a pass in the runtime of deployment.
        file_bytes: of the file that it executes.
        weights, channels, layers: of linear layers and convolutions: what integers store in less,
            and of which each then has a step and a quantiser.
        gmacs: of a pass of one image.
        peak_memory_mb: of a pass in torch, of the images of a pass in the runtime.
        pass_seconds, train_seconds: of one image in torch, forward and with its training step.
        weight_mb, pass_mb, train_mb: memory of the weights, and of one image's tensors that are
            alive at once, in a pass and in a training step.
    """

    latency_ms: float
    file_bytes: int
    weights: int
    channels: int
    layers: int
    gmacs: float
    peak_memory_mb: float
    pass_seconds: float
    train_seconds: float
    weight_mb: float
    pass_mb: float
    train_mb: float


@dataclass(frozen=True)
class Look:
    """What was seen.

    Attributes:
        source, data: the sections of the spec.
        facts: of the opened source.
        info: of the data.
        runtimes: those that are installed.
        cores: that this process may use.
    """

    source: Tree
    data: Tree
    facts: SourceFacts
    info: DataInfo
    runtimes: tuple[RuntimeName, ...]
    cores: int

    @property
    def arch(self) -> Arch:
        return self.facts.arch

    @cached_property
    def channels_last(self) -> bool:
        """Whether the model is trained in that layout: it has several convolutions, which then
        take about two thirds of the time, and it runs in it.
        """
        return _runs_channels_last(self.arch, self.info.image_size)

    def remarks(self) -> list[str]:
        """What a user must know of it, whole sentences; uneven classes among them."""
        return [*self.facts.remarks, *self.info.remarks]


def source_section(model: str, name: str | None) -> Tree:
    """The spec's `source` from what the user typed.

    Args:
        model: a file of weights, a folder with a model, or a name of timm's.
        name: the architecture of a file.

    Raises:
        SpecError: no such file, or an architecture that is missing or said twice.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if (path / RUN_FILE).is_file():
            raise SpecError(
                f"MODEL: {model} is a run folder; take the model of one of its trials (sweeps"
                f" front {model} lists them): sweeps export {model} TRIAL --format safetensors"
                " -o exported, then give the folder exported"
            )
        named = {} if name is None else {"model": name}
        return named | {"checkpoint": str(path.absolute())}
    if path.is_file():
        if name is None:
            raise SpecError(
                f"MODEL: {model} is a file of weights, which does not say its architecture;"
                " give it with --model, as timm calls it (--model resnet18)"
            )
        return {"model": name, "checkpoint": str(path.absolute())}
    is_name = ":" in model or not ("/" in model or model.endswith(WEIGHTS))
    if not is_name:
        raise SpecError(f"MODEL: there is no file or folder {model}")
    if name is not None and name != model:
        raise SpecError(
            f"MODEL: {model} is neither a file nor a folder; --model goes with a file of"
            " weights, a name of timm's stands alone"
        )
    return {"model": model, "pretrained": True}


def data_section(data: str) -> Tree:
    """The spec's `data` from what the user typed: a folder, a YAML file, or a data set's name.

    Raises:
        SpecError: neither of them.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        root = {"root": str(path.absolute())}
        if any(path.glob("*.parquet")) or any(path.glob("*/*.parquet")):
            return {"dataset": "parquet"} | root
        if any(path.glob("*.tar")):
            return {"dataset": "webdataset"} | root
        return {"dataset": "folder"} | root
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        documents = parse_yaml(read_text(path), str(path))
        found = documents[0] if documents else None
        section = found.get("data", found) if isinstance(found, dict) else None
        if not isinstance(section, dict):
            raise SpecError(f"--data: {data} holds no section `data`")
        return dict(section)
    if data in openers():
        return {"dataset": data}
    if path.is_file():
        raise SpecError(
            f"--data: {data} is a file; give the folder of the data set, or a YAML file with"
            " the section `data` of a spec"
        )
    raise SpecError(
        f"--data: there is no folder {data}, and no data set of this name;"
        f" {did_you_mean(data, openers())}known names: {', '.join(openers())}"
    )


def look(source: Tree, data: Tree, runtimes: Sequence[RuntimeName] = ()) -> Look:
    """Open the source and the data.

    Args:
        runtimes: those that must be here; default: every installed one of `PREFERRED`.

    Raises:
        SpecError: what is wrong with them, in a line.
    """
    try:
        config = SourceConfig.model_validate(source)
        data = _complete(data, config)
        info = _info(data)
    except ValueError as error:
        raise SpecError(
            f"--data: {one_line(error)} (an option data.KEY:"
            f" {in_a_file(data, 'KEY: VALUE')})"
        ) from error
    try:
        facts = source_facts(config, info.num_classes, info.image_size, trained=False)
    except (ValueError, RuntimeError, TypeError, AssertionError) as error:
        raise SpecError(f"MODEL: {one_line(error)}") from error
    channels = facts.arch.args.get("in_chans", _CHANNELS)
    if channels != _CHANNELS:
        raise SpecError(
            f"MODEL: a model's images must have {_CHANNELS} channels, as those of every data"
            f" set here; {facts.arch.name} takes {channels} (in_chans); give a model with"
            f" in_chans {_CHANNELS}"
        )
    return Look(source, data, facts, info, installed(runtimes), usable_cores())


def in_a_file(data: Tree, what: str) -> str:
    """How a user who gave a folder or a name says more of the data."""
    given = {key: data[key] for key in ("dataset", "root") if key in data}
    said = "".join(f"{key}: {value}, " for key, value in given.items())
    return f"write {{{said}{what}}} into data.yaml and give --data data.yaml"


def preprocessing(seen: Look) -> str:
    """What the model gets of an image, and how to say that it was trained otherwise."""
    config = DataConfig.model_validate(seen.data)
    mean, std = (
        ", ".join(f"{v:.3g}" for v in values) for values in (config.mean, config.std)
    )
    said = f"{seen.info.image_size} px, mean {mean}, deviation {std}"
    if config.image_size is not None:
        return said
    keys = "image_size: PX, mean: [R, G, B], std: [R, G, B]"
    return f"{said}; if the model was trained on others, {in_a_file(seen.data, keys)}"


def _complete(data: Tree, source: SourceConfig) -> Tree:
    """The section with what follows from the images and from the model's own preprocessing; what
    the user gave stays.
    """
    found = dict(data)
    info = _info(found)
    images = info.num_train + info.num_val
    if images < _FEW_IMAGES:
        found.setdefault("val_fraction", 0.2)
    if info.image_size <= LARGE_PX:
        return found
    known = timm.get_pretrained_cfg(source.model) if source.model else None
    if known is not None:
        found.setdefault("mean", [float(v) for v in known.mean])
        found.setdefault("std", [float(v) for v in known.std])
        if known.interpolation in ("bilinear", "bicubic"):
            found.setdefault("interpolation", known.interpolation)
        if source.pretrained:
            found.setdefault("crop_fraction", float(known.crop_pct))
            found.setdefault("image_size", int(known.input_size[-1]))
    decoded = info.decoded_bytes
    fits = decoded is not None and decoded < _MOST_BYTES_IN_MEMORY
    if fits and "in_memory" not in found:
        kept = found | {"in_memory": "yes"}
        if _opens(kept):
            return kept
    return found


def _info(data: Tree) -> DataInfo:
    """Facts about the data, as checking the spec will look them up again."""
    return known_info(DataConfig.model_validate(data).model_dump_json())


def _opens(data: Tree) -> bool:
    try:
        _info(data)
    except ValueError:
        return False
    return True


def installed(wanted: Sequence[RuntimeName] = ()) -> tuple[RuntimeName, ...]:
    """The runtimes that can be used here.

    Raises:
        SpecError: one of `wanted` cannot, and why.
    """
    found = []
    for name in wanted or PREFERRED:
        try:
            runtime(name).check(RuntimeOptions(runtime=name))
        except ValueError as error:
            if wanted:
                raise SpecError(f"--runtime: {error}") from error
            continue
        found.append(name)
    return tuple(found)


def speed(seen: Look, options: RuntimeOptions) -> Speed:
    """Time the source: some passes in the runtime, and a training step of a few images.

    Raises:
        ValueError: the runtime cannot hold the model.
    """
    size = seen.info.image_size
    state = load_source(
        SourceConfig.model_validate(seen.source),
        num_classes=seen.info.num_classes,
        image_size=size,
        seed=0,
    )
    images = example_images(state, size, options.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        there = session(state, size, options, Path(folder))
        total = sum(path.stat().st_size for path in Path(folder).iterdir())
        (times,) = times_in_turns(
            [there.timed_pass(images.numpy())], warmup=2, rounds=15, max_seconds=5
        )
    module = state.build()
    memory = peak_memory_bytes(module, size, "cpu", batch_size=options.batch_size)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = _torch_seconds(state, size, seen.channels_last)
    finally:
        torch.set_num_threads(threads)
    return Speed(
        float(np.median(times)),
        total,
        *_sizes_of_layers(module),
        count_gmacs(state.arch, size),
        memory / MEGABYTE,
        *seconds,
        *_torch_megabytes(module, size),
    )


def _sizes_of_layers(module: nn.Module) -> tuple[int, int, int]:
    """Weights, output channels and number of the linear layers and convolutions."""
    found = [module.get_parameter(n) for n in linear_and_conv_parameters(module)]
    weights = [each for each in found if each.ndim > 1]
    channels = sum(len(each) for each in weights)
    return sum(each.numel() for each in weights), channels, len(weights)


def _torch_megabytes(module: nn.Module, size: int) -> tuple[float, float, float]:
    """Memory of the weights, and of one image in a pass and in a training step."""
    weights = sum(t.nbytes for t in module.state_dict().values())
    of_pass = peak_memory_bytes(module, size, "cpu") - weights
    few, more = (training_bytes(module, size, images) for images in (2, 4))
    sizes = (weights, of_pass, (more - few) / 2)
    return sizes[0] / MEGABYTE, sizes[1] / MEGABYTE, sizes[2] / MEGABYTE


def _runs_channels_last(arch: Arch, size: int) -> bool:
    layers = shared_on_meta(arch).modules()
    if sum(isinstance(layer, nn.Conv2d) for layer in layers) < 2:
        return False
    layout = torch.channels_last
    images = torch.zeros(2, arch.args.get("in_chans", 3), size, size)
    images = images.contiguous(memory_format=layout)
    # not on the meta device, whose convolutions give another layout
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        module: Any = arch.build().train()
        module = module.to(memory_format=layout)
        try:
            module(images)
        except PASS_ERRORS:
            return False
    return True


def _torch_seconds(
    state: ModelState, size: int, channels_last: bool
) -> tuple[float, float]:
    """Seconds of one image on one thread: of a pass, and of a training step."""
    module: Any = state.build()
    images = example_images(state, size, _TIMED_IMAGES)
    if channels_last:
        module = module.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    module.eval()
    with torch.no_grad():
        module(images)
        begun = time.perf_counter()
        module(images)
        passed = time.perf_counter() - begun
    module.train()
    for _ in range(2):  # the first step prepares the kernels
        begun = time.perf_counter()
        logits: Any = module(images)
        logits = logits[0] if isinstance(logits, tuple) else logits
        functional.cross_entropy(logits, logits.argmax(1)).backward()
        trained = time.perf_counter() - begun
    return passed / _TIMED_IMAGES, trained / _TIMED_IMAGES
