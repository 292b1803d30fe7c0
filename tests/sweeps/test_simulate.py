"""`sweeps simulate`: what it replays on, what it prints, and what it refuses."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from benchmarks.written_runs import stage_rows
from sweeps.check import check_spec
from sweeps.cli.main import app
from sweeps.cli.simulate import _facts, _quartiles_text
from sweeps.run.record import TrialRecord
from sweeps.search.prefixes import REST
from sweeps.search.searcher import StudySearch
from sweeps.search.simulate import RecordedTable, Replay, replay
from sweeps.space.space import Space
from sweeps.spec.load import spec_from
from sweeps.spec.yaml_text import SpecError
from tests.sweeps.helpers import begin, searcher

TAKEN = {"teacher": 30.0, "init": 1.0, "finetune": 10.0}
"""Seconds of a trial's stages."""

INF = float("inf")


def recorded(search: StudySearch) -> TrialRecord:
    """Ask for a trial, and end it; a wide model is accurate and slow."""
    record = begin(search)
    width: Any = record.plan.configuration["stages.init.*.args.embed_dim"]
    for row in stage_rows(TAKEN):
        record.add_stage(row)
    metrics = {"accuracy": width / 64, "gmacs": width / 10}
    record.finish("complete", metrics=metrics, seconds=sum(TAKEN.values()) + 0.5)
    search.tell(record)
    return record


@pytest.fixture
def wide(raw: dict[str, Any]) -> dict[str, Any]:
    """The small spec, whose space has a wildcard, with a model in every alternative."""
    del raw["stages"]["init"]["one_of"]["none"]
    raw["search"] |= {
        "trials": 6,
        "points": [
            {"stages.init": "random_init", "stages.init.*.args.embed_dim": width}
            for width in (16, 32)
        ],
    }
    return raw


@pytest.fixture
def run(wide: dict[str, Any]) -> Path:
    """A run of that spec: four trials with both widths, one that failed and one that runs."""
    folder = Path(wide["storage"]) / "small"
    search = searcher(wide, folder)
    for _ in range(4):
        recorded(search)
    begin(search).finish("failed", error="no")
    begin(search)
    return folder


@pytest.fixture
def simulate(
    wide: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """Runs `sweeps simulate` of that spec with these arguments: exit code and output."""
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(wide, sort_keys=False))
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object) -> tuple[int, str]:
        words = ["simulate", "small.yaml", *map(str, arguments)]
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            done = CliRunner().invoke(app, words)
        assert done.exception is None or isinstance(done.exception, SystemExit)
        return done.exit_code, done.output

    return invoke


def test_a_run_is_a_table(run: Path, wide: dict[str, Any]) -> None:
    """Its draws as they were, wildcards and all; seconds as if nothing had been cached."""
    sweep = check_spec(spec_from(wide))
    table = RecordedTable(run, sweep.space, sweep.spec)
    assert len(table.draws) == 4
    for index, draw in enumerate(table.draws):
        assert table.row_of(draw) == index
        width = draw["stages.init.*.args.embed_dim"]
        assert table.values_of(index) == (width / 64, width / 10)
        assert table.seconds_of(index) == pytest.approx(TAKEN | {REST: 0.5})


def test_a_run_of_another_space_is_refused(run: Path, wide: dict[str, Any]) -> None:
    wide["search"]["space"]["stages.init.*.args.embed_dim"] = [8, 12]
    spec = spec_from(wide)
    with pytest.raises(SpecError, match=r"no trial of this space.*embed_dim.*outside"):
        RecordedTable(run, Space(spec), spec)


def test_rows_without_an_objective_do_not_count(wide: dict[str, Any]) -> None:
    spec = spec_from(wide)
    row = {
        "config/init": "random_init",
        "config/init.*.args.embed_dim": 16,
        "config/init.weight_selection.element_rule": None,
        "config/finetune.lr": 1e-3,
        "metric/accuracy": 0.5,
        "metric/gmacs": 1.0,
        "seconds/teacher": 30.0,
    }
    failed = row | {"config/finetune.lr": 2e-3, "metric/gmacs": None}
    table = RecordedTable(pd.DataFrame([row, failed]), Space(spec), spec)
    assert [draw["stages.finetune.lr"] for draw in table.draws] == [1e-3]
    with pytest.raises(SpecError, match="no row with all objectives"):
        RecordedTable(pd.DataFrame([failed]), Space(spec), spec)


def test_a_share_that_is_not_reached(
    run: Path, simulate: Callable[..., tuple[int, str]]
) -> None:
    """By one configuration of a run that lies under runs/, found by its name."""
    code, text = simulate(
        "small", "search.trials=1", "--share", "1", "--seeds", "2", "-o", "s.parquet"
    )
    assert code == 0, text
    assert [line.split()[:3] for line in text.splitlines()[1:4]] == [
        ["random", cost, "not"] for cost in ("none", "full", "cached")
    ]
    assert text.count("not reached") == 3
    assert "nan" not in text
    assert "4 recorded configurations, 2 seeds" in text
    assert pd.read_parquet("s.parquet")["seconds"].tolist() == [INF] * 6
    code, text = simulate("small", "search.trials=2", "--share", "1", "--seeds", "1")
    assert code == 0, text
    # the teacher once, and all else twice
    assert text.splitlines()[1].split()[:3] == ["random", "none", "53"]


