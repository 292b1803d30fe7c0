"""`sweeps shrink`: goals as a user writes them, the spec that follows, the pick, the folder."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

import analysis
from analysis.contract import Objective
from analysis.goal import Pick, pick
from compress.measure.options import RuntimeOptions
from sweeps.cli.main import app
from sweeps.cli.shrink import _nothing as nothing
from sweeps.cli.shrink import _told as told
from sweeps.drive.driver import SweepResult, run_header
from sweeps.run.record import named_record, to_json
from sweeps.shrink import look as looking
from sweeps.shrink.candidates import is_trained, points
from sweeps.shrink.deliver import deliver
from sweeps.shrink.look import Speed, data_section, source_section
from sweeps.shrink.methods import LADDER, Methods, methods_for
from sweeps.shrink.outcome import figures, prices, verdict
from sweeps.shrink.plan import plan
from sweeps.shrink.progress import GoalProgress, hardly_knows, said
from sweeps.shrink.reach import Reach
from sweeps.shrink.request import Goal, Request, goal, max_loss, metric_of_loss
from sweeps.shrink.spec import spec_for
from sweeps.shrink.wish import Wish
from sweeps.spec.yaml_text import SpecError
from tests.sweeps.helpers import finish, searcher
from trainers.config import SourceConfig
from trainers.files import write_atomic
from trainers.models.source import load_source

SPEED = Speed(
    latency_ms=10.0,
    file_bytes=1_000_000,
    weights=240_000,
    channels=1000,
    layers=20,
    gmacs=0.5,
    peak_memory_mb=20.0,
    pass_seconds=0.01,
    train_seconds=0.03,
    weight_mb=1.0,
    pass_mb=10.0,
    train_mb=50.0,
)


@pytest.mark.parametrize(
    ("quantity", "text", "objective"),
    [
        ("latency", "5ms", {"metric": "latency_ms", "mode": "min", "bound": 5.0}),
        ("latency", "0.5x", {"metric": "latency_ratio", "mode": "min", "bound": 0.5}),
        ("throughput", "200/s", {"metric": "throughput", "mode": "max", "bound": 200}),
        ("bytes", "2MB", {"metric": "file_bytes", "mode": "min", "bound": 2e6}),
        ("macs", "200M", {"metric": "gmacs", "mode": "min", "bound": 0.2}),
        (
            "memory",
            "0.5x",
            {
                "metric": "peak_memory_mb",
                "mode": "min",
                "bound": {"times": 0.5, "to": "source"},
            },
        ),
    ],
)
def test_a_goal_is_an_objective(
    quantity: Any, text: str, objective: dict[str, Any]
) -> None:
    found = goal(quantity, text).objective
    if not isinstance(objective["bound"], dict):
        assert found["bound"] == pytest.approx(objective["bound"])
        found["bound"] = objective["bound"]
    assert found == objective


@pytest.mark.parametrize(
    ("quantity", "text", "wrong"),
    [
        ("latency", "fast", r"--latency: 'fast' is no amount .* write 5ms or 0\.5x"),
        ("latency", "5", r"--latency: '5' has no unit"),
        ("latency", "0ms", "no amount above 0"),
        ("bytes", "2 parsecs", "has no unit that is known here .*kb, mb"),
        ("latency", "1.5x", r"--latency: '1\.5x' is not less than the source has"),
        ("throughput", "0.5x", "is not more than the source has"),
    ],
)
def test_a_goal_that_is_none_is_refused(quantity: Any, text: str, wrong: str) -> None:
    with pytest.raises(SpecError, match=wrong):
        goal(quantity, text)


def test_what_may_be_lost() -> None:
    assert max_loss("1%", "fraction") == {"loss": 0.01, "to": "source"}
    assert max_loss("0.005", "fraction") == {"loss": 0.005, "to": "source"}
    assert max_loss("2%", "nats") == {"loss": 0.02, "to": "source", "relative": True}
    with pytest.raises(SpecError, match="one percent is 1%"):
        max_loss("1", "fraction")
    with pytest.raises(SpecError, match="'a bit' is no loss"):
        max_loss("a bit", "fraction")
    assert metric_of_loss("loss") == ("loss", "min", "nats")
    with pytest.raises(SpecError, match="did you mean 'auroc'"):
        metric_of_loss("aurok")


def test_a_model_is_a_file_a_folder_or_a_name(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.touch()
    assert source_section("resnet18.a1_in1k", None) == {
        "model": "resnet18.a1_in1k",
        "pretrained": True,
    }
    assert source_section("hf-hub:a/b", None)["pretrained"]
    assert source_section(str(file), "resnet18")["model"] == "resnet18"
    assert source_section(str(tmp_path), None) == {"checkpoint": str(tmp_path)}
    with pytest.raises(SpecError, match="give it with --model"):
        source_section(str(file), None)
    with pytest.raises(SpecError, match="there is no file or folder"):
        source_section("models/missing.safetensors", None)
    with pytest.raises(SpecError, match="neither a file nor a folder"):
        source_section("resnet18", "resnet50")


def test_data_are_a_folder_a_file_or_a_name(tmp_path: Path) -> None:
    section = tmp_path / "data.yaml"
    section.write_text("data: {dataset: digits, limit: 50}")
    assert data_section(str(section)) == {"dataset": "digits", "limit": 50}
    assert data_section("digits") == {"dataset": "digits"}
    assert data_section(str(tmp_path))["dataset"] == "folder"
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0.parquet").touch()
    assert data_section(str(tmp_path))["dataset"] == "parquet"
    with pytest.raises(SpecError, match="did you mean 'digits'"):
        data_section("digts")
    section.write_text("[1, 2]")
    with pytest.raises(SpecError, match="holds no section `data`"):
        data_section(str(section))


def test_a_configuration_in_words() -> None:
    chosen = {
        "stages.cut": "channels",
        "stages.cut.channels.target.macs": 0.7,
        "stages.cut.low_rank.target.macs": None,
        "stages.tune": "tuned",
        "stages.tune.tuned.epochs": 4,
        "stages.tune.tuned.lr": 0.001,
        "stages.store": "int8",
    }
    assert said(chosen) == "fewer channels 0.7, tuned 4, int8"
    assert said({"stages.cut": "none", "stages.store": "float"}) == "as it is"
    smaller = {"stages.cut": "smaller", "stages.cut.smaller.args": "2 of 4 heads"}
    assert said(smaller) == "smaller: 2 of 4 heads"


def test_a_source_that_guesses_is_told() -> None:
    doubt = hardly_knows({"balanced_accuracy": 0.36}, classes=3)
    assert doubt is not None
    assert "36.0 %, by chance 33.3 %" in doubt.replace("\u00a0", " ")
    assert hardly_knows({"balanced_accuracy": 0.5}, classes=3) is None
    assert hardly_knows({}, classes=3) is None


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a ViT for the digits."""
    args = {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
    config = SourceConfig(model="vit_tiny_patch16_224", args=args)
    state = load_source(config, num_classes=10, image_size=32, seed=0)
    state.save(tmp_path / "model")
    return tmp_path / "model"


def request(model: Path, folder: Path, **changes: Any) -> Request:
    return replace(
        Request(
            model=str(model),
            name=None,
            data="digits",
            goals=(Goal("macs", times=0.5),),
            metric="accuracy",
            max_loss="1%",
            runtime="torch",
            batch_size=1,
            threads=1,
            hours=0.1,
            seed=0,
            folder=folder,
            command="sweeps shrink",
        ),
        **changes,
    )


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The source's speed, without measuring it."""

    def speed(seen: Any, options: RuntimeOptions) -> Speed:
        return SPEED

    monkeypatch.setattr(looking, "speed", speed)


def test_the_spec_can_be_read_edited_and_taken_up(
    model: Path, tmp_path: Path, timed: None
) -> None:
    folder = tmp_path / "out"
    first = plan(request(model, folder))
    raw = yaml.safe_load(first.text)
    assert raw["objectives"][0]["bound"] == {"loss": 0.01, "to": "source"}
    goal = (
        "goal     accuracy at most 1 point below the source's, gmacs at most 0.5 times"
    )
    assert f"{goal} the source's" in first.lines
    assert raw["search"]["stop_when"] == "goal"
    # a forward pass of the teacher beside each step, of 1,150 images for training
    assert raw["search"]["epoch_seconds"] == pytest.approx(1150 * (0.03 + 0.01))
    assert raw["title"] == "model: 0.5 times the operations, losing at most 1%"
    assert set(raw["stages"]["cut"]["one_of"]) == {
        "none",
        "channels",
        "low_rank",
        "tokens",
        "smaller",
        "nvit",
    }
    assert "int8" not in raw["stages"]["store"]["one_of"]  # torch executes no integers
    assert raw["resources"]["memory_gb"] > 0
    assert not folder.exists()
    folder.mkdir()
    (folder / "shrink.yaml").write_text(first.text)
    again = plan(request(model, folder, hours=2.0))
    assert again.hours == 2.0
    assert again.sweep.spec.stages == first.sweep.spec.stages
    with pytest.raises(SpecError, match="is the result of another command"):
        plan(request(model, folder, goals=(Goal("latency", times=0.5),)))


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"model": "hf-hub:timm/resnet18.a1_in1k"}, "resnet18.a1_in1k: {}"),
        ({"model": "weights/cells.best.pth"}, "cells.best.pth: {}"),
        ({"model": "a" * 60}, "a" * 39 + "…: {}"),
        (
            {"goals": (Goal("latency", bound=5.0), Goal("throughput", times=2.0))},
            "m: at most 5 ms and 2 times the throughput, losing at most 1%",
        ),
        ({"goals": (Goal("latency"),)}, "m: as fast as can be, losing at most 1%"),
        (
            {"goals": (Goal("bytes"),), "metric": "auroc", "max_loss": "0.02"},
            "m: as small as can be, losing at most 0.02 of auroc",
        ),
    ],
)
def test_a_search_is_called_after_its_model_and_goal(
    changes: dict[str, Any], title: str
) -> None:
    found = replace(request(Path("m"), Path("out")), **changes).title
    assert found == title.format("0.5 times the operations, losing at most 1%")


