"""Checkpoints of a distillation: sealed folders ``checkpoint-<step>`` in the trial's directory."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from transformers import PreTrainedModel

from trials.storage.durable import damage, sweep, write_sealed

KEPT = 2  # the newest, and one more in case the newest is damaged
STUDENT, OPTIMIZER, PROGRESS = "student.safetensors", "optimizer.pt", "progress.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rung:
    """The metrics measured at one rung, after ``tokens`` distilled tokens."""

    tokens: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Progress:
    """The progress of a distillation, without weights and optimizer state.

    ``kl_sum`` sums the KL of the ``kl_steps`` steps since the last rung. Random state is not needed, because batches
    follow from the step and there is no dropout.
    """

    identity: str
    step: int = 0
    seconds: float = 0.0
    kl_sum: float = 0.0
    kl_steps: int = 0
    rungs: tuple[Rung, ...] = ()

    @classmethod
    def from_dict(cls, value: dict[str, object]) -> Progress:
        """The inverse of `dataclasses.asdict`."""
        progress = cls(**value)  # type: ignore[arg-type]
        return replace(progress, rungs=tuple(Rung(**rung) for rung in progress.rungs))  # type: ignore[arg-type]


def save_checkpoint(
    directory: Path, student: PreTrainedModel, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write the checkpoint of ``progress.step`` atomically, then remove all but the newest `KEPT`."""

    def write(folder: Path) -> None:
        save_model(student, str(folder / STUDENT))
        torch.save(optimizer.state_dict(), folder / OPTIMIZER)
        (folder / PROGRESS).write_text(json.dumps(asdict(progress)))

    path = directory / f"checkpoint-{progress.step:08d}"
    write_sealed(path, write)
    for old in list(_newest_first(directory))[KEPT:]:
        shutil.rmtree(old)


def load_checkpoint(
    directory: Path, student: PreTrainedModel, optimizer: torch.optim.Optimizer, identity: str
) -> Progress:
    """Restore ``student`` and ``optimizer`` in place from the newest intact checkpoint, and return its progress.

    Checkpoints that are damaged or of another ``identity`` (recipe, architecture, teacher, text) are removed with a
    warning in the log. If no checkpoint is left, nothing is restored and fresh progress is returned.
    """
    sweep(directory / "checkpoint-*")
    for path in _newest_first(directory):
        problem = damage(path)
        if problem is None:
            progress = Progress.from_dict(json.loads((path / PROGRESS).read_text()))
            if progress.identity == identity:
                load_model(student, str(path / STUDENT))
                optimizer.load_state_dict(torch.load(path / OPTIMIZER, weights_only=True))
                return progress
            problem = "it is of another recipe, architecture, teacher or corpus"
        log.warning("checkpoint %s is not used and is removed: %s", path, problem)
        shutil.rmtree(path)
    return Progress(identity)


def discard_checkpoints(directory: Path) -> None:
    """Remove all checkpoints of a trial that is finished or stopped for good."""
    for path in _newest_first(directory):
        shutil.rmtree(path)


def _newest_first(directory: Path) -> Iterator[Path]:
    return iter(sorted(directory.glob("checkpoint-*"), reverse=True))