def test_stages_without_a_parameter_take_time_once(raw: dict[str, Any]) -> None:
    """Two before the first parameter, and one after the last."""
    stages = raw["stages"]
    raw["stages"] = {
        "teacher": stages["teacher"],
        "longer": stages["teacher"],
        "finetune": stages["finetune"],
        "store": {"stage": "uniform_quant"},
    }
    raw["search"] |= {"trials": 2, "cost": "none"}
    raw["search"]["space"] = {"stages.finetune.lr": [1e-3, 1e-2]}
    sweep = check_spec(spec_from(raw))
    table = pd.DataFrame(
        {
            "config/finetune.lr": [1e-3, 1e-2],
            "metric/accuracy": [0.5, 0.6],
            "metric/gmacs": [1.0, 2.0],
            **{f"seconds/{name}": [30.0] * 2 for name in ("teacher", "longer")},
            "seconds/finetune": [10.0] * 2,
            "seconds/store": [1.0] * 2,
        }
    )
    found = replay(sweep, RecordedTable(table, sweep.space, sweep.spec))
    assert found.spent.tolist() == [71.0, 11.0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        ([5.0, 3.0, 4.0, 1.0, 2.0], "3 (2 to 4)"),
        ([1200.0, INF, 1000.0, 1100.0], "1,100 (1,000 to 1,200)"),
        ([INF, 1000.0], "1,000 (1,000 to not reached)"),
        ([INF, INF, INF, 7.0], "not reached (7 to not reached)"),
        ([INF, INF], "not reached"),
        ([7.0], "7"),
    ],
)
def test_nothing_lies_between_a_number_and_never(
    seconds: list[float], text: str
) -> None:
    assert _quartiles_text(seconds) == text


def test_the_error_of_the_cost_model_is_that_of_trials_that_took_time() -> None:
    given = pd.DataFrame(
        {
            "clock": [10.0, 10.0, 20.0],
            "alone": [10.0, 20.0, 30.0],
            "share": [0.1, 0.5, 0.9],
            "predicted": [20.0, 1.0, 0.0],
            "spent": [10.0, 0.0, 10.0],
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = _facts(Replay(*given.to_numpy().T), 0.5)
    assert found["cost_error"] == pytest.approx(1)
    assert found["seconds"] == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--sampler", "foo"),
            "error --sampler: there is no sampler 'foo'; valid: tpe, random,",
        ),
        (
            ("--sampler", "random", "--sampler", "tpee"),
            "error --sampler: there is no sampler 'tpee'; did you mean 'tpe'? valid:",
        ),
        (
            ("--cost", "cheap"),
            "error --cost: there is no cost 'cheap'; valid: none, full, cached",
        ),
    ],
)
def test_options_that_are_not_known(
    simulate: Callable[..., tuple[int, str]], arguments: tuple[str, ...], message: str
) -> None:
    code, text = simulate("none.parquet", *arguments)
    assert code == 2
    assert text.startswith(message)
    assert len(text.splitlines()) == 1


def test_the_specs_own_sampler_keeps_its_options(
    run: Path, simulate: Callable[..., tuple[int, str]]
) -> None:
    code, text = simulate(
        run,
        "search.sampler={optuna: QMCSampler, scramble: true}",
        "search.trials=2",
        *("--seeds", "1", "--cost", "none"),
    )
    assert (code, "QMCSampler" in text) == (0, True), text
    code, text = simulate(
        run,
        "search.sampler=tpe",
        "search.sampler_options={n_startup_trials: 1}",
        "search.trials=2",
        *("--seeds", "1", "--cost", "none", "--sampler", "random", "--sampler", "tpe"),
    )
    rows = [line.split()[0] for line in text.splitlines()[1:3]]
    assert (code, rows) == (0, ["random", "tpe"]), text


def test_what_is_neither_table_nor_run(
    run: Path, simulate: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    few = pd.DataFrame({f"config/other.{number}": [1] for number in range(300)})
    few.to_parquet(tmp_path / "few.parquet")
    (tmp_path / "text.parquet").write_text("text")
    for given, message in (
        ("none.parquet", "none.parquet: no such file"),
        ("nowhere", "nowhere: not a run folder"),
        ("text.parquet", "text.parquet: "),
        ("few.parquet", "few.parquet: the table has no column 'config/init', "),
    ):
        code, text = simulate(given)
        assert code == 2
        assert text.startswith(f"error {message}")
        assert len(text.splitlines()) == 1
        assert len(text) < 500
    assert "and 2 more; give the folder of a run" in text
    assert "python benchmarks/search_table.py" in text
