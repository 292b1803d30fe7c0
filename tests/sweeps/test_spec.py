"""Specs: every mistake gives one message with place, rule and valid choices; nothing else
escapes.
"""

import contextlib
import json
import re
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from sweeps.check import check_spec, load_spec
from sweeps.cli.main import app
from sweeps.space.overrides import apply_overrides
from sweeps.spec.load import preset_names, preset_text, renamed, spec_from
from sweeps.spec.schema import spec_schema
from sweeps.spec.yaml_text import SpecError, parse_yaml


def check(raw: dict[str, Any], *overrides: str) -> Any:
    return check_spec(spec_from(apply_overrides(raw, overrides)))


MISTAKES = [
    (
        "storage=s3://KEY:SECRET@bucket/x",
        r"^storage: s3://\*\*\*@bucket/x holds a user, a password or a key; credentials come",
    ),
    (
        "trackers=[{mlflow: {tracking_uri: 'http://me:SECRET@host'}}]",
        r"^trackers\.0\.mlflow\.tracking_uri: http://\*\*\*@host holds a user",
    ),
    (
        "serch.trials=4",
        (
            r"^serch: unknown key; did you mean 'search'\? valid keys: name, title, seed,"
            r" storage, source"
        ),
    ),
    (
        "search.trails=4",
        r"search\.trails: unknown key; did you mean 'trials'\? valid keys: sampler",
    ),
    (
        "search.trials=many",
        r"search\.trials: input should be a valid integer.*; got 'many'",
    ),
    (
        "search.trials=0",
        r"search\.trials: input should be greater than or equal to 1; got 0",
    ),
    (
        "search.sampler=tpes",
        (
            r"search\.sampler: there is no sampler 'tpes'; did you mean 'tpe'\? valid: tpe,"
            " random, nsga2, gp, grid"
        ),
    ),
    (
        "search.sampler_options.foo=1",
        r"search\.sampler_options\.foo: random has no such option; valid: none",
    ),
    (
        "stages.finetune.learning_rate=1",
        r"stages\.finetune\.learning_rate: unknown key; .*valid keys: batch_size",
    ),
    ("stages.finetune.augment.mixupp=1", r"stages\.finetune\.augment.*mixupp"),
    (
        "stages.finetune.lr=-1",
        r"stages\.finetune\.lr: input should be greater than 0; got -1",
    ),
    (
        "stages.finetune.warmup=soon",
        (
            r"stages\.finetune\.warmup: a duration is a number of epochs, 'N steps' or"
            r" 'N%'; got 'soon'"
        ),
    ),
    (
        "stages.finetune.stage=shrink_all",
        r"stages\.finetune: there is no stage 'shrink_all'; valid stages: finetune",
    ),
    ("stages.finetune=5", r"stages\.finetune is 5, not a mapping with parameters"),
    ("stages.finetune.batch_size=5000", r"stages\.finetune: batch_size 5000 .* 90"),
    (
        "stages.finetune.warmup=3",
        r"stages\.finetune: warmup .* must be shorter than the fit",
    ),
    ("stages.finetune.optimizer=adamx", r"stages\.finetune: optimizer 'adamx'"),
    (
        "stages.init=prune",
        (
            r"stages\.init: no alternative 'prune'; valid: weight_selection,"
            r" random_init, none"
        ),
    ),
    (
        "stages.init.best.args={}",
        r"stages\.init\.best\.args: no alternative 'best'; valid: weight_selection",
    ),
    (
        "search.space.stages.finetune.lrr=[1]",
        r"stages\.finetune\.lrr: unknown key; did you mean 'lr'\?",
    ),
    (
        "search.space.stages.nothing.lr=[1]",
        (
            r"search\.space\.stages\.nothing\.lr: no stage 'nothing'; the stages are"
            r" teacher, init, finetune"
        ),
    ),
    (
        "search.space.stages.init.args=[1]",
        (
            r"search\.space\.stages\.init\.args: stages\.init is a slot; write"
            r" stages\.init\.ALTERNATIVE"
        ),
    ),
    (
        "search.space.stages.init.none.args=[1]",
        r"search\.space\.stages\.init\.none\.args: stages\.init is a slot",
    ),
    (
        "search.space.objectives.x=[1]",
        r"search\.space\.objectives\.x: .*section of stages, source, data",
    ),
    ("search.space.stages.finetune.lr={low: 1, high: 0}", r"needs low <= high"),
    (
        "search.space.stages.finetune.lr={low: 0, high: 1, log: true}",
        r"low > 0 with log",
    ),
    (
        "search.space.stages.finetune.lr={low: a, high: 1}",
        r"search\.space\.stages\.finetune\.lr\.low: must be a finite number; got 'a'",
    ),
    ("search.space.stages.finetune.lr={lo: 1, high: 2}", r"a range is {low, high}"),
    ("search.space.stages.finetune.lr=[]", r"needs at least one choice"),
    ("search.hours=true", r"search\.hours: a number is needed; true is none"),
    ("stages.finetune.epochs=false", r"finetune\.epochs: a number is needed; false is"),
    ("data.mean=[true, 0.5, 0.5]", r"data\.mean\.0: a number is needed; true is none"),
    (
        "search.space.stages.finetune.lr=[1.0, fast]",
        r"stages\.finetune\.lr: input should be a valid number.*'fast'",
    ),
    (
        "search.space.stages.finetune.epochs={low: 0.5, high: 2.0}",
        r"stages\.finetune\.epochs: a whole number is needed, .*; got 0\.5\. A range of",
    ),
    (
        "search.points=[{stages.finetune.lr: 5}]",
        r"search\.points: stages\.finetune\.lr: 5 is not in float \[0\.0001, 0\.01\]",
    ),
    (
        "search.points=[{stages.init: best}]",
        r"search\.points: stages\.init: 'best' is no choice; valid: weight_selection",
    ),
    (
        "search.points=[{lr: 5}]",
        r"search\.points: 'lr' is no dimension; valid: stages\.init",
    ),
    (
        "objectives=[{metric: acuracy, mode: max}]",
        (
            r"objectives\.0\.metric: this pipeline has no metric 'acuracy'; did you mean"
            r" 'accuracy'\? valid: accuracy, "
        ),
    ),
    (
        "search.early_stopping={scheduler: asha, metric: balanced_acuracy}",
        (
            r"search\.early_stopping\.metric: no epoch has a metric 'balanced_acuracy'; did"
            r" you mean 'balanced_accuracy'\? valid: accuracy, top5_accuracy, loss"
        ),
    ),
    (
        "objectives=[{metric: test_accuracy, mode: max}]",
        r"the test set never guides the search; use 'accuracy'",
    ),
    (
        "objectives=[{metric: accuracy, mode: maximum}]",
        r"objectives\.0\.mode: input should be 'min' or 'max'; got 'maximum'",
    ),
    (
        "objectives=[]",
        (
            r"objectives: list should have at least 1 item after validation, not 0; got"
            r" \[\]"
        ),
    ),
    (
        "objectives=[{metric: loss, mode: min}, {metric: loss, mode: max}]",
        r"each metric may be given once",
    ),
    (
        "data.val_fraction=0",
        r"objectives\.0\.metric: .*needs a validation part; set data\.val_fraction above 0",
    ),
    (
        "measure.latency=false objectives=[{metric: latency_ms, mode: min}]",
        r"'latency_ms' \(it needs measure\.latency: true\)",
    ),
    ("data.dataset=mnist", r"data\.dataset 'mnist' is unknown; valid: digits, folder"),
    ("data.dataset=parquet data.root=/no/such/folder", r"data.*/no/such/folder"),
    ("data.dataset=cifar10", r"data\.dataset 'cifar10' needs data\.root"),
    (
        "source.model=vit_tinny",
        r"source: unknown model 'vit_tinny'; valid: resnet20_cifar.*similar: vit_tiny",
    ),
    ("source.args.foo=1", r"source: model .*foo"),
    ("source.args.embed_dim=33", r"source: model .*divisible"),
    ("source.checkpoint=/no/file", r"source: `checkpoint`: no such file: /no/file"),
    ("source.model=null", r"source: `model` is needed unless"),
    (
        "stages.init.*.args.embed_dim=48",
        r"stages\.init: .*with stages\.init=weight_selection",
    ),
    (
        "resources.cpus_per_worker=4000",
        r"resources\.cpus_per_worker: a trial wants 4000 cores, and there are \d+; lower",
    ),
    (
        "resources.gpus_per_worker=64",
        r"resources\.gpus_per_worker: a trial wants 64 GPUs, and there are \d+; lower",
    ),
    (
        "stages.finetune.optimizer=muon resources={workers: 2, cpus: 2, strategy: fsdp}",
        r"stages\.finetune: optimizer 'muon' needs whole parameters, .* choose adamw, sgd,",
    ),
    (
        "stages.finetune.ema.device=cpu resources={workers: 2, cpus: 2, strategy: fsdp}",
        r"stages\.finetune: ema\.device: with resources\.strategy fsdp .*; leave device out",
    ),
    (
        "storage=/etc/hostname/x",
        r"storage: /etc/hostname is not a folder that can be written to",
    ),
    ("name=../up", r"name: string should match pattern"),
    ("name=_cache", r"name: string should match pattern"),
    ("search.sampler=grid", r"search\.sampler: grid needs a finite space"),
    ("nonsense", r"override 'nonsense': write key=value"),
    (
        "stages.finetune.epochs.more=1",
        (
            r"override stages\.finetune\.epochs\.more: stages\.finetune\.epochs is 1,"
            r" which has no parameters"
        ),
    ),
    ("objectives.7.bound=1", r"'7' is no item of a list of 2"),
    ("search.trials=[1", r"override search\.trials.*not valid YAML"),
]