def test_a_folder_that_holds_something_is_left_alone(
    model: Path, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match="holds something else"):
        plan(request(model, model))


def test_cheap_things_come_first_and_the_goal_says_how_much_is_cut(
    model: Path,
) -> None:
    seen = looking.look({"checkpoint": str(model)}, {"dataset": "digits"}, ("torch",))
    methods = methods_for(seen, "torch", "macs", 3000, is_timed=True)
    wish = Wish((Goal("latency", bound=4.0),), {}, "torch", 1, 1, 1.0)
    found = points(methods, wish, SPEED)
    trained = [is_trained(point) for point in found]
    assert trained == sorted(trained)
    shares = [p[k] for p in found for k in p if k.startswith("stages.cut.channels.")]
    assert shares[0] == 0.4  # 4 of 10 ms
    raw, _ = spec_for(wish, seen, SPEED, Path("shrunk"))
    assert raw["stages"]["cut"]["one_of"]["channels"]["blocks"] is True
    fewer = replace(wish, goals=(Goal("macs", times=0.5),))
    raw, _ = spec_for(fewer, seen, SPEED, Path("shrunk"))
    assert "blocks" not in raw["stages"]["cut"]["one_of"]["channels"]


@pytest.mark.parametrize("times", [0.1, 0.03])
def test_the_hardest_goals_are_cut_in_four_bits_too(times: float) -> None:
    """Even where nothing would be left of the weights, and not only by the least of the plan."""
    stores: dict[str, Any] = {"float": None, "int8": {}, "int4": {}}
    slots = {"cut": {"none": None, "channels": {}}, "tune": {"none": None}}
    shares = {"stages.cut.channels.target.params": list(LADDER)}
    methods = Methods({**slots, "store": stores}, shares)
    wish = Wish((Goal("bytes", times=times),), {}, "openvino", 1, 1, 0.1)
    found = points(methods, wish, replace(SPEED, channels=2000, layers=30))
    in_int4 = [point for point in found if point["stages.store"] == "int4"]
    cuts = [p.get("stages.cut.channels.target.params") for p in in_int4]
    assert set(LADDER[-2:]) <= set(cuts)


