"""What `sweeps shrink` refuses before anything runs, and what it takes up again."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeps.shrink import look as looking
from sweeps.shrink.plan import plan
from sweeps.shrink.request import Goal
from sweeps.shrink.spec import spec_for
from sweeps.shrink.wish import Wish
from sweeps.spec.yaml_text import SpecError
from tests.sweeps.test_shrink import SPEED, request
from trainers.config import SourceConfig
from trainers.models.source import load_source


def saved(folder: Path, seed: int) -> Path:
    """A folder with a ViT for the digits."""
    args = {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
    config = SourceConfig(model="vit_tiny_patch16_224", args=args)
    load_source(config, num_classes=10, image_size=32, seed=seed).save(folder)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(tmp_path / "model", seed=0)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The source's speed, without measuring it."""
    monkeypatch.setattr(looking, "speed", lambda seen, options: SPEED)


@pytest.mark.parametrize("metric", ["auroc", "balanced_accuracy", "f1_macro"])
def test_a_metric_of_classes_that_are_not_validated_is_refused(
    metric: str, model: Path, tmp_path: Path, timed: None
) -> None:
    """Of ten classes five images show five at most, and thirty show each."""
    data = tmp_path / "data.yaml"
    data.write_text("{dataset: digits, limit: 50, val_fraction: 0.1}")
    asked = request(model, tmp_path / "out", data=str(data))
    with pytest.raises(SpecError) as refused:
        plan(replace(asked, metric=metric))
    said = str(refused.value)
    assert said.startswith(f"--metric: {metric} needs an image of every class in the")
    assert re.search(r"whose 5 images show none of \d, \d, \d, \d, \d( and|;)", said)
    assert "val_fraction: SHARE" in said
    assert plan(asked).sweep.spec.objectives[0].metric == "accuracy"
    data.write_text("{dataset: digits, limit: 50, val_fraction: 0.6}")
    assert plan(replace(asked, metric=metric)).hours == asked.hours


def test_a_changed_model_or_other_data_under_the_same_name_are_not_gone_on_with(
    model: Path, tmp_path: Path, timed: None
) -> None:
    data, folder = tmp_path / "data.yaml", tmp_path / "out"
    data.write_text("{dataset: digits, limit: 500}")
    asked = request(model, folder, data=str(data))
    text = plan(asked).text
    folder.mkdir()
    written = folder / "shrink.yaml"
    written.write_text(text)
    going_on = (f"going on with {written}",)
    data.write_text("# the same\nlimit: 500\ndataset: digits")
    assert plan(asked).lines == going_on

    data.write_text("{dataset: digits, limit: 600}")
    with pytest.raises(SpecError, match=r'--data: .* changed .*"limit": 600} now'):
        plan(asked)
    data.write_text("{dataset: digits, limit: 500}")
    saved(model, seed=1)
    with pytest.raises(SpecError, match=r"MODEL: the weights of .* have changed since"):
        plan(asked)

    # one written before the notes were
    head, _, rest = text.partition("# The model's files")
    written.write_text(head + rest[rest.index("\nname:") :])
    assert plan(asked).lines == going_on


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("runtime", "counted", "first"),
    # of 392 kB, a margin kept, 352 are left to 960 kB of weights; integers leave half of a time,
    # so that 1.2 of it would do, and 334 of 240 kB of weights: the first share on the ladder
    [("torch", "params", 0.36), ("onnxruntime", "macs", 0.85)],
)
def test_of_several_goals_the_one_that_asks_for_most_says_how_much_is_cut(
    turned: bool, runtime: Any, counted: str, first: float, model: Path
) -> None:
    seen = looking.look({"checkpoint": str(model)}, {"dataset": "digits"}, ("torch",))
    goals = (Goal("bytes", times=0.4), Goal("latency", times=0.6))
    wish = Wish(goals[::-1] if turned else goals, {}, runtime, 1, 1, 1.0)
    raw, methods = spec_for(wish, seen, SPEED, Path("shrunk"))
    assert methods.has("store", "int8") is (runtime == "onnxruntime")
    name = f"stages.cut.channels.target.{counted}"
    assert next(p[name] for p in raw["search"]["points"] if name in p) == first
    assert raw["stages"]["cut"]["one_of"]["channels"]["blocks"] is True