@pytest.mark.parametrize(
    ("overrides", "message"), MISTAKES, ids=[m[0][:60] for m in MISTAKES]
)
def test_mistakes_are_explained(
    raw: dict[str, Any], overrides: str, message: str
) -> None:
    parts = (
        [overrides]
        if " " not in overrides
        or "{" in overrides.split(" ")[0]
        or "[" in overrides.split(" ")[0]
        else overrides.split(" ", 1)
    )
    with pytest.raises(SpecError, match=message):
        check(raw, *parts)


ALL_IMAGES = (
    "data.val_fraction=0",
    "objectives=[{metric: test_accuracy, mode: max}]",
)


@pytest.mark.parametrize(
    ("overrides", "guided"),
    [
        (["search.sampler=tpe"], r"search\.sampler: tpe draws by the objectives"),
        (
            [
                "search.sampler=random",
                "search.early_stopping={scheduler: asha, metric: train_loss}",
            ],
            r"search\.early_stopping ends trials",
        ),
    ],
)
def test_the_test_set_guides_no_search(
    raw: dict[str, Any], overrides: list[str], guided: str
) -> None:
    with pytest.raises(SpecError, match=f"never guides the search \\({guided}"):
        check(raw, *ALL_IMAGES, *overrides)


def test_the_test_set_may_order_what_nothing_chose(raw: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="never guides the search; use 'accuracy'"):
        check(raw, ALL_IMAGES[1], "search.sampler=random")
    checked = check(raw, *ALL_IMAGES, "search.sampler=random")
    assert [o.metric for o in checked.spec.objectives] == ["test_accuracy"]
    assert any("picks one of many by it" in remark for remark in checked.remarks)