def test_where_bytes_count_weights_may_have_four_bits(model: Path) -> None:
    pytest.importorskip("openvino")
    seen = looking.look(
        {"checkpoint": str(model)}, {"dataset": "digits"}, ("openvino",)
    )
    small = Wish((Goal("bytes", times=0.2),), {}, "openvino", 1, 1, 1.0)
    raw, methods = spec_for(small, seen, SPEED, Path("shrunk"))
    assert {"int4", "int4_trained"} <= set(raw["stages"]["store"]["one_of"])
    first = raw["search"]["points"]
    untrained = [point for point in first if not is_trained(point)]
    shares = [p.get("stages.store.int4.four_bit_fraction") for p in untrained]
    assert {0.5, 1.0} <= set(shares)
    assert [said(p) for p in untrained[:2]] == [
        "int8",
        "int4 in 100 % of the weights",
    ]
    counted = "stages.cut.channels.target.params"
    # of 196 kB, a margin of 2 % kept, 40 kB are beside the weights, 4 kB for a step of each
    # channel, and 2.9 or 3.4 kB for each of 20 quantisers: 94 kB are left to 240,000 weights of
    # a byte each, 84 kB to 120,000 bytes of two weights each
    assert [p[counted] for p in untrained if counted in p] == [0.39, 0.3, 0.7]
    assert untrained[-1]["stages.store"] == "int4"
    trained = [said(point) for point in first if is_trained(point)]
    assert trained[0] == "fewer channels 0.39, int8 trained"
    assert trained[1] == "tuned 10, int4 in 100 % of the weights"
    fast = replace(small, goals=(Goal("latency", times=0.5),))
    raw, methods = spec_for(fast, seen, SPEED, Path("shrunk"))
    assert not methods.has("store", "int4")
    first = raw["search"]["points"]
    untrained = [said(point) for point in first if not is_trained(point)]
    assert untrained[0] == "int8"
    # by then it is known whether all in integers is fast enough
    assert untrained[3] == "int8 but for 2 layers"
    trained = [point for point in first if is_trained(point)]
    # what just keeps the goal, in integers and in float, then what integers take away is given back
    assert [said(point).split()[0] for point in trained[:5]] == ["fewer"] * 5
    assert [point["stages.store"] for point in trained[4:6]] == ["int8_trained"] * 2
    assert said(trained[6]) == "tuned 10, int8"
    # integers leave about half of the time: all that half of it takes
    counted = "stages.cut.channels.target.macs"
    assert [p[counted] for p in first if counted in p][:2] == [0.85, 0.6]
    # those that are too slow are left out: the first one that is left cuts least
    cuts = [point for point in trained if counted in point]
    in_int8 = [p[counted] for p in cuts if p["stages.store"] == "int8"]
    assert in_int8 == [0.85, 0.7, 0.6, 0.5, 0.4]
    # a model may bear a deep cut better than integers: measured, then trained beside the first
    in_float = [p[counted] for p in cuts if p["stages.store"] == "float"]
    assert in_float == [0.5, 0.4, 0.35]
    assert [point["stages.store"] for point in cuts[:3]] == ["int8", "float", "float"]
    rest = [point for point in first if counted in point and point not in cuts]
    measured = [p[counted] for p in rest if p["stages.store"] == "float"]
    assert measured == [0.5, 0.35]
    # 0.45 of an hour, of the cut model's training and the teacher's pass
    for point in cuts:
        of_image = 0.03 * point[counted] + 0.01
        epochs = int(0.45 * 3600 / (of_image * seen.info.num_train))
        assert point["stages.tune.tuned.epochs"] == epochs
        assert epochs in raw["search"]["space"]["stages.tune.tuned.epochs"]


