"""Budgets: exactly one is given, it limits what it names, and it is found under a dotted path."""

from typing import Any

import pytest
from pydantic import ValidationError

from compress.budget import UNITS, Target
from compress.keys import stage_key
from compress.nvit.cost import ParamsModel
from compress.nvit.groups import UnitLayout, block_table
from compress.nvit.stage import Nvit
from sweeps.space.resolve import resolved_trial
from sweeps.space.space import Space
from sweeps.spec.load import spec_from
from trainers.models.arch import Arch, on_meta
from trainers.models.from_timm import dense_arch
from trainers.models.make import make_arch


@pytest.mark.parametrize(
    ("given", "quantity", "limit", "words"),
    [
        ({"latency": 0.5}, "latency", 4, "0.5 of the incoming model's latency"),
        ({"macs": 0.25}, "macs", 2, "0.25 of the incoming model's macs"),
        ({"params": 0.5}, "params", 4, "0.5 of the incoming model's params"),
        ({"bytes": 0.5}, "bytes", 4, "0.5 of the incoming model's bytes"),
        ({"latency_ms": 5}, "latency", 5, "5 ms a batch"),
    ],
)
def test_a_target_limits_what_it_names(
    given: dict[str, float], quantity: str, limit: float, words: str
) -> None:
    target = Target.model_validate(given)
    assert target.quantity == quantity
    assert target.quantity in UNITS
    assert target.limit(8) == limit
    assert target.describe() == words
    assert target.is_share == ("latency_ms" not in given)
    assert Target.model_validate(target.model_dump()) == target


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {},
            "exactly one of latency, macs, params, bytes, latency_ms is set; got none",
        ),
        ({"latency": 0.5, "macs": 0.5}, "got latency, macs; write one"),
        ({"latency": 1.0}, "latency\n.*less than 1"),
        ({"latency_ms": 0}, "latency_ms\n.*greater than 0"),
        ({"flops": 0.5}, "flops\n"),
    ],
)
def test_what_is_no_target_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Target.model_validate(given)


@pytest.mark.parametrize(
    ("target", "older"),
    [
        ({"latency": 0.4}, {"latency_target": 0.4}),
        ({"macs": 0.4}, {"latency_target": 0.4, "latency": "macs"}),
        ({"params": 0.4}, {"latency_target": 0.4, "latency": "params"}),
        ({"bytes": 0.4}, {"latency_target": 0.4, "latency": "params"}),
    ],
)
def test_a_share_has_the_key_of_its_older_name(
    target: dict[str, float], older: dict[str, Any]
) -> None:
    new = Nvit.model_validate({"target": target})
    assert new == Nvit.model_validate(older)
    assert stage_key("k", "nvit", new, []) == stage_key(
        "k", "nvit", Nvit.model_validate(older), []
    )
    assert new == Nvit.model_validate({"target": target, "latency": new.latency})


def test_an_absolute_target_counts_in_the_key() -> None:
    five, six = (Nvit.model_validate({"target": {"latency_ms": n}}) for n in (5, 6))
    assert Nvit.model_validate(five.model_dump()) == five
    keys = {stage_key("k", "nvit", each, []) for each in (five, six, Nvit())}
    assert len(keys) == 3
    assert five._share(10.0) == 0.5
    with pytest.raises(ValueError, match="5 ms a batch is met by the incoming model"):
        five._share(4.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": {"macs": 0.5}, "latency_target": 0.5}, "remove latency_target"),
        ({"target": {"macs": 0.5}, "latency": "measured"}, "remove latency"),
        ({"target": {"latency": 3}}, "target.latency\n"),
        ({"latency_target": None}, "target: it is missing"),
        ({"target": {"params": 0.5}, "latency_unit": "seconds"}, "'params' is no time"),
    ],
)
def test_two_targets_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Nvit.model_validate(given)


def test_an_entry_of_a_target_can_be_searched() -> None:
    path = "stages.nvit.target.latency"
    space = Space(
        spec_from(
            {
                "name": "budgets",
                "source": {"model": "vit_tiny_patch16_224"},
                "data": {"dataset": "digits"},
                "stages": {"nvit": {"epochs": 1}},
                "objectives": [{"metric": "accuracy", "mode": "max"}],
                "search": {"trials": 2, "space": {path: {"low": 0.2, "high": 0.8}}},
            }
        )
    )
    trial = resolved_trial(space, {path: 0.3})
    assert trial.stages[0].config.latency_target == 0.3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"]
)
def test_parameters_are_counted_to_the_last(name: str) -> None:
    args = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
    whole = dense_arch(make_arch(name, num_classes=10, image_size=32, args=args))
    dims = {
        "embed": 20,
        "heads": [3, 2, 1],
        "qk": [8, 4, 2],
        "v": [8, 6, 4],
        "mlp": [96, 64, 32],
    }
    model = ParamsModel.of(whole)
    for arch in (whole, Arch("pruned_vit", whole.name, whole.args, dims)):
        count = sum(p.numel() for p in on_meta(arch).parameters())
        blocks = block_table(UnitLayout.of(arch.dims, Nvit().groups).sizes).numpy()
        found = model.model_ms(arch.dims["embed"], blocks[:, 1:]) * 1e6
        assert found == pytest.approx(count, abs=0.5)
        few = model.gradient(blocks)[0, 4] * 1e6
        assert few == pytest.approx(2 * arch.dims["embed"] + 1)
