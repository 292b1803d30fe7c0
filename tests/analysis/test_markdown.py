"""A run in Markdown: text from it stays text."""

from __future__ import annotations

import re

import analysis
from analysis.report.markdown import code

EVIL = "<img src=x onerror=alert(1)> [a](javascript:1) `b` | c\n# d @everyone"


def test_markdown_keeps_text_as_text(make_run, tmp_path):
    def change(record):
        record["config"]["init"] = (
            EVIL if record["config"]["init"] == "none" else record["config"]["init"]
        )
        if record["error"]:
            record["error"] = {"type": "E", "message": EVIL, "traceback": ""}

    run = analysis.load(
        make_run(change=change, header={"name": EVIL, "command": "run ```\n<b>x</b>"})
    )
    text = analysis.write_markdown(run, tmp_path / "out.md", by="init").read_text()
    outside = re.sub(r"(`{3,}).*?\1", "", text, flags=re.DOTALL)
    outside = re.sub(r"`[^`\n]*`", "", outside)
    assert not re.search(r"<img|javascript|@everyone|<b>|^# d", outside, re.MULTILINE)
    assert "40 trials: 31 complete" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", a)) >= 3 for a in tables)


def test_code_span():
    assert code("a`b|c\n d") == "`a'b\\|c d`"
    assert code("") == "` `"


def test_markdown_of_several_runs_names_figures_and_is_cut(make_run, tmp_path):
    runs = [
        analysis.load(make_run(name, trials=90, replicates=2, seed=seed))
        for seed, name in enumerate(("one", "two"))
    ]
    merged = analysis.merge(runs)
    figures = [tmp_path / "front.png", tmp_path.parent / "elsewhere.png"]
    text = analysis.write_markdown(
        merged, tmp_path / "a.md", figures=figures
    ).read_text()
    assert "![front](<front.png>)" in text
    assert f"![elsewhere](<{(tmp_path.parent / 'elsewhere.png').as_posix()}>)" in text
    assert "## Compared by `run`" in text
    assert "±" in text
    empty = analysis.load(make_run("empty", trials=0, header={"command": ""}))
    text = analysis.write_markdown(empty, tmp_path / "b.md").read_text()
    assert "0 trials: none." in text
    assert "## Picks" not in text


def test_remarks_of_a_run_stand_in_report_and_markdown(make_run, tmp_path):
    remark = "The classifier is fresh: <b>10</b> classes in the file, 4 in the data."
    header = {"data": "4 classes (a, b, c, d), 9 train", "remarks": [remark, remark]}
    run = analysis.load(make_run(header=header))
    assert (run.data, run.remarks) == (header["data"], [remark])
    text = analysis.write_markdown(run, tmp_path / "out.md").read_text()
    assert f"## Data and source\n\n- `{header['data']}`\n- `{remark}`\n" in text
    page = analysis.write_report(run, tmp_path / "out.html").read_text()
    assert "fresh: &lt;b&gt;10&lt;/b&gt; classes" in page
    other = analysis.load(make_run("other", header={"remarks": "no list"}))
    assert other.remarks == []
    assert any("remarks must be a list" in problem for problem in other.problems)
    merged = analysis.merge([run, other])
    assert merged.remarks[1].endswith(remark)
