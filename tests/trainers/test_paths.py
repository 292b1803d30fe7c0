"""`~` and environment variables in paths: YAML is not read by a shell."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from compress.finetune import Finetune
from compress.nvit.stage import Nvit
from sweeps.cli.main import app
from sweeps.spec.model import Spec
from sweeps.spec.search_options import Search
from trainers import plugins
from trainers.config import DataConfig, DistillConfig, SourceConfig
from trainers.files import default_data_cache, expanded, user_cache
from trainers.option_types import MAY_BE_GONE


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LAB", str(tmp_path))
    monkeypatch.delenv("NOWHERE", raising=False)
    (tmp_path / "there").mkdir()
    return tmp_path


def spec(**changes: Any) -> Spec:
    source = {"model": "resnet20_cifar"}
    objectives = [{"metric": "accuracy", "mode": "max"}]
    given = {"name": "a", "source": source, "stages": {}, "objectives": objectives}
    return Spec.model_validate({**given, **changes})


PLACES: dict[str, Callable[[str], Any]] = {
    "storage": lambda path: spec(storage=path).storage,
    "run folder": lambda path: spec(storage=path).run_folder.parent,
    "data.root": lambda path: DataConfig(root=path).root,
    "source.checkpoint": lambda path: SourceConfig(checkpoint=path).checkpoint,
    "local-dir": lambda path: (SourceConfig(model=f"local-dir:{path}").model or "")[
        10:
    ],
    "teacher": lambda path: DistillConfig(teacher=path).teacher,
    "teacher_checkpoint": lambda path: (
        DistillConfig(teacher="resnet18", teacher_checkpoint=path).teacher_checkpoint
    ),
    "kl_teacher": lambda path: Finetune(kl_teacher=path).kl_teacher,
    "table": lambda path: Nvit(latency_target=0.5, table=path).table,
    "search.from": lambda path: Search.model_validate({"from": [path]}).earlier_runs[0],
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("written", ["~/there", "$HOME/there", "${LAB}/there"])
def test_in_every_path_of_a_spec(place: str, written: str, home: Path) -> None:
    assert str(PLACES[place](written)) == str(home / "there")


@pytest.mark.parametrize("place", PLACES)
def test_a_variable_that_is_not_set_is_named(place: str) -> None:
    with pytest.raises(ValueError, match="environment variable NOWHERE is not set"):
        PLACES[place]("$NOWHERE/there")


@pytest.mark.parametrize(
    "text", ["s3://bucket/a", "runs", "a~b", "~no_such_user_here", "5$", "$5", ""]
)
def test_what_is_no_such_path_stays(text: str) -> None:
    assert expanded(text) == text


def test_of_plugins_and_caches(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "mine.py").write_text("")
    assert plugins.read("~/mine.py", Path("elsewhere")).name == "mine.py"
    monkeypatch.setenv("SWEEPS_DATA_CACHE", "~/data")
    monkeypatch.setenv("XDG_CACHE_HOME", "$LAB/cache")
    assert default_data_cache() == home / "data"
    assert user_cache().parent == home / "cache"


def test_what_was_read_once_stays(home: Path) -> None:
    """The plan of an old trial holds whole paths; a `$` in one belongs to its name."""
    given = {"model": "resnet20_cifar", "checkpoint": "/old/$NOWHERE.pth"}
    read = SourceConfig.model_validate(given, context={MAY_BE_GONE: True})
    assert str(read.checkpoint) == "/old/$NOWHERE.pth"


def test_of_the_command_line(home: Path) -> None:
    """A shell does not expand what stands after `=` or in quotes."""
    runner = CliRunner()
    for words in (
        ["status", "~/there"],
        ["report", "$LAB/there"],
        ["validate", "~/x.yaml"],
    ):
        refused = runner.invoke(app, words)
        assert refused.exit_code == 2
        assert str(home) in refused.output
    unset = runner.invoke(app, ["status", "$NOWHERE/run"])
    assert unset.exit_code == 2
    assert "NOWHERE is not set" in unset.output
