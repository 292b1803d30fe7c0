"""Inside a model: its layers, and what was counted by number."""

from __future__ import annotations

from analysis.report.layers import layer_data


def test_layers_of_the_picks_come_first(demo_run):
    data = layer_data(demo_run)
    assert [d["row"] for d in data[:3]] == list(
        dict.fromkeys([demo_run.picks()["knee"], *demo_run.picks().values()])
    )[:3]
    for shown in data:
        trial = demo_run.trials.iloc[shown["row"]]
        rows = demo_run.layers[demo_run.layers["trial_id"] == trial["trial_id"]]
        blocks = rows[rows["kind"] == "block"]
        assert shown["dims"]["mlp"] == blocks["mlp"].tolist()
        assert bool(shown["sources"]) == (trial["config/init"] == "sws_expand")
        assert shown["layers"] == rows[rows["kind"] == "Linear"]["layer"].tolist()
        family = shown["counts"][0]
        assert family["name"] == "order"
        assert [item[:2] for item in family["items"]] == [
            [0, 120],
            [1, 52000],
            [2, 9400],
            [3, 310],
        ]
        assert family["items"][2][2] == "weights fixed to a sum of 2 powers of two"
        assert shown["quantised"]
        assert sum(shown["histogram"]["counts"]) > 1e4