def test_the_spec_itself_holds(raw: dict[str, Any]) -> None:
    checked = check(raw)
    assert checked.num_configurations == 4
    assert checked.space.size() is None
    assert dict(checked.distinct_stages()) == {"teacher": 1, "init": 4, "finetune": 4}


def test_overrides_fix_what_was_searched(raw: dict[str, Any]) -> None:
    checked = check(
        raw, "stages.finetune.lr=1e-3", "stages.init=random_init", "search.sampler=grid"
    )
    assert [d.path for d in checked.space.dimensions] == ["stages.init.args.embed_dim"]
    assert checked.space.size() == 2
    assert checked.example[1].kind == "random_init"
    assert checked.spec.stages["finetune"]["lr"] == 0.001


def test_an_empty_alternative_removes_its_stage(raw: dict[str, Any]) -> None:
    checked = check(raw, "stages.init=none")
    assert [s.name for s in checked.example] == ["teacher", "finetune"]


def test_numbers_and_duplicates_in_yaml() -> None:
    assert parse_yaml("a: 1e-3\nb: -2.5E+4\nc: 1.5\nd: '1e-3'", "x") == [
        {"a": 0.001, "b": -25000.0, "c": 1.5, "d": "1e-3"}
    ]
    merged = "a: &one {x: 1, y: 2}\nb: {<<: *one, y: 3}\nc: {y: 4, <<: *one}"
    assert parse_yaml(merged, "x") == [
        {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 4}}
    ]
    with pytest.raises(
        SpecError, match=r"x, line 2, column 1: not valid YAML: key 'a' is given twice"
    ):
        parse_yaml("a: 1\na: 2", "x")
    with pytest.raises(SpecError, match="not valid YAML"):
        parse_yaml("a: !!python/object/apply:os.system ['true']", "x")


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for source, message in [
        ("demmo", r"demmo: no such file or preset; did you mean 'demo'\?"),
        (str(tmp_path / "binary.yaml"), "not a text file"),
        (str(tmp_path / "none.yaml"), "no such file or preset"),
        (str(tmp_path), r"a folder, .*; a run goes on with `sweeps resume FOLDER`"),
    ]:
        with pytest.raises(SpecError, match=message):
            load_spec(source)
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    with pytest.raises(SpecError, match="a spec is one mapping"):
        load_spec(str(tmp_path / "list.yaml"))
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(SpecError, match="a spec is one mapping"):
        load_spec(str(tmp_path / "empty.yaml"))


