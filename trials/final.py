"""The one door to a final: a finished trial goes on from its own student, on more tokens, and is measured closely."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from trials.distill.checkpoint import discard_checkpoints
from trials.distill.distill import DistillResult, DistillSettings, Report, distill
from trials.distill.results import RESULT, STUDENT, read_result, save_student, write_result
from trials.families.base import compile_layers
from trials.losses.precision import compiles
from trials.losses.window_losses import WindowLosses, text_losses
from trials.preparation import Shared, shared
from trials.storage.cache import digest
from trials.storage.durable import MANIFEST, file_sha256
from trials.trial import TrialResult, TrialSpec, load_student, peak_memory, run_trial

# Of the trials' peak learning rate. At the whole of it the best students of mini came back to where they had begun;
# at a half all gained, those that were cut hard nearly as much as at the whole.
PEAK_SHARE = 0.5
VERSION = 5  # of what a final computes: raise it, and results and checkpoints of before are not taken up


@dataclass(frozen=True)
class FinalSpec:
    """The trial ``trial`` and, after it, ``tokens`` more of the same recipe; ``directory`` is the final's own."""

    trial: TrialSpec
    tokens: int
    directory: str

    def __post_init__(self) -> None:
        batch = self.trial.recipe.batch_tokens
        if self.tokens < 1 or self.tokens % batch:
            raise InputError(f"final tokens {self.tokens}: must be a multiple of the tokens of a step, {batch}")

    @property
    def rungs(self) -> tuple[int, ...]:
        """Where the loss is measured, in tokens beyond the trial's: half way and at the end."""
        batch = self.trial.recipe.batch_tokens
        return tuple(sorted({max(1, self.tokens // batch // share) * batch for share in (2, 1)}))

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "trial": self.trial.to_dict()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> FinalSpec:
        """The inverse of `to_dict`."""
        return cls(**{**value, "trial": TrialSpec.from_dict(value["trial"])})


@dataclass(frozen=True)
class FinalResult:
    """A finished final. ``tokens`` counts the trial's too, as does ``curve``, (tokens, validation loss).

    Losses are in nats per token on validation text: ``trial_loss`` at the end of the trial, ``val_loss`` now, and
    ``losses`` on each text where there are several; ``windows`` holds that of every window, by the name of its text.
    ``seconds`` and ``resumed_from`` (tokens) are of the final alone.
    """

    architecture: Architecture
    trial_loss: float
    val_loss: float
    kl: float
    tokens: int
    seconds: float
    peak_memory_bytes: int
    curve: tuple[tuple[int, float], ...]
    resumed_from: int
    windows: Mapping[str, tuple[float, ...]] = field(repr=False)
    losses: Mapping[str, float] = field(default_factory=dict)

    @property
    def windows_digest(self) -> str:
        """By which `read_windows` knows the losses of the windows again."""
        return _digest(self.windows)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "architecture": self.architecture.to_dict()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> FinalResult:
        """The inverse of `to_dict`."""
        curve = tuple((int(tokens), float(loss)) for tokens, loss in value["curve"])
        windows = {name: tuple(map(float, losses)) for name, losses in value["windows"].items()}
        architecture = Architecture.from_dict(value["architecture"])
        return cls(**{**value, "architecture": architecture, "curve": curve, "windows": windows})


def run_final(spec: FinalSpec, report: Report) -> FinalResult:
    """Train the student of ``spec.trial`` on ``spec.tokens`` more, and leave it and its losses in ``spec.directory``.

    It has a warm-up and a cosine of its own, to `PEAK_SHARE` of the trial's peak, and fresh moments; its batches
    follow on those of the trial, from text that no trial has seen as far as there is any. A trial that is not there
    yet is run first, in its own directory. Everything else - reports, interruptions, repeated calls, errors - is as
    in `run_trial`; ``report`` counts the trial's tokens too.
    """
    trial = run_trial(spec.trial, report)
    directory, recipe = Path(spec.directory), spec.trial.recipe
    directory.mkdir(parents=True, exist_ok=True)
    common = shared(recipe, spec.trial.cache, spec.trial.device, more=spec.tokens)
    start = file_sha256(Path(trial.weights) / MANIFEST)
    what = json.dumps([recipe.to_dict(), spec.tokens])
    identity = digest(VERSION, what, trial.architecture.key, start, common.fingerprint)

    def later(tokens: int, metrics: dict[str, float]) -> None:
        if tokens:  # the reading before it is the trial's last
            report(trial.tokens + tokens, metrics)

    finished = read_result(directory, identity, FinalResult.from_dict, later)
    if finished is not None:
        return replace(finished, resumed_from=spec.tokens)
    try:
        return _train(spec, trial, common, identity, later)
    finally:
        if spec.trial.device == "cuda":
            torch.cuda.empty_cache()


def read_windows(directory: Path, windows_digest: str) -> WindowLosses | None:
    """The losses of all windows that a final left in ``directory``; None when they are not there as they were."""
    try:
        result = FinalResult.from_dict(json.loads((directory / RESULT).read_text())["result"])
    except (OSError, ValueError, KeyError, TypeError):  # none, torn, or of another making: it is to be made again
        return None
    if result.windows_digest != windows_digest:
        return None
    return {name: np.array(losses) for name, losses in result.windows.items()}


def _digest(windows: Mapping[str, tuple[float, ...]]) -> str:
    return digest(json.dumps(dict(windows), sort_keys=True))


def _train(spec: FinalSpec, trial: TrialResult, common: Shared, identity: str, report: Report) -> FinalResult:
    directory, recipe = Path(spec.directory), spec.trial.recipe
    if spec.trial.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    student = load_student(spec.trial).to(spec.trial.device)
    if compiles(spec.trial.device)[0] and trial.architecture.is_uniform:
        compile_layers(common.targets.family, student)  # seconds; trials are shorter and of many shapes
    settings = DistillSettings(
        spec.tokens,
        spec.rungs,
        recipe.sequence_length,
        recipe.batch_tokens,
        PEAK_SHARE * recipe.learning_rate,
        recipe.seed,
        identity,
        steps_before=math.ceil(trial.tokens / recipe.batch_tokens),
        first_windows=common.first,
        text_share=recipe.text_share,
    )
    outcome = distill(student, common.targets, common.corpus, settings, directory, report)
    save_student(student, directory / STUDENT)
    result = _result(spec, trial, outcome)
    write_result(directory, identity, outcome.rungs, result.to_dict())
    discard_checkpoints(directory)
    return result


def _result(spec: FinalSpec, trial: TrialResult, outcome: DistillResult) -> FinalResult:
    _, *later = outcome.rungs
    return FinalResult(
        architecture=trial.architecture,
        trial_loss=trial.val_loss,
        val_loss=later[-1].metrics["val_loss"],
        kl=later[-1].metrics["kl"],
        tokens=trial.tokens + spec.tokens,
        seconds=outcome.seconds,
        peak_memory_bytes=peak_memory(spec.trial.device),
        curve=(*trial.curve, *((trial.tokens + rung.tokens, rung.metrics["val_loss"]) for rung in later)),
        resumed_from=outcome.resumed_from,
        windows={name: tuple(losses.tolist()) for name, losses in outcome.window_losses.items()},
        losses=text_losses(outcome.window_losses),
    )
