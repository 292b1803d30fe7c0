"""Whole models timed as the blocks of a table were: in its runtime, and in integers if it was."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from compress.measure.latency_table import Fingerprint
from compress.measure.options import RuntimeOptions
from compress.nvit import measured
from trainers.models.arch import Arch, ModelState

SMALL = Arch(
    "pruned_vit",
    "tiny",
    {"num_classes": 3, "img_size": 16, "patch_size": 8, "in_chans": 3, "scale": 0.3},
    {"embed": 16, "heads": [2], "qk": [4], "v": [4], "mlp": [8]},
)
TABLE = Fingerprint(runtime="openvino", dtype="int8", batch_size=2, num_threads=1)


def test_a_table_of_integers_is_compared_in_integers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = measured.options_of(TABLE, RuntimeOptions())
    assert options == RuntimeOptions(runtime="openvino", batch_size=2, threads=1)
    made: list[nn.Module] = []
    timed: list[nn.Module] = []

    def in_integers(module: nn.Module, images: torch.Tensor) -> nn.Module:
        assert images.shape == (2, 3, 16, 16)
        made.append(nn.Sequential(module))
        return made[-1]

    def session_of(module: nn.Module, *_: Any) -> Any:
        timed.append(module)
        ms = float(len(timed))
        return SimpleNamespace(timed_pass=lambda images: lambda: ms)

    monkeypatch.setattr(measured, "in_integers", in_integers)
    fake = SimpleNamespace(session_of=session_of)
    monkeypatch.setattr(measured, "runtime", lambda name: fake)
    states = [ModelState.initialised(SMALL, seed) for seed in (0, 1)]
    cpu = torch.device("cpu")
    assert measured.alternating(states, 16, options, cpu, integers=True) == [1.0, 2.0]
    assert timed == made
