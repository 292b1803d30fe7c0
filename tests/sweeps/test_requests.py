"""What somebody asks a running sweep for, through files in its run folder."""

from sweeps.run.requests import ask_for, read_requests
from tests.sweeps.helpers import begin, finish, records, searcher

LR = "stages.finetune.lr"
METRICS = {"accuracy": 0.5, "gmacs": 1.0}


def drawn(run):
    return [dict(r.plan.configuration) for r in records(run).values()]


def test_a_request_takes_the_next_place_and_the_search_goes_on_as_recorded(
    raw, tmp_path
):
    """Uninterrupted, and with the driver dead after each trial: the same configurations."""
    wanted = {"stages.init": "none", LR: 0.005}
    found = []
    for name, is_killed in (("whole", False), ("killed", True)):
        run = tmp_path / name
        search = searcher(raw, run, trials=5)
        for number in range(5):
            if number == 2:
                ask_for(run, wanted)
            if is_killed:
                search = searcher(raw, run, trials=5)
            finish(search, **METRICS)
        assert search.ask() is None
        found.append(drawn(run))
        assert read_requests(run)["0000"].number == 2
    assert found[0][2] == wanted
    assert found[0] == found[1]
    assert found[0].count(wanted) == 1


def test_what_a_request_leaves_open_is_drawn(raw, tmp_path):
    search = searcher(raw, tmp_path)
    ask_for(tmp_path, {LR: 0.005})
    assert begin(search).plan.configuration[LR] == 0.005
    assert "stages.init" in drawn(tmp_path)[0]


def test_requests_that_cannot_be_tried_say_why(raw, tmp_path):
    search = searcher(raw, tmp_path, trials=3)
    tried = dict(finish(search, **METRICS).plan.configuration)
    for configuration in ({LR: 7.0}, {"stages.finetune.x": 1}, tried):
        ask_for(tmp_path, configuration)
    (tmp_path / "requests" / "0009.json").write_text("{half")
    begin(search)
    said = [r.refused for r in read_requests(tmp_path).values()]
    assert "is not in" in said[0]
    assert "is no dimension" in said[1]
    assert said[2] == "this configuration was tried already"


def test_a_request_that_a_dead_driver_answered_is_answered_again(raw, tmp_path):
    """It wrote the number and died before there was a plan."""
    search = searcher(raw, tmp_path)
    ask_for(tmp_path, {LR: 0.005})
    search._named.next(0, set(), [])
    assert read_requests(tmp_path)["0000"].number == 0
    again = searcher(raw, tmp_path)
    assert begin(again).plan.configuration[LR] == 0.005


def test_a_grid_tries_what_is_asked_for_once(raw, tmp_path):
    space = {"stages.finetune.lr": [1e-4, 1e-3, 1e-2]}
    raw["search"]["space"] = space
    raw["stages"].pop("init")
    search = searcher(raw, tmp_path, sampler="grid", trials=3)
    ask_for(tmp_path, {LR: 1e-2})
    lrs = [finish(search, **METRICS).plan.configuration[LR] for _ in range(3)]
    assert lrs == [1e-2, 1e-4, 1e-3]
    assert search.ask() is None


def test_the_wish_to_stop_can_be_withdrawn_while_a_trial_runs(raw, tmp_path):
    search = searcher(raw, tmp_path)
    running = begin(search)
    (tmp_path / "stop").touch()
    assert search.ask() is None
    assert search.is_waiting
    (tmp_path / "stop").unlink()
    assert begin(search).trial_id == "00001"
    (tmp_path / "stop").touch()
    assert search.ask() is None
    for record in (running, records(tmp_path)["00001"]):
        record.finish("complete", metrics=METRICS)
        search.tell(record)
    assert search.ask() is None
    assert search.halted
    assert not search.is_waiting
