"""Options of the trackers: where trials are shown besides the records."""

from typing import Literal

from pydantic import ConfigDict, Field, JsonValue

from trainers.config import Config
from trainers.option_types import UserText


class MLflow(Config):
    """Trials as runs of an MLflow experiment (needs the extra `mlflow`)."""

    tracking_uri: UserText | None = Field(
        None, description="default: MLflow's own setting"
    )
    experiment: str | None = Field(None, description="default: the sweep's name")


class WandB(Config):
    """Trials as runs of a Weights & Biases project (needs the extra `wandb`)."""

    project: str | None = Field(None, description="default: the sweep's name")
    entity: str | None = Field(None, description="user or team; default: W&B's own")
    mode: Literal["online", "offline"] | None = Field(
        None, description="default: as the variable WANDB_MODE says, else online"
    )


class Trackers(Config):
    """Where trials are shown besides the records and TensorBoard.

    A further key is the name of a plugin's tracker, its value a mapping of that one's options.
    """

    model_config = ConfigDict(extra="allow")

    mlflow: MLflow | None = Field(
        None, description="runs of an MLflow experiment (extra `mlflow`)"
    )
    wandb: WandB | None = Field(
        None, description="runs of a Weights & Biases project (extra `wandb`)"
    )

    @property
    def others(self) -> dict[str, JsonValue]:
        """Name → options of the plugins' trackers that are asked for."""
        return dict(self.model_extra or {})
