"""What the commands say about the package: options, methods, version; and shell completion."""

import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compress.pipeline import stages
from sweeps.cli import options as command
from sweeps.cli.main import app
from sweeps.describe import Told, headline, metric_lines, option_lines
from sweeps.spec.options import (
    Option,
    options_of_section,
    options_of_spec,
    options_of_stage,
    sections,
)

WIDTH = 80


def every_option() -> dict[str, list[Option]]:
    """The options of each section and stage, and the keys of a spec."""
    found = {name: options_of_section(name) for name in sections()}
    found |= {kind: options_of_stage(stage) for kind, stage in stages().items()}
    return found | {"": options_of_spec()}


def said(*arguments: str, **environment: str) -> str:
    done = CliRunner().invoke(app, arguments, env=environment)
    assert done.exit_code == 0, done.output
    return done.output


def test_every_option_has_a_meaning() -> None:
    silent = [
        f"{place} {option.name}"
        for place, options in every_option().items()
        for option in options
        if not option.meaning
    ]
    assert not silent, "give these fields a description"


def test_completion_knows_every_section() -> None:
    assert set(command.SECTIONS) == set(sections())


def test_options_in_words() -> None:
    found = {option.name: option for option in options_of_section("data")}
    assert next(iter(found)) == "dataset"  # its own before those that it takes over
    size = found["image_size"]
    assert (size.type, size.default, size.unit) == ("int ≥ 4", "null", "px")
    assert found["in_memory"].type == "auto | yes | no"
    assert found["mean"].default == "[0.485, 0.456, 0.406]"
    of_search = {option.name: option for option in options_of_section("search")}
    assert of_search["from"].type == "list of path"  # as a spec writes it
    assert of_search["early_stopping.scheduler"].default is None
    of_measure = [option.name for option in options_of_section("measure")]
    assert "also.NAME.runtime" in of_measure
    tuned = {option.name: option for option in options_of_stage(stages()["wfn"])}
    assert tuned["lr"].default == "2e-05"
    assert tuned["lr"].meaning == "at a global batch of 512"  # of the class it changes


def test_lines_fit_and_names_are_whole() -> None:
    for place, options in every_option().items():
        lines = [line.plain for line in option_lines(options, WIDTH)]
        assert max(map(len, lines)) <= WIDTH, place
        begins = [line[2:].split()[0] for line in lines if not line.startswith("   ")]
        assert begins == [option.name for option in options]
    assert max(len(line.plain) for line in metric_lines(WIDTH)) <= WIDTH


def test_all_methods_say_each_option_once() -> None:
    told = Told()
    text = ""
    for kind, stage in stages().items():
        lines = [*headline(kind, stage, WIDTH)]
        lines += told.lines(kind, options_of_stage(stage), WIDTH)
        assert all(len(line.plain) <= WIDTH for line in lines)
        text += "".join(f"{line.plain}\n" for line in lines)
    assert len(re.findall(r"^  augment\.mixup ", text, re.MULTILINE)) == 1
    of_wfn = " ".join(text.partition("\nwfn ")[2].partition("\nint8 ")[0].split())
    assert re.search(
        r"and as in finetune: \d+ options; other defaults: lr = 2e-05", of_wfn
    )
    assert "order_0 … order_40" in of_wfn


def test_the_command_options() -> None:
    assert "sweeps options SECTION" in said("options")
    table = said("options", "search", "--markdown").splitlines()
    assert table[0] == "| option | type | default | unit | meaning |"
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 6 for line in table)
    one = said("options", "stages.finetune.ema")
    assert re.findall(r"^  (\S+)", one, re.MULTILINE) == [
        "ema",
        "ema.decay",
        "ema.device",
        "ema.use",
    ]
    done = CliRunner().invoke(app, ["options", "data.imagesize"])
    assert "data has no option 'imagesize'; did you mean 'image_size'?" in done.output
    done = CliRunner().invoke(app, ["options", "serch"])
    assert done.exit_code == 2
    assert "no section or method 'serch'; did you mean 'search'?" in done.output


def test_version() -> None:
    assert re.match(
        r"compression-sweeps .* \(Python 3\.\d+\.\d+, torch \d", said("--version")
    )


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("sweeps opt", ["options"]),
        ("sweeps options me", ["measure"]),
        ("sweeps run wfn-resnet20-f", ["wfn-resnet20-front"]),
        ("sweeps front de", ["demo-here"]),
        ("sweeps export demo-here 0000", ["00000", "00007"]),
        ("sweeps run ./my", []),  # the shell's own completion of paths
    ],
)
def test_completion(
    words: str, offered: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "demo-here"
    for trial in ("00000", "00007"):
        (run / "trials" / trial).mkdir(parents=True)
    (run / "run.json").touch()
    (tmp_path / "runs" / "deleted").mkdir()
    monkeypatch.chdir(tmp_path)
    place = str(len(words.split()) - 1)
    asked = {
        "_SWEEPS_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": place,
    }
    done = CliRunner().invoke(app, [], prog_name="sweeps", env=os.environ | asked)
    assert done.output.split() == offered
