"""What one more trial costs the driver in a long study, and what opening that study takes.

OMP_NUM_THREADS=1 python benchmarks/search_scale.py [--trials 10000] [--sampler tpe]

The study is written as trials that ended, two objectives and five parameters, in a journal file as
a run folder has it, with a plan and a record of each. Printed, in seconds of CPU time: opening the
journal, taking up the whole run again (`StudySearch`), choosing a configuration, and asking for it
and telling it; and the peak of the process's memory.
"""

import argparse
import dataclasses
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial
from written_runs import write_trial

from sweeps.check import load_spec
from sweeps.run.storage import RunStorage
from sweeps.search.costs import Known
from sweeps.search.optuna_internals import enqueue_again
from sweeps.search.plans import new_plan
from sweeps.search.prefixes import REST
from sweeps.search.proposals import Proposals
from sweeps.search.searcher import StudySearch
from sweeps.search.study import checked_draw, open_study
from sweeps.space.sweep import Sweep
from sweeps.spec.search_options import Search

DRAWS = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--sampler", default="tpe")
    options = parser.parse_args()
    sweep = load_spec("benchmarks/search_prefix.yaml")
    raw = sweep.spec.search.model_dump(by_alias=True)
    raw |= {"sampler": options.sampler, "trials": 2 * options.trials}
    spec = sweep.spec.model_copy(update={"search": Search.model_validate(raw)})
    known = _known(sweep, options.trials)
    trials = [_ended(sweep, each) for each in known]
    with tempfile.TemporaryDirectory() as folder:
        study, _ = open_study(sweep, Path(folder))
        study.add_trials(trials)
        del study
        begun = time.process_time()
        study, _ = open_study(sweep, Path(folder))
        print(f"opening {options.trials} trials: {time.process_time() - begun:.2f} s")
        _measure(sweep, spec, study, known)
        del study
        larger = dataclasses.replace(sweep, spec=spec)
        _write_records(larger, Path(folder), known)
        begun = time.process_time()
        search = StudySearch(larger, RunStorage(Path(folder)))
        spent = time.process_time() - begun
        print(f"taking up a run of {options.trials} trials: {spent:.2f} s")
        assert search.ask() is not None  # the baseline
        begun = time.process_time()
        assert search.ask() is not None
        print(f"its first trial: {time.process_time() - begun:.2f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory: {peak:.2f} GB")


def _known(sweep: Sweep, trials: int) -> list[Known]:
    """Random configurations with random objectives."""
    rng = np.random.default_rng(0)
    seconds = {"teacher": 30.0, "train": 5.0, "prune": 1.0, "store": 0.1, REST: 0.2}
    known = []
    for number in range(trials):
        draw: dict = {}
        for dimension in sweep.space.dimensions:
            if dimension.active(draw):
                draw |= dimension.at(lambda name: float(rng.random()))
        values = (float(rng.random()), float(rng.random()) * 1e5)
        known.append(Known(number, draw, values, dict(seconds)))
    return known


def _ended(sweep: Sweep, known: Known) -> optuna.trial.FrozenTrial:
    """A trial of Optuna's that has ended with what is known."""
    return create_trial(
        state=TrialState.COMPLETE,
        values=known.values,
        params=known.draw,
        distributions=checked_draw(sweep.space, known.draw)[1],
        user_attrs={"number": known.number},
    )


def _write_records(sweep: Sweep, run: Path, known: list[Known]) -> None:
    """Plans and records of trials that ended, without waiting for the disk."""
    for each in known:
        assert each.values is not None
        values = zip(sweep.spec.objectives, each.values, strict=True)
        metrics = {objective.metric: value for objective, value in values}
        plan = new_plan(sweep, each.number, 0, each.draw)
        write_trial(run, plan, metrics, each.seconds)


def _measure(sweep, spec, study: optuna.Study, known: list[Known]) -> None:
    proposals = Proposals(spec, sweep.space, study)
    for each in known:
        proposals.learn(each)
    tried = {sweep.space.identity(each.draw) for each in known}
    chosen, told = [], []
    for number in range(len(known), len(known) + DRAWS):
        begun = time.process_time()
        found = proposals.choose(number, 0.5, tried)
        chosen.append(time.process_time() - begun)
        assert found is not None
        begun = time.process_time()
        enqueue_again(study, found.draw, found.notes, {"number": number})
        trial = study.ask()
        sweep.space.suggest(trial)
        study.tell(trial, [0.5, 5e4])
        told.append(time.process_time() - begun)
        tried.add(sweep.space.identity(found.draw))
    print(f"choosing: {chosen[0]:.3f} s at first, then {np.median(chosen[1:]):.3f} s")
    print(f"asking and telling: {np.median(told):.3f} s")


if __name__ == "__main__":
    main()