HALF = {"metric": "gmacs", "mode": "min", "bound": {"times": 0.5}}


def test_a_smaller_cut_is_tried_where_integers_may_save_more_than_half(
    model: Path,
) -> None:
    """Half of the time would be left to a cut of 0.7; integers leave a third, too."""
    pytest.importorskip("openvino")
    seen = looking.look(
        {"checkpoint": str(model)}, {"dataset": "digits"}, ("openvino",)
    )
    wish = Wish((Goal("latency", times=0.35),), {}, "openvino", 1, 1, 1.0)
    raw, _ = spec_for(wish, seen, SPEED, Path("shrunk"))
    counted = "stages.cut.channels.target.macs"
    shares = [
        point[counted]
        for point in raw["search"]["points"]
        if is_trained(point) and point["stages.store"] == "int8" and counted in point
    ]
    assert shares == [0.7, 0.85, 0.6, 0.5, 0.4]


def test_integers_are_left_out_where_they_bring_the_goal_no_nearer(model: Path) -> None:
    """There are as many operations in integers; of bytes a deep cut in float comes last."""
    pytest.importorskip("openvino")
    seen = looking.look(
        {"checkpoint": str(model)}, {"dataset": "digits"}, ("openvino",)
    )
    wish = Wish((Goal("macs", times=0.5),), {}, "openvino", 1, 1, 1.0)

    def stores(goal: Goal) -> list[str]:
        raw, _ = spec_for(replace(wish, goals=(goal,)), seen, SPEED, Path("shrunk"))
        return [point["stages.store"] for point in raw["search"]["points"]]

    assert set(stores(Goal("macs", times=0.5))) == {"float"}
    assert set(stores(Goal("memory", times=0.5))) == {"float"}
    of_bytes = stores(Goal("bytes", times=0.5))
    assert set(of_bytes[:-3]) == {"int8", "int4", "int8_trained", "int4_trained"}
    assert of_bytes[-3:] == ["float"] * 3


