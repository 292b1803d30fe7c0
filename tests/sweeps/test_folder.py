"""The run folder of somebody else is not written through its links."""

import pytest

from sweeps.run.folder import refuse_links


@pytest.mark.parametrize(
    "link", ["trials", "trials/00000", "trials/00000/epochs.jsonl"]
)
def test_links_that_lead_out_are_refused(tmp_path, link):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (run / link).parent.mkdir(parents=True)
    refuse_links(run)
    (run / link).symlink_to(elsewhere)
    with pytest.raises(ValueError, match=f"{link}: a link leads out of the run folder"):
        refuse_links(run)


def test_links_within_the_run_may_be(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    refuse_links(tmp_path)
