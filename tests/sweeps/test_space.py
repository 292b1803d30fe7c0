"""The space: every draw valid, conditions hold, grids and sizes agree, points resolve."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweeps.space.dimension import config_keys, parse_dimension
from sweeps.space.resolve import resolved_trial
from sweeps.space.space import Space
from sweeps.spec.load import spec_from
from sweeps.spec.yaml_text import SpecError


def space_of(raw: dict[str, Any], **search: Any) -> Space:
    return Space(spec_from(raw | {"search": raw["search"] | search}))


def test_suggestions_are_valid_and_conditional(raw: dict[str, Any]) -> None:
    space = space_of(raw)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(60):
        draw = space.suggest(study.ask())
        trial = resolved_trial(space, draw)
        kinds = {s.name: s.kind for s in trial.stages}
        choice = draw["stages.init"]
        seen.add(choice)
        assert ("stages.init.*.args.embed_dim" in draw) == (choice != "none")
        assert ("stages.init.weight_selection.element_rule" in draw) == (
            choice == "weight_selection"
        )
        assert trial.config["init"] == choice
        if choice == "none":
            assert "init" not in kinds
            assert not any(key.startswith("init.") for key in trial.config)
        else:
            assert kinds["init"] == choice
            assert (
                trial.config["init.args.embed_dim"]
                == draw["stages.init.*.args.embed_dim"]
            )
        assert trial.config["finetune.lr"] == draw["stages.finetune.lr"]
        assert list(kinds)[-1] == "finetune"
    assert seen == {"weight_selection", "random_init", "none"}


def test_grid_enumerates_each_valid_point_once(raw: dict[str, Any]) -> None:
    finite = raw["search"]["space"] | {
        "stages.finetune.lr": {"low": 0.001, "high": 0.003, "step": 0.001}
    }
    space = space_of(raw, space=finite)
    grid = space.grid()
    assert grid is not None
    # 2 widths × 2 rules × 3 rates, 2 widths × 3 rates, 3 rates
    assert len(grid) == 12 + 6 + 3 == space.size()
    assert len({tuple(sorted(point.items())) for point in grid}) == 21
    for point in grid:
        resolved_trial(space, point)
    assert space.size(["teacher"]) == 1
    assert space.size(["teacher", "init"]) == 4 + 2 + 1


def test_named_choices_set_mappings(raw: dict[str, Any]) -> None:
    sizes = {
        "choices": {
            "S": {"embed_dim": 16, "depth": 1},
            "M": {"embed_dim": 32, "depth": 2},
        }
    }
    raw["stages"]["init"]["one_of"]["random_init"] = {
        "args": {"num_heads": 1, "depth": 9}
    }
    space = space_of(raw, space={"stages.init.*.args": sizes})
    trial = resolved_trial(
        space, {"stages.init": "random_init", "stages.init.*.args": "S"}
    )
    assert trial.stages[1].config.args == {"num_heads": 1, "embed_dim": 16, "depth": 1}  # type: ignore[attr-defined]
    assert config_keys(space.dimensions[1]) == [
        "init.args.embed_dim",
        "init.args.depth",
    ]
    assert space.encode({"stages.init.*.args": {"embed_dim": 32, "depth": 2}}) == {
        "stages.init.*.args": "M"
    }


def test_source_and_data_can_be_searched(raw: dict[str, Any]) -> None:
    space = space_of(
        raw,
        space={"source.args.depth": {"low": 1, "high": 3}, "data.image_size": [16, 32]},
    )
    trial = resolved_trial(
        space, {"stages.init": "none", "source.args.depth": 3, "data.image_size": 16}
    )
    assert trial.source.args["depth"] == 3
    assert trial.data.image_size == 16
    assert config_keys(space.dimensions[1]) == ["source.args.depth"]


def test_resolving_leaves_the_spec_alone(raw: dict[str, Any]) -> None:
    space = space_of(raw)
    before = repr(space.spec.raw)
    first = space.resolve(
        {
            "stages.init": "random_init",
            "stages.init.*.args.embed_dim": 16,
            "stages.finetune.lr": 0.01,
        }
    )
    first["stages"]["init"]["args"]["embed_dim"] = 99
    assert repr(space.spec.raw) == before


@pytest.mark.filterwarnings(
    "ignore:The distribution is specified by"
)  # steps of 16 digits, that no double holds
@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    low=st.integers(1, 50) | st.floats(0.01, 50),
    width=st.integers(0, 50) | st.floats(0, 50),
    step=st.none() | st.integers(1, 9) | st.floats(0.1, 9),
    log=st.booleans(),
    seed=st.integers(0, 99),
)
def test_ranges_hold(
    low: float, width: float, step: float | None, log: bool, seed: int
) -> None:
    given = {"low": low, "high": low + width, "step": step, "log": log}
    try:
        dimension = parse_dimension(
            "stages.x.y", {k: v for k, v in given.items() if v is not None}
        )
    except SpecError:
        assert step is not None
        assert log
        return
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    drawn = dimension.suggest(study.ask())["stages.x.y"]
    assert low <= drawn <= low + width
    integral = all(
        isinstance(v, int) for v in (low, low + width, 1 if step is None else step)
    )
    assert isinstance(drawn, int if integral else float)
    draws = dimension.draws()
    if draws is not None:
        assert len(draws) == dimension.num_draws()
        grid = [found["stages.x.y"] for found in draws]
        assert any(abs(drawn - g) < 1e-9 * max(1, abs(g)) for g in grid)
        assert dimension.encode(drawn) in draws
    assert dimension.encode(drawn) == {"stages.x.y": pytest.approx(drawn, rel=1e-12)}


def test_points_first_draw_what_they_say(raw: dict[str, Any]) -> None:
    point = {
        "stages.init": "weight_selection",
        "stages.init.weight_selection.element_rule": "consecutive",
    }
    space = space_of(raw)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(space.encode(point))
    assert point.items() <= space.suggest(study.ask()).items()
    with pytest.raises(SpecError, match="is no choice"):
        space.encode({"stages.init": "magic"})


def test_a_configuration_has_plain_values(raw: dict[str, Any]) -> None:
    """Optuna's own names and numbers stay in the draw."""
    sizes = {"choices": {"small": {"embed_dim": 16}, "large": {"embed_dim": 32}}}
    space = space_of(
        raw,
        space={
            "stages.init.*.args": sizes,
            "stages.finetune.betas": [[0.9, 0.99], [0.9, 0.999]],
            "stages.finetune.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        },
    )
    draw = {
        "stages.init": "random_init",
        "stages.init.*.args": "small",
        "stages.finetune.betas": "[0.9,0.99]",
        "stages.finetune.lr": 0.001,
    }
    configuration = space.decode(draw)
    assert configuration == draw | {"stages.finetune.betas": [0.9, 0.99]}
    assert space.encode(configuration) == draw
    assert space.decode({"stages.finetune.lr": 0.5}) == {"stages.finetune.lr": 0.5}


def test_a_plan_has_specs_of_stages_with_absolute_paths(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("weights.pt", "teacher.pt"):
        Path(name).touch()
    raw["source"]["checkpoint"] = "weights.pt"
    raw["data"]["root"] = "images"
    raw["stages"]["finetune"]["distill"] = {
        "teacher": "resnet18",
        "teacher_checkpoint": "teacher.pt",
    }
    space = space_of(raw, space={})
    trial = resolved_trial(space, {"stages.init": "none"})
    assert trial.source.checkpoint == tmp_path / "weights.pt"
    assert trial.data.root == tmp_path / "images"
    teacher, finetune = trial.specs
    assert (teacher.name, teacher.kind) == ("teacher", "finetune")
    distill = finetune.config["distill"]
    assert isinstance(distill, dict)
    assert distill["teacher_checkpoint"] == str(tmp_path / "teacher.pt")
    assert trial.configuration == {"stages.init": "none"}