def of_run(
    raw: dict[str, Any],
    run: Path,
    trials: list[tuple[float, float]],
    cost: dict[str, Any] = HALF,
) -> analysis.Run:
    """A run whose source has an accuracy of 0.9 and 4 gmacs."""
    raw["objectives"] = [
        {"metric": "accuracy", "mode": "max", "bound": {"loss": 0.01}},
        cost,
    ]
    search = searcher(raw, run, trials=len(trials) or 1, baseline=True)
    write_atomic(run / "run.json", to_json(run_header(search.sweep, [])))
    finish(search, accuracy=0.9, gmacs=4.0)
    for accuracy, gmacs in trials:
        finish(search, accuracy=accuracy, gmacs=gmacs)
    return analysis.load(run)


def test_the_pick_keeps_the_bounds_and_loses_least(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    found = pick(of_run(raw, tmp_path / "r", [(0.895, 1.0), (0.91, 3.0), (0.9, 2.0)]))
    assert found is not None
    assert (found.trial_id, found.is_certain) == ("00002", True)


def test_the_nearest_where_nothing_keeps_the_bounds_and_what_more_would_cost(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    run = of_run(raw, tmp_path / "r", [(0.901, 3.5), (0.885, 2.1), (0.5, 1.0)])
    found = pick(run)
    assert found is not None
    assert (found.trial_id, found.is_within) == ("00001", False)
    lines = prices(run)
    assert "0.0 % at most: gmacs 3.5" in lines[0]
    assert "gains 0.10 points" in lines[0]
    assert "2.0 % at most: gmacs 2.1" in lines[1]
    assert "1.50 points" in lines[1]
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("trials", "expected", "words"),
    [
        # the least that loses a point at most
        ([(0.895, 3.0), (0.9, 3.5), (0.6, 1.0)], ("00000", True), "the smallest that"),
        # what has more than the source is no result, though it loses nothing
        ([(0.9, 4.5), (0.9, 4.0)], ("00001", False), "is smaller than the source"),
        ([(0.9, 5.0), (0.885, 3.9)], ("00001", False), "is smaller than the source"),
    ],
)
def test_as_little_as_possible_is_less_than_the_source_has(
    trials: list[tuple[float, float]],
    expected: tuple[str, bool],
    words: str,
    raw: dict[str, Any],
    tmp_path: Path,
) -> None:
    cost = {"metric": "gmacs", "mode": "min"}
    run = of_run(raw, tmp_path / "r", trials, cost)
    found = pick(run)
    assert found is not None
    assert (found.trial_id, found.is_within) == expected
    assert words in verdict(run, found)
    assert found.trial_id in verdict(run, found)


def test_figures_say_what_is_left_of_the_source(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    run = of_run(raw, tmp_path / "r", [(0.895, 1.0)])
    found = pick(run)
    assert found is not None
    assert verdict(run, found) == "the goal is met by trial 00000"
    lines = figures(run, found)
    assert lines[0].startswith("accuracy: 90.00 % -> 89.50 %, goal at least 89.00 %")
    assert "-> 1" in lines[1]
    assert "(0.25x), goal at most 2" in lines[1]


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        (
            {"accuracy": 0.934, "file_bytes": 4377178},
            "· fewer channels 0.55, int8   accuracy 93.40 %, file 4 377 178 bytes, 2 min 32 s",
        ),
        (
            {"accuracy": 0.934, "latency_ms": 0.0952},
            "· fewer channels 0.55, int8   accuracy 93.40 %, latency 0.0952 ms, 2 min 32 s",
        ),
    ],
)
def test_a_line_of_a_candidate_fits_a_terminal(
    metrics: dict[str, float], shown: str, raw: dict[str, Any], tmp_path: Path
) -> None:
    record = named_record(of_run(raw, tmp_path / "r", [(0.9, 3.0)]).path, "00000")
    chosen = {
        "stages.cut": "channels",
        "stages.cut.channels.target.macs": 0.55,
        "stages.store": "int8",
    }
    outcome = record.outcome.model_copy(update={"metrics": metrics, "seconds": 152.0})
    plan = record.plan.model_copy(update={"configuration": chosen})
    objectives = [Objective(name, "max", 1.0) for name in metrics]
    units = {"accuracy": "fraction", "file_bytes": "bytes", "latency_ms": "ms"}
    progress = GoalProgress(
        objectives,
        units,
        hours=1,
        reach=Reach({"stages": {}, "search": {}}),
        classes=10,
    )
    line = progress._line(replace(record, plan=plan, outcome=outcome), is_best=False)
    plain = re.sub(r"\[/?[a-z]*\]", "", line)
    assert " ".join(plain.split()) == " ".join(shown.split())
    assert len(plain) <= 80


