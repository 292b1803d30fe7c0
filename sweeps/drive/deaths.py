"""Why a trial's process ended before its trial did, in words for the trial's record."""

from __future__ import annotations

from dataclasses import dataclass

from ray.exceptions import (
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from sweeps.run.faults import TrialError
from trainers.words import one_line

KILLED_FOR_MEMORY = "OutOfMemory"
"""Kind of a death by Ray's memory monitor."""


@dataclass(frozen=True)
class Death:
    """What ended a trial's process.

    Attributes:
        kind: as an error's type in the record.
        happened: to the process, as a whole clause in the past tense.
        hint: what may have been behind it, or what to do.
        message, traceback: of the error that it raised, if it was one.
    """

    kind: str = "ProcessDied"
    happened: str = "its process died, or its node did"
    hint: str = ""
    message: str = ""
    traceback: str = ""

    def error(self, times: int) -> TrialError:
        """For the record of a trial that has died `times` times."""
        if self.message:
            said = self.message
        elif self == Death():
            said = f"the trial's process died {times} times; out of memory?"
        else:
            count = "once" if times == 1 else f"{times} times, at last like this"
            said = f"the trial's process died {count}: {self.happened}"
        message = f"{said}; {self.hint}" if self.hint else said
        return TrialError(type=self.kind, message=message, traceback=self.traceback)


def death_of(error: Exception) -> Death:
    """What an error says that Ray gives instead of a trial's result."""
    if isinstance(error, RayTaskError):
        return _of_raised(error)
    if isinstance(error, OutOfMemoryError):
        return Death(
            KILLED_FOR_MEMORY,
            "it was killed, since its node had almost no memory left",
            "lower the batch size or resources.concurrent, or take nodes with more memory",
        )
    if isinstance(error, NodeDiedError):
        return Death("NodeDied", "its node died")
    if isinstance(error, RuntimeEnvSetupError):
        said = one_line(error)
        return Death(
            "NodeSetup",
            "its node could not set up our code",
            "--no-ship uses what the nodes' image has",
            f"its node could not set up our code: {said}",
        )
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return Death("StartFailed", "it failed while it started", "", str(error))
    return Death()


def _of_raised(error: RayTaskError) -> Death:
    """An error that the trial's process raised outside the trial's own work."""
    cause = error.cause if isinstance(error.cause, BaseException) else error
    kind = type(cause).__name__
    return Death(
        kind,
        f"its process could not run it ({kind})",
        message=str(cause) or kind,
        traceback=str(error),  # Ray's own text of it
    )
