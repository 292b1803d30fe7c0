"""Goals that cannot be reached: refused before the search, or found out by its first candidates."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.contract import Objective
from compress.measure.options import RuntimeOptions
from sweeps.shrink import look as looking
from sweeps.shrink.look import Look
from sweeps.shrink.progress import GoalProgress
from sweeps.shrink.reach import (
    Reach,
    extremes,
    least_costs,
    refuse_impossible,
    wanted_share,
)
from sweeps.shrink.request import Goal
from sweeps.spec.yaml_text import SpecError
from tests.sweeps.test_shrink import SPEED
from trainers.config import SourceConfig
from trainers.models.source import load_source

TORCH = RuntimeOptions(runtime="torch", batch_size=2, threads=1)
OBJECTIVES = [Objective("accuracy", "max", 0.9), Objective("latency_ms", "min", 1.0)]
SPEC: dict[str, Any] = {
    "stages": {
        "cut": {
            "one_of": {
                "none": None,
                "channels": {"stage": "prune_channels", "epochs": 0},
                "nvit": {"stage": "nvit", "epochs": 3},
                "smaller": {"stage": "weight_selection"},
            }
        },
        "tune": {"one_of": {"none": None, "tuned": {"stage": "finetune"}}},
        "store": {"one_of": {"float": None, "int8": {}, "int8_trained": {}}},
    },
    "search": {
        "space": {
            "stages.cut.channels.target.macs": [0.85, 0.2],
            "stages.cut.nvit.target.macs": [0.85, 0.2],
            "stages.cut.smaller.args": {"choices": {"large": {}, "small": {}}},
            "stages.tune.tuned.lr": {"low": 1e-4, "high": 1e-3},
        }
    },
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Look:
    """A small ViT and the digits."""
    folder = tmp_path_factory.mktemp("reach") / "model"
    args = {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
    config = SourceConfig(model="vit_tiny_patch16_224", args=args)
    load_source(config, num_classes=10, image_size=32, seed=0).save(folder)
    return looking.look({"checkpoint": str(folder)}, {"dataset": "digits"}, ("torch",))


def trial(metrics: dict[str, float], status: str = "complete", **chosen: Any) -> Any:
    """A record as `Reach` reads it; `share` is of channels, `size` of smaller ones."""
    names = {"share": "cut.channels.target.macs", "size": "cut.smaller.args"}
    configuration = {f"stages.{names.get(k, k)}": v for k, v in chosen.items()}
    return SimpleNamespace(
        trial_id="00001",
        status=status,
        plan=SimpleNamespace(configuration=configuration),
        outcome=SimpleNamespace(metrics=metrics),
    )


@pytest.mark.parametrize(
    ("wanted", "share"),
    [
        (Goal("latency", bound=4.0), 0.4),
        (Goal("latency", times=0.4), 0.4),
        (Goal("throughput", times=4.0), 0.25),
        (Goal("throughput", bound=800.0), 0.25),  # two images in 10 ms are 200 a second
        (Goal("macs", bound=0.1), 0.2),
        (Goal("memory", bound=5.0), 0.25),
        (Goal("bytes"), None),
    ],
)
def test_what_a_goal_leaves_of_the_source(wanted: Goal, share: float | None) -> None:
    assert wanted_share(wanted, SPEED, batch_size=2) == pytest.approx(share)


@pytest.mark.parametrize(
    ("wanted", "wrong"),
    [
        (Goal("bytes", bound=20.0), r"--bytes: 20 bytes is out of reach: .* at least"),
        (Goal("latency", times=1e-6), r"--latency: 1e-06x, which is 1e-5 ms, is out"),
        (Goal("macs", bound=1e-9), "--macs: 1 multiply-accumulates is out of reach"),
        (Goal("memory", bound=1e-3), "--memory: 0.001 MB is out of reach"),
        (Goal("throughput", times=1e6), r"--throughput: 1e\+06x.*ask for less"),
    ],
)
def test_less_than_next_to_nothing_is_refused(
    wanted: Goal, wrong: str, seen: Look
) -> None:
    with pytest.raises(SpecError, match=wrong):
        refuse_impossible([wanted], seen, SPEED, TORCH)


def test_a_goal_that_the_source_keeps_is_refused_unless_another_is_not_kept(
    seen: Look,
) -> None:
    kept, wanted = Goal("bytes", bound=2e6), Goal("latency", bound=8.0)
    with pytest.raises(
        SpecError, match=r"the source has .* bytes as it is.* ask for less"
    ):
        refuse_impossible([kept], seen, SPEED, TORCH)
    refuse_impossible([kept, wanted], seen, SPEED, TORCH)


def test_what_may_be_is_not_refused(seen: Look) -> None:
    """Not a byte or an operation more than the least is asked for; the rest is for the search."""
    least = least_costs(seen, TORCH)
    assert least.file_bytes < 20_000
    wishes = [Goal("bytes", bound=least.file_bytes), Goal("macs", bound=least.gmacs)]
    refuse_impossible(wishes, seen, SPEED, TORCH)


def test_one_cheap_candidate_of_each_kind_is_cut_as_far_as_it_goes() -> None:
    slots = {name: slot["one_of"] for name, slot in SPEC["stages"].items()}
    found = extremes(slots, SPEC["search"]["space"])
    assert found == [
        {
            "stages.cut": cut,
            "stages.tune": "none",
            "stages.store": store,
            parameter: value,
        }
        for cut, parameter, value in (
            ("channels", "stages.cut.channels.target.macs", 0.2),
            ("smaller", "stages.cut.smaller.args", "small"),
        )
        for store in ("int8", "float")
    ]


def of_all_kinds(best: float, failed: str = "") -> list[Any]:
    """A trial of each kind; the best of them has this latency."""
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("channels", store, {"share": 0.2}) for store in ("float", "int8_trained")
    ]
    kinds += [("smaller", s, {"size": "small"}) for s in ("float", "int8")]
    return [
        trial(
            {"latency_ms": best if i == 0 else 3.0},
            "failed" if cut == failed else "complete",
            cut=cut,
            tune="tuned",
            store=store,
            **more,
        )
        for i, (cut, store, more) in enumerate(kinds)
    ]


def verdict(trials: list[Any], objectives: Any = OBJECTIVES) -> str | None:
    reach = Reach(SPEC)
    for record in trials:
        reach.note(record)
    return reach.verdict(objectives, {"latency_ms": "ms"})


def test_out_of_reach_is_said_when_every_kind_has_missed() -> None:
    said = verdict(of_all_kinds(1.2))
    assert said is not None
    assert "latency_ms is to be at most 1 ms" in said
    assert "cut as far as it goes, is 1.2 ms" in said


def test_nothing_is_said_of_a_kind_that_was_never_measured() -> None:
    """What failed for memory, say, may have been the one that keeps the goal."""
    assert verdict(of_all_kinds(1.2, failed="smaller")) is None
    assert verdict(of_all_kinds(1.2, failed="channels")) is None
    one_failed = of_all_kinds(1.2)
    one_failed[1].status = "failed"
    assert verdict(one_failed) is not None


def test_nothing_is_said_before_that_or_where_it_is_close() -> None:
    assert verdict(of_all_kinds(1.2)[:3]) is None
    assert verdict(of_all_kinds(1.05)) is None
    less_cut = trial({"latency_ms": 0.9}, cut="channels", store="int8", share=0.85)
    assert verdict([*of_all_kinds(1.2), less_cut]) is None
    unknown = [OBJECTIVES[0], Objective("latency_ms", "min", {"times": 0.1})]  # type: ignore[arg-type]
    assert verdict(of_all_kinds(1.2), unknown) is None
    assert verdict(of_all_kinds(1.2), [OBJECTIVES[0]]) is None


def test_nothing_is_said_of_a_plan_that_a_person_has_edited() -> None:
    """Its kinds of candidates are not known: other stages, or a range of what is cut."""
    more = SPEC["stages"] | {"round": {"stage": "kmeans_quant"}}
    ranged = {"space": {"stages.cut.channels.target.macs": {"low": 0.1, "high": 0.9}}}
    for edited in (SPEC | {"stages": more}, SPEC | {"search": ranged}):
        reach = Reach(edited)
        for record in of_all_kinds(1.2):
            reach.note(record)
        assert reach.verdict(OBJECTIVES, {}) is None


def test_the_driver_is_asked_to_stop_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that goes on knows it at once, from its records."""
    stopped: list[Path] = []
    monkeypatch.setattr("sweeps.shrink.progress.request_stop", stopped.append)
    progress = GoalProgress(
        OBJECTIVES, {"latency_ms": "ms"}, hours=1.0, reach=Reach(SPEC), classes=10
    )
    monkeypatch.setattr(progress, "_count", lambda record: False)
    progress.resume(of_all_kinds(1.2))
    assert stopped == []
    with progress.drawn(1, tmp_path):
        progress._judge()
    assert stopped == [tmp_path]
    assert progress.verdict is not None
