"""Checkpoints of a distillation: sealed folders ``checkpoint-<step>`` in the trial's directory."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_model, save_file
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


class CheckpointWriter:
    """Writes the checkpoints of one distillation in a thread, while training goes on.

    Each write needs a copy of the weights and of the optimizer's state, 12 bytes a parameter, in the host's memory. One
    checkpoint is written at a time. Leaving the ``with`` block waits for it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()

    def save(self, student: PreTrainedModel, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Copy the state now, and write the checkpoint of ``progress.step`` in the background.

        It waits for the write before. When the checkpoint is durable, all but the newest `KEPT` are removed.
        """
        self.wait()
        weights, state = _on_host(_once(student)), _on_host(optimizer.state_dict())
        self._writing = self._thread.submit(_write, self._directory, weights, state, progress)

    def wait(self) -> None:
        """Wait until all checkpoints are durable. Raises the error of the write, such as OSError for a full disk."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    @property
    def durable(self) -> bool:
        """Whether all checkpoints are on disk. Raises the error of a write that failed."""
        if self._writing is not None and self._writing.done():
            self.wait()
        return self._writing is None


def _once(student: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The state of ``student``. A tensor that has several names, as tied embeddings have, appears under one."""
    names: dict[int, str] = {}
    state = student.state_dict()
    return {name: one for name, one in state.items() if names.setdefault(one.data_ptr(), name) == name}


def _on_host(value: Any) -> Any:
    """A copy of a nested state with all its tensors on the host."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_host(one) for key, one in value.items()}
    return [_on_host(one) for one in value] if isinstance(value, list) else value


def _write(directory: Path, weights: dict[str, torch.Tensor], optimizer: Any, progress: Progress) -> None:
    def write(folder: Path) -> None:
        save_file(weights, folder / STUDENT)
        torch.save(optimizer, folder / OPTIMIZER)
        (folder / PROGRESS).write_text(json.dumps(asdict(progress)))

    write_sealed(directory / f"checkpoint-{progress.step:08d}", write)
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
