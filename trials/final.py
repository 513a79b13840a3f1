"""Runs one final: trains the student of a finished trial on more tokens and records the loss of every window."""

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
from trials.compress.compress import compressor, rate_of, text_share_of
from trials.distill.checkpoint import discard_checkpoints
from trials.distill.distill import DistillResult, DistillSettings, Report, distill
from trials.distill.results import RESULT, STUDENT, read_result, save_student, write_result
from trials.distill.validation_kl import validation_kl
from trials.families.base import compile_layers
from trials.losses.precision import compiles
from trials.losses.window_losses import WindowLosses, text_losses
from trials.preparation import Shared, shared
from trials.storage.cache import Cache, digest
from trials.storage.durable import MANIFEST, file_sha256, from_json
from trials.text.corpus import windows
from trials.trial import TrialResult, TrialSpec, load_student, peak_memory, run_trial

# Share of the trials' peak learning rate. At the full rate, the best students of mini only returned to their starting
# loss. At half of it all students improved, and heavily pruned ones improved nearly as much as at the full rate.
PEAK_SHARE = 0.5
VERSION = 5  # raise it whenever a final computes something else: old results and checkpoints are then not used


@dataclass(frozen=True)
class FinalSpec:
    """One final: after ``trial``, train on ``tokens`` more with the same recipe. ``directory`` is the final's own.

    Raises InputError when ``tokens`` is not a multiple of the recipe's ``batch_tokens``.
    """

    trial: TrialSpec
    tokens: int
    directory: str

    def __post_init__(self) -> None:
        batch = self.trial.recipe.batch_tokens
        if self.tokens < 1 or self.tokens % batch:
            raise InputError(f"final tokens {self.tokens}: must be a multiple of the tokens of a step, {batch}")

    @property
    def rungs(self) -> tuple[int, ...]:
        """The rungs in tokens beyond the trial's: half way and at the end. Validation loss is measured there."""
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
    """The result of a final.

    ``tokens`` and ``curve``, pairs (tokens, validation loss), include the trial. Losses are in nats per token on
    validation text: ``trial_loss`` at the end of the trial, ``val_loss`` at the end of the final. ``losses`` holds the
    loss on each text if there are several, and ``windows`` the loss of every window, by the name of its text.
    ``seconds`` and ``resumed_from`` (tokens) count the final alone. ``val_kl`` is the KL divergence from the teacher on
    validation text in nats per token; results of older versions have none.
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
    val_kl: float | None = None

    @property
    def windows_digest(self) -> str:
        """A digest of ``windows``, which `read_windows` checks."""
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
    """Train the student of ``spec.trial`` on ``spec.tokens`` more. The student and losses go to ``spec.directory``.

    A trial that has not been run is run first, in its own directory. The final has its own warm-up and cosine
    schedule, with `PEAK_SHARE` of the trial's peak learning rate, and fresh optimizer state. Its batches continue the
    trial's sequence. They take text that no trial has seen, as far as there is any. ``report`` receives token counts
    that include the trial's. Reports, interruptions, repeated calls and errors are otherwise as in `run_trial`.
    """
    trial = run_trial(spec.trial, report)
    directory, recipe = Path(spec.directory), spec.trial.recipe
    directory.mkdir(parents=True, exist_ok=True)
    common = shared(recipe, spec.trial.cache, spec.trial.device, more=spec.tokens)
    start = file_sha256(Path(trial.weights) / MANIFEST)
    what = json.dumps([recipe.to_dict(), spec.tokens])
    identity = digest(VERSION, what, trial.architecture.key, start, common.fingerprint)

    def later(tokens: int, metrics: dict[str, float]) -> None:
        if tokens:  # the loss at 0 tokens is the trial's last, which was reported
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
    """The window losses that a final left in ``directory``; None if they are missing or do not match the digest."""
    try:
        result = FinalResult.from_dict(from_json((directory / RESULT).read_bytes())["result"])
    except (OSError, ValueError, KeyError, TypeError):  # missing, truncated or of another version: run the final again
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
    calibration = windows(common.corpus.train, recipe.sequence_length)
    compressing = compressor(student, trial.architecture.compression, calibration, trained=True)
    if compiles(spec.trial.device)[0] and trial.architecture.is_uniform and compressing is None:
        # Compiling takes seconds. That does not pay off in trials, which are shorter and have many shapes.
        compile_layers(common.targets.family, student)
    settings = DistillSettings(
        spec.tokens,
        spec.rungs,
        recipe.sequence_length,
        recipe.batch_tokens,
        PEAK_SHARE * recipe.learning_rate * rate_of(trial.architecture.compression),
        recipe.seed,
        identity,
        steps_before=math.ceil(trial.tokens / recipe.batch_tokens),
        first_windows=common.first,
        text_share=text_share_of(trial.architecture.compression, recipe.text_share),
    )
    outcome = distill(student, common.targets, common.corpus, settings, directory, report, compressing)
    if compressing:
        compressing.leave()
    save_student(student, directory / STUDENT)
    texts = {name: windows(tokens, recipe.sequence_length) for name, tokens in common.corpus.texts.items()}
    divergence = validation_kl(student, common.teacher, texts, Cache(Path(spec.trial.cache)))
    result = replace(_result(spec, trial, outcome), val_kl=divergence)
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