def test_the_readme_says_what_each_loss_would_buy(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(run: Path, trial: str, form: str, target: Path) -> SimpleNamespace:
        target.mkdir(parents=True)
        return SimpleNamespace(files=[])

    monkeypatch.setattr("sweeps.shrink.deliver.export", export)
    run = of_run(raw, tmp_path / "r", [(0.90, 3.5), (0.885, 2.1)])
    found = pick(run)
    assert found is not None
    costs = prices(run)
    deliver(run, found, "torch", tmp_path / "out", ["it is not met"], costs)
    text = (tmp_path / "out" / "README.md").read_text()
    listed = "\n".join(f"  - {line}" for line in costs)
    assert f"- it is not met\n- what was found, by what it loses:\n{listed}\n" in text


def test_a_candidate_that_costs_more_than_the_source_is_not_marked(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    cost = {"metric": "gmacs", "mode": "min"}
    folder = of_run(
        raw, tmp_path / "r", [(0.9, 3.0), (0.9, 5.0), (0.6, 1.0)], cost
    ).path
    objectives = [Objective("accuracy", "max", 0.89), Objective("gmacs", "min")]
    reach = Reach({"stages": {}, "search": {}})
    progress = GoalProgress(objectives, {}, hours=1, reach=reach, classes=10)
    with progress.drawn(0, folder):  # as a search that goes on
        lines = [
            progress._line(named_record(folder, trial), is_best=False)
            for trial in ("00000", "00001", "00002")
        ]
    assert ["✓" in line for line in lines] == [True, False, False]


def test_nothing_to_pick_before_the_first_trial(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    assert pick(of_run(raw, tmp_path / "r", [])) is None


@pytest.mark.parametrize("trials", [[], [(0.90, 3.5), (0.885, 2.1)]])
def test_after_ctrl_c_the_best_so_far_is_delivered(
    trials: list[tuple[float, float]],
    raw: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the first candidate nothing is; a real process is interrupted by
    `benchmarks/shrink_interrupted.py`.
    """
    run = of_run(raw, tmp_path / "r", trials)
    delivered: list[str] = []

    def noted(run: analysis.Run, chosen: Pick, *rest: Any) -> list[Path]:
        delivered.append(chosen.trial_id)
        return []

    monkeypatch.setattr("sweeps.shrink.deliver.deliver", noted)
    done = SweepResult(run.path, True, False, run.path / "report.html")
    planned: Any = SimpleNamespace(runtime="torch")
    assert told(planned, done, tmp_path) == 130
    assert delivered == (["00001"] if trials else [])


def test_why_there_is_nothing_to_deliver(raw: dict[str, Any], tmp_path: Path) -> None:
    run = of_run(raw, tmp_path / "r", [])
    done = SweepResult(run.path, False, False, run.path / "report.html")
    assert "with more --hours goes on" in nothing(run, done, tmp_path)
    unmeasured = replace(run, baseline=None)
    said = nothing(unmeasured, done, tmp_path)
    assert "the source could not be measured" in said
    assert "--retry failed" in said
    stopped = replace(done, interrupted=True)
    assert "the same command goes on" in nothing(unmeasured, stopped, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["m", "--data", "digits"], "a goal is missing"),
        (["m", "--data", "digits", "--fastest", "--bytes", "2MB"], "stand alone"),
        (["m", "--data", "digits", "--fastest", "--hours", "0"], "--hours: 0 is no"),
        (["m", "--data", "nowhere", "--fastest"], "no folder nowhere"),
        (["m", "--data", "digits", "--fastest", "--runtime", "x"], "no runtime 'x'"),
        (["m", "--data", "digits", "--fastest", "--cluster", "ray://h:1"], "host:port"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: list[str], wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["shrink", *arguments])
    assert done.exit_code == 2
    assert wrong in done.output
    assert len(done.output.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_weights_for_other_classes_are_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = SourceConfig(model="resnet20_cifar")
    state = load_source(config, num_classes=7, image_size=32, seed=0)
    save_file(dict(state.weights), "seven.safetensors")
    words = ["seven.safetensors", "--model", "resnet20_cifar", "--data", "digits"]
    done = CliRunner().invoke(app, ["shrink", *words, "--smallest"])
    assert done.exit_code == 2
    assert "its accuracy would be chance" in done.output
    assert not (tmp_path / "shrunk").exists()


def test_from_a_model_to_a_folder(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    timed: None,
    ray_session: None,
) -> None:
    """The source guesses, so a model of fewer operations is found at once; all is there."""
    monkeypatch.chdir(tmp_path)
    section = {"dataset": "digits", "limit": 150, "limit_test": 40, "val_fraction": 0.3}
    Path("data.yaml").write_text(yaml.safe_dump(section))
    words = ["model", "--data", "data.yaml", "--macs", "0.9x", "--max-loss", "60%"]
    words += ["--runtime", "torch", "--hours", "0.05", "-o", "out"]
    done = CliRunner().invoke(app, ["shrink", *words])
    assert done.exit_code == 0, done.output
    assert "the goal is met by trial" in done.output
    names = {path.name for path in Path("out").iterdir()}
    assert {"model", "README.md", "front.csv", "report.html", "shrink.yaml"} <= names
    files = {path.name for path in Path("out/model").iterdir()}
    assert {"model.safetensors", "README.md"} <= files
    title = "model: 0.9 times the operations, losing at most 60%"
    assert f"<h1>{title}</h1>" in Path("out/report.html").read_text()
    assert Path("out/README.md").read_text().startswith(f"# {title}\n")
    assert f"# `{title}, trial " in Path("out/model/README.md").read_text()
    front = CliRunner().invoke(app, ["front", "out/run"])
    assert f"front of {title}" in " ".join(front.output.split())
