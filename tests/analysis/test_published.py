"""Tables in documents against the Parquet files that they are queries over."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.published import main, render

DOCUMENT = """# Results
<!-- table trials=results/a.parquet others=results/b.parquet
select init as "start | here", printf('%.1f %%', 100 * avg(accuracy)) as accuracy, count(*) as n
from trials join others using (trial) group by 1 order by 1
-->
| stale |
|---|

Text stays.
"""
TABLE = """| start \\| here | accuracy | n |
| --- | --- | ---: |
| none | 50.0 % | 1 |
| random | 85.0 % | 2 |
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "results").mkdir()
    init = ["random", "none", "random"]
    pq.write_table(
        pa.table({"trial": [0, 1, 2], "init": init}), tmp_path / "results/a.parquet"
    )
    pq.write_table(
        pa.table({"trial": [0, 1, 2], "accuracy": [0.8, 0.5, 0.9]}),
        tmp_path / "results/b.parquet",
    )
    (tmp_path / "doc.md").write_text(DOCUMENT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_tables_are_checked_and_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doc.md"]) == 1
    told = capsys.readouterr().out
    assert "+| random | 85.0 % | 2 |" in told
    assert "they differ" in told
    assert main(["doc.md", "--write"]) == 0
    written = (folder / "doc.md").read_text()
    assert TABLE + "\nText stays.\n" in written
    assert main(["doc.md"]) == 0
    assert "1 tables in 1 documents: all as published" in capsys.readouterr().out
    (folder / "doc.md").write_text(written.replace("85.0", "85.1"))
    assert main(["doc.md"]) == 1


def test_bad_blocks_are_refused(folder: Path) -> None:
    with pytest.raises(
        ValueError,
        match=(
            r"'trials=gone\.parquet': write name=path of a Parquet file that is there"
        ),
    ):
        render("<!-- table trials=gone.parquet\nselect 1\n-->\n", folder)
    with pytest.raises(ValueError, match=r"query: .*nothing_there"):
        render(
            "<!-- table trials=results/a.parquet\nselect * from nothing_there\n-->\n",
            folder,
        )
    with pytest.raises(ValueError, match=r"query: "):
        render(
            "<!-- table trials=results/a.parquet\nselect * from"
            " 'results/b.parquet'\n-->\n",
            folder,
        )


def test_the_tables_of_this_project_follow_from_its_results() -> None:
    root = Path(__file__).parents[2]
    text = (root / "docs" / "results.md").read_text(encoding="utf-8")
    assert render(text, root) == text