@pytest.mark.parametrize("command", ["validate", "run"])
def test_cli_exits_with_2_and_one_message(command: str) -> None:
    result = CliRunner().invoke(app, [command, "demo", "search.trials=none"])
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert "search.trials: input should be a valid integer" in result.output


def test_cli_describes(raw: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    result = CliRunner().invoke(app, ["validate", str(path)])
    assert result.exit_code == 0, result.output
    assert "4 configurations × 1 seeds" in result.output
    assert "stages.init.weight_selection.element_rule" in result.output
    methods = CliRunner().invoke(app, ["methods"])
    assert "weight_selection" in methods.output
    assert "element_rule" in methods.output
    listed = CliRunner().invoke(app, ["presets"])
    assert all(name in listed.output for name in preset_names())


def test_schema_accepts_what_we_accept(raw: dict[str, Any]) -> None:
    schema = spec_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(raw)
    for name in preset_names():
        validator.validate(parse_yaml(preset_text(name), name)[0])
    for path, value in [
        (("search", "trails"), 3),
        (("stages", "finetune", "lrr"), 1),
        (("stages", "teacher", "stage"), "nothing"),
    ]:
        wrong = json.loads(json.dumps(raw))
        node = wrong
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(wrong)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-5, 10**20)
    | st.floats()
    | st.text(max_size=6)
    | st.dates()
    | st.binary(max_size=4)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=3)
    ),
    max_leaves=5,
)
PATHS = st.sampled_from(
    [
        "name",
        "seed",
        "storage",
        "source",
        "source.model",
        "source.args",
        "source.args.depth",
        "source.checkpoint",
        "data",
        "data.dataset",
        "data.root",
        "data.mean",
        "data.limit",
        "stages",
        "stages.teacher",
        "stages.init",
        "stages.init.one_of",
        "stages.init.one_of.random_init",
        "stages.init.*.args",
        "stages.finetune.lr",
        "stages.finetune.augment",
        "stages.finetune.distill",
        "stages.finetune.warmup",
        "stages.finetune.stage",
        "objectives",
        "objectives.0",
        "objectives.0.metric",
        "search",
        "search.trials",
        "search.sampler",
        "search.sampler_options",
        "search.points",
        "search.space",
        "search.space.stages.finetune.lr",
        "search.space.stages.init.*.args",
        "search.space.stages.init.weight_selection.args.depth",
        "search.space.source.model",
        "resources",
        "resources.cpus",
        "measure",
        "new.key",
    ]
)


@pytest.mark.parametrize(
    ("in_the_spec", "overrides"),
    [
        ({}, ["stages.init.one_of={0: null}", "stages.init.*.args=1"]),
        ({0: None}, ["stages.init.*.args.depth=2"]),
    ],
)
def test_keys_of_numbers_are_refused_before_an_override_goes_through_them(
    raw: dict[str, Any], in_the_spec: dict[Any, Any], overrides: list[str]
) -> None:
    raw["stages"]["init"]["one_of"] |= in_the_spec
    with pytest.raises(
        SpecError, match=r"stages\.init\.one_of: keys must be text; got 0"
    ):
        apply_overrides(raw, overrides)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(changes=st.lists(st.tuples(PATHS, VALUES), min_size=1, max_size=3))
