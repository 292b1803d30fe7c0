"""Plugins of a sweep: a trial's process loads them, plans name them, a changed one is refused."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sweeps.check import check_spec
from sweeps.cli.main import app
from sweeps.drive.driver import run_sweep
from sweeps.resume import refuse_changed_plugins
from sweeps.run.record import trial_records
from sweeps.spec.load import spec_from
from sweeps.spec.plugins import load_plugins, read_plugins
from sweeps.spec.yaml_text import SpecError
from tests.sweeps.helpers import records
from trainers import plugins

HALVE = """
from typing import ClassVar

from compress.stage import Context, Phase, Stage
from trainers.models.arch import ModelState


class Halve(Stage):
    phase: ClassVar[Phase] = "train"
    version: ClassVar[int] = 1

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        weights = {name: value / 2 for name, value in model.weights.items()}
        return ModelState(model.arch, weights, model.meta)


STAGES = {"halve": Halve}
"""


@pytest.fixture(autouse=True)
def forget() -> Any:
    yield
    plugins.forget()


def test_a_plugin_s_stage_is_swept_reproduced_and_refused_once_changed(
    raw: dict[str, Any], tmp_path: Path, ray_session: None
) -> None:
    path = tmp_path / "halve.py"
    path.write_text(HALVE)
    files = read_plugins([str(path)])
    load_plugins(files)
    raw["stages"] = {"halve": {}, "finetune": raw["stages"]["finetune"]}
    raw["plugins"] = [str(path)]
    raw["search"] |= {"trials": 2, "space": {"stages.finetune.lr": [1e-3, 1e-2]}}
    run = run_sweep(check_spec(spec_from(raw), plugins=files)).folder
    found = records(run)
    assert [r.status for r in found.values()] == ["complete"] * 2, found
    hashes = {"halve.py": files[0].sha256}
    assert all(r.plan.plugins == hashes for r in found.values())

    def again(*options: str) -> Any:
        plugins.forget()  # as in a new process
        return CliRunner().invoke(app, ["reproduce", str(run), "00000", *options])

    same = again("--plugin", str(path))
    assert same.exit_code == 0, same.output
    alone = again()  # a run folder loads no plugin by itself
    assert alone.exit_code == 2
    assert "the plugin halve.py, which is not here" in " ".join(alone.output.split())
    path.write_text(HALVE.replace("/ 2", "/ 3"))
    changed = again("--plugin", str(path))
    assert changed.exit_code == 2
    assert "the plugin halve.py has changed" in " ".join(changed.output.split())
    with pytest.raises(SpecError, match=r"the plugin halve\.py has changed"):
        refuse_changed_plugins(run, trial_records(run))
