"""Ray Tune as we use it: it knows the ids of trials and nothing else.

Tune keeps each trial to the end of the sweep, with several copies of its configuration; so the
plan stays in the run folder. `ray.tune.run` is used, and not `Tuner`, because a `Tuner` pickles
searcher and callbacks, which it would never load here. What a hook raises ends Tune's run through
`TuneRun.guarded`, and a run that is over is told nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from sweeps.drive.trial_events import TrialEvents
from sweeps.drive.tune_run import TuneRun
from sweeps.run.plan import Site
from sweeps.run.record import Outcome
from sweeps.trial.epoch_curve import EpochReport

TrialFunction = Callable[..., Outcome]
"""(plan, site, execute=…, on_epoch=…) → outcome: `run_trial`, or what a test puts in its place."""

ID = "trial_id"
"""The only key of a configuration as Tune sees it."""


class TuneSearcher(Searcher):
    """Asks for the next trial, and says which have ended."""

    def __init__(self, events: TrialEvents, run: TuneRun) -> None:
        super().__init__()
        self.events, self.run = events, run
        self._ids: dict[str, str] = {}  # Tune's name of a trial → ours

    # Ray's signature leaves out FINISHED, which is a text
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The id of the next trial; None: none now, ask again; FINISHED: none is left."""
        if self.run.wants_end():
            return Searcher.FINISHED
        with self.run.guarded():
            plan = self.events.next_plan()
            if plan is not None:
                self._ids[trial_id] = plan.trial_id
                return {ID: plan.trial_id}
            if self.events.search.is_waiting:
                return None
        return Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if self.run.is_over:
            return
        with self.run.guarded():
            self.events.ended(self._ids.pop(trial_id), died=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing but a file that Tune looks for: the study and the records are the state."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study and the records are the state."""


class TuneScheduler(FIFOScheduler):
    """Passes on each epoch, and ends the trials that are given up."""

    def __init__(self, events: TrialEvents, run: TuneRun) -> None:
        super().__init__()
        self.events, self.run = events, run

    def on_trial_result(
        self, tune_controller: Any, trial: Any, result: dict[str, Any]
    ) -> str:
        """STOP or CONTINUE."""
        if "epoch" not in result or self.run.is_over:
            return TrialScheduler.CONTINUE
        with self.run.guarded():
            report = EpochReport.from_row(result)
            if self.events.reported(trial.config[ID], report):
                return TrialScheduler.STOP
        return TrialScheduler.CONTINUE


class TuneCallback(Callback):
    """Passes on what happens to trials."""

    def __init__(self, events: TrialEvents, run: TuneRun) -> None:
        self.events, self.run = events, run

    def on_trial_start(
        self, iteration: int, trials: list[Any], trial: Any, **info: Any
    ) -> None:
        self._pass_on(lambda: self.events.started(trial.config[ID]))

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Any],
        trial: Any,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        if "status" in result:
            self._pass_on(lambda: self.events.finished(result.get("fault")))

    def on_trial_recover(
        self, iteration: int, trials: list[Any], trial: Any, **info: Any
    ) -> None:
        self._pass_on(lambda: self.events.will_run_again(trial.config[ID]))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._pass_on(self.events.step)

    def _pass_on(self, event: Callable[[], None]) -> None:
        if not self.run.is_over:
            with self.run.guarded():
                event()


class StopWhen(Stopper):
    """Ends all trials as soon as a question is answered with yes."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self.asked = asked

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.asked()

    def __reduce__(self) -> tuple[type[StopWhen], tuple[Callable[[], bool]]]:
        """Tune writes it down, and never reads it here: the records are the state."""
        return StopWhen, (bool,)


def trainable_of(trial: TrialFunction, site: Site, distributed: bool) -> Any:
    """The Tune function: the id of a trial in, its status out."""
    site_json = site.model_dump(mode="json")

    # nested, so that it is pickled by value: a trial's process need not import the driver
    def trainable(config: dict[str, Any]) -> None:
        from sweeps.trial.in_tune import run_in_tune

        run_in_tune(trial, config["trial_id"], site_json, distributed)

    return trainable
