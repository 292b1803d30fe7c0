"""Checkpoints of a fit: whole or absent, read without unpickling code."""

import io
import logging
import pickle
from pathlib import Path
from typing import Any

import torch

from trainers.files import write_atomic

_log = logging.getLogger(__name__)


class CheckpointFolder:
    """The newest `keep` checkpoints of one fit, as `epoch-NNNNN.pt`."""

    def __init__(self, folder: Path, keep: int = 1) -> None:
        self.folder, self.keep = folder, keep

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("epoch-*.pt"))

    def path(self, epoch: int) -> Path:
        """Of the state after `epoch` epochs."""
        return self.folder / f"epoch-{epoch:05d}.pt"

    def newest(self) -> tuple[int, Path] | None:
        """Epochs and file of the newest state; None where there is none."""
        files = self._files()
        return (
            (int(files[-1].stem.removeprefix("epoch-")), files[-1]) if files else None
        )

    def save(self, epoch: int, state: dict[str, Any]) -> None:
        """Publish the state after `epoch` epochs, then drop older ones beyond `keep`."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(self.path(epoch), buffer.getvalue())
        for old in self._files()[: -self.keep]:
            old.unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """The newest state that can be read, or None. A damaged file is named in a warning, and
        an older one is tried.
        """
        for path in reversed(self._files()):
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except (
                RuntimeError,
                OSError,
                EOFError,
                ValueError,
                pickle.UnpicklingError,
            ) as error:
                _log.warning(
                    "checkpoint %s is not readable (%s); using an earlier one",
                    path,
                    error,
                )
        return None
