"""Fresh weights: the baseline that initialisations are compared with."""

from typing import ClassVar

from compress.stage import Context, Phase
from compress.student import StudentStage
from trainers.models.arch import ModelState


class RandomInit(StudentStage):
    """The architecture's own initialiser, from the stage's seed; the incoming weights are not used.

    For the same seed its classifier is that of every other initialiser that leaves the
    classifier alone.
    """

    phase: ClassVar[Phase] = "init"
    version: ClassVar[int] = 1

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        return ModelState.initialised(self.check(model.arch, ctx.data.info), ctx.seed)
