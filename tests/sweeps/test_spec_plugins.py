"""What a spec's plugins offer is valid in the spec, and known to errors, schema and `methods`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from sweeps.check import check_spec, load_spec
from sweeps.cli.main import app
from sweeps.space.resolve import resolved_trial
from sweeps.spec.load import spec_from
from sweeps.spec.schema import spec_schema
from sweeps.spec.yaml_text import SpecError
from trainers import plugins

SOURCE = '''
from typing import ClassVar

from pydantic import Field

from compress.metrics import Measurement, Metric
from compress.stage import Context, Phase, Stage
from trainers.models.arch import ModelState
from trainers.training.epoch_metrics import EpochMetric


class Halve(Stage):
    """Multiply every weight by a factor."""

    phase: ClassVar[Phase] = "prune"
    version: ClassVar[int] = 1
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("halved", "weights changed", "1"),)

    factor: float = Field(0.5, gt=0, description="of each weight")

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        ctx.report(halved=len(model.weights))
        return model


STAGES = {"halve": Halve}
METRICS = {
    "norm": Measurement((Metric("norm", "of all weights", "1"),), lambda final: {"norm": 1.0})
}
EPOCH_METRICS = {"surprise": EpochMetric("surprise", "of an epoch", "nats", "min")}
'''


@pytest.fixture
def folder(raw: dict[str, Any], tmp_path: Path) -> Iterator[Path]:
    """A spec file with a plugin file beside it."""
    (tmp_path / "halve.py").write_text(SOURCE)
    raw["plugins"] = ["./halve.py"]
    raw["stages"]["halve"] = {"factor": 0.25}
    raw["search"]["space"]["stages.halve.factor"] = [0.25, 0.5]
    raw["search"]["early_stopping"] = {"scheduler": "asha", "metric": "surprise"}
    raw["objectives"] = [
        {"metric": "halved", "mode": "min"},
        {"metric": "norm", "mode": "min"},
    ]
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    yield tmp_path
    plugins.forget()


def test_a_spec_names_what_its_plugin_offers(folder: Path) -> None:
    sweep = load_spec(str(folder / "spec.yaml"))
    assert sweep.spec.plugins == (str(folder / "halve.py"),)
    (plugin,) = sweep.plugins
    assert plugin.name == "halve.py"
    assert plugin.text == SOURCE
    draw = {
        "stages.init": "none",
        "stages.halve.factor": 0.5,
        "stages.finetune.lr": 0.001,
    }
    trial = resolved_trial(sweep.space, draw)
    assert trial.specs[-1].model_dump() == {
        "name": "halve",
        "kind": "halve",
        "config": {"factor": 0.5},
    }
    rule = sweep.spec.search.early_stopping
    assert rule is not None
    assert rule.direction == "min"


def test_nothing_of_it_is_valid_before_it_is_loaded(
    folder: Path, raw: dict[str, Any]
) -> None:
    """A run folder's spec names plugins; reading it executes none of them."""
    with pytest.raises(SpecError, match="there is no stage 'halve'"):
        check_spec(spec_from(raw))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "stages.halve.factr=1",
            r"stages\.halve\.factr: unknown key; did you mean 'fac",
        ),
        ("stages.halve.factor=-1", r"stages\.halve\.factor: input should be greater"),
        ("stages.halve.stage=halv", "there is no stage 'halv'; did you mean 'halve'"),
        (
            "objectives=[{metric: halvd, mode: min}]",
            "no metric 'halvd'; did you mean 'halved'",
        ),
        (
            "search.early_stopping.metric=suprise",
            "no epoch has a metric 'suprise'; did you mean 'surprise'",
        ),
        ("plugins=[./none.py]", r"plugins: .*none\.py: there is no file"),
        ("plugins=[no.such.module]", r"plugins?:? .*no\.such\.module"),
        ("plugins=halve.py", "plugins: a list of .py files and of modules"),
    ],
)
def test_mistakes_know_it_too(folder: Path, change: str, message: str) -> None:
    space = "search.space={}"
    with pytest.raises(SpecError, match=message):
        load_spec(str(folder / "spec.yaml"), [space, change])


def test_a_name_of_ours_is_taken(folder: Path) -> None:
    text = SOURCE.replace('STAGES = {"halve": Halve}', 'STAGES = {"wfn": Halve}')
    (folder / "halve.py").write_text(text)
    with pytest.raises(
        SpecError, match=r"halve\.py: the name 'wfn' of stages is a built"
    ):
        load_spec(str(folder / "spec.yaml"))


def test_methods_and_schema_show_it(folder: Path, raw: dict[str, Any]) -> None:
    file = str(folder / "halve.py")
    shown = CliRunner().invoke(app, ["methods", "--plugin", file])
    assert shown.exit_code == 0, shown.output
    assert "Multiply every weight by a factor." in shown.output
    assert "from the plugin halve.py" in shown.output
    assert "surprise" in shown.output
    assert "norm" in shown.output
    one = CliRunner().invoke(app, ["methods", "halve", "--plugin", file])
    assert "of each weight" in one.output
    assert "weight_selection" not in one.output
    schema = json.loads(CliRunner().invoke(app, ["schema", "--plugin", file]).output)
    assert schema == spec_schema()
    jsonschema.validate(raw, schema)
    raw["stages"]["halve"] = {"factor": "much"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(raw, schema)


def test_validate_says_which_plugins(folder: Path) -> None:
    done = CliRunner().invoke(app, ["validate", str(folder / "spec.yaml")])
    assert done.exit_code == 0, done.output
    assert "plugins    halve.py" in done.output


def test_old_keys_are_noted_on_the_error_stream(folder: Path) -> None:
    """Validating and running say it; the spec is accepted."""
    path = folder / "spec.yaml"
    path.write_text(path.read_text() + "watch: {}\n")
    done = CliRunner().invoke(app, ["validate", str(path)])
    assert done.exit_code == 0
    assert "watch: this key is called trackers now" in done.stderr