def test_fuzzed_specs_are_refused_or_accepted_cleanly(
    raw: dict[str, Any], changes: list[tuple[str, Any]]
) -> None:
    from sweeps.space.overrides import set_override

    spec = json.loads(json.dumps(raw))
    with contextlib.suppress(SpecError):  # anything else escapes and fails
        for path, value in changes:
            set_override(spec, path, value)
        check_spec(spec_from(spec))


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(max_size=60)
    | st.binary(max_size=40).map(lambda b: b.decode("latin-1"))
)
def test_fuzzed_yaml_is_refused_or_parsed(text: str) -> None:
    with contextlib.suppress(SpecError):
        parse_yaml(text, "fuzz")


def test_an_old_key_is_accepted_with_a_note(raw: dict[str, Any]) -> None:
    """`watch` was the name of `trackers` in version 0.1."""
    values, notes = renamed(raw | {"watch": {"mlflow": {"experiment": "x"}}})
    assert "watch" not in values
    assert notes == [
        "watch: this key is called trackers now; version 0.3 will refuse the old name"
    ]
    spec = spec_from(raw | {"watch": {"mlflow": {"experiment": "x"}}})
    assert spec.trackers.mlflow is not None
    assert spec.trackers.mlflow.experiment == "x"
    assert renamed(raw) == (raw, [])
    with pytest.raises(SpecError, match="watch: is the old name of trackers"):
        spec_from(raw | {"watch": {}, "trackers": {}})


def test_early_stopping_watches_any_metric_of_an_epoch(raw: dict[str, Any]) -> None:
    """What is better follows from the metric's own declaration."""
    for metric, better in (("auroc", "max"), ("ece", "min"), ("train_loss", "min")):
        raw["search"]["early_stopping"] = {"scheduler": "asha", "metric": metric}
        rule = check_spec(spec_from(raw)).spec.search.early_stopping
        assert rule is not None
        assert rule.direction == better
    raw["search"]["early_stopping"] = {"scheduler": "asha", "metric": "f1_macro"}
    raw["data"]["val_fraction"] = 0
    raw["objectives"] = [{"metric": "gmacs", "mode": "min"}]
    with pytest.raises(SpecError, match="f1_macro needs a validation part"):
        check_spec(spec_from(raw))
    raw["search"]["early_stopping"]["metric"] = "train_loss"
    check_spec(spec_from(raw))


@pytest.mark.parametrize("key", ["<", "<other>", "function-x", "tuple[", "0", ""])
def test_unknown_keys_of_any_form_are_named(raw: dict[str, Any], key: str) -> None:
    raw["stages"]["init"]["one_of"]["random_init"] = {key: 1}
    with pytest.raises(SpecError, match=re.escape(f"stages.init.{key}: unknown key")):
        check_spec(spec_from(raw))


def aliases_of_aliases(levels: int, form: str) -> str:
    """Nine aliases of the level above on each level: 9 to the power of `levels` values."""
    lines = ["a0: &a0 {x0: 1}"]
    for level in range(1, levels):
        inner = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} " + form.format(inner))
    return "\n".join(lines)


@pytest.mark.parametrize("form", ["[{}]", "{{<<: [{}]}}", "{{b: [{}]}}"])
def test_aliases_that_explode_are_refused_at_once(form):
    began = time.process_time()
    with pytest.raises(SpecError, match=r"aliases stand for more than 100,000 values"):
        parse_yaml(aliases_of_aliases(12, form), "x.yaml")
    assert time.process_time() - began < 1


def test_an_alias_of_itself_is_refused_and_others_are_read():
    with pytest.raises(SpecError, match="aliases stand for more than"):
        parse_yaml("a: &a [1, *a]", "x.yaml")
    text = "a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\n---\nd: 3"
    assert parse_yaml(text, "x.yaml") == [
        {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}},
        {"d": 3},
    ]


def test_a_huge_spec_is_not_read(tmp_path):
    path = tmp_path / "x.yaml"
    with path.open("wb") as file:
        file.truncate(2**35)
    with pytest.raises(SpecError, match="34,359,738,368 bytes are no spec"):
        load_spec(str(path))
