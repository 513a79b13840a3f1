"""Runs one trial: prunes the teacher to an architecture, trains the student, and measures its losses."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import GenerationConfig, PreTrainedModel

from search_spaces.architecture import Architecture
from search_spaces.shape import ModelShape
from trials.compress.compress import compressor, rate_of, text_share_of
from trials.distill.checkpoint import discard_checkpoints
from trials.distill.distill import DistillResult, DistillSettings, NonFiniteLoss, Report, distill
from trials.distill.results import SETTINGS, STUDENT, WEIGHTS, read_result, save_student, write_result
from trials.losses.window_losses import text_losses
from trials.preparation import Preparation, Shared, prepare, shared
from trials.prune.prune import prune, student_from
from trials.recipe import VERSION, Recipe
from trials.slices import slice_losses
from trials.storage.cache import digest
from trials.storage.durable import damage
from trials.teacher.source import read_config, resolve_model
from trials.text.corpus import windows

__all__ = [
    "NonFiniteLoss",
    "Preparation",
    "Recipe",
    "TrialResult",
    "TrialSpec",
    "load_student",
    "prepare",
    "run_trial",
]


@dataclass(frozen=True)
class TrialSpec:
    """One trial. ``directory`` is its own, ``cache`` is shared by all; both are absolute paths. ``device`` is "cpu" or
    "cuda".
    """

    recipe: Recipe
    architecture: Architecture
    directory: str
    cache: str
    device: str = "cpu"

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "recipe": self.recipe.to_dict(), "architecture": self.architecture.to_dict()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> TrialSpec:
        """The inverse of `to_dict`."""
        recipe, architecture = Recipe.from_dict(value["recipe"]), Architecture.from_dict(value["architecture"])
        return cls(**{**value, "recipe": recipe, "architecture": architecture})


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial. Losses are in nats per token.

    - ``val_loss`` and ``zero_shot_loss`` are validation losses after and before retraining.
    - ``losses`` holds the validation loss on each text, by name, if there are several. ``val_loss`` is their mean.
    - ``kl`` is the mean training KL divergence from the teacher, over the steps of the last rung; None without any.
    - ``curve`` holds pairs (tokens, validation loss).
    - ``seconds`` and ``tokens_per_second`` cover distillation and its evaluations.
    - ``peak_memory_bytes`` is the allocator's peak on CUDA, and the peak of the whole process so far on a CPU.
    - ``resumed_from`` is the number of tokens that were distilled before this call.
    - ``weights`` is the folder of the student.
    """

    architecture: Architecture
    parameters: int
    stock: bool
    val_loss: float
    zero_shot_loss: float
    kl: float | None
    tokens: int
    seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    curve: tuple[tuple[int, float], ...]
    resumed_from: int
    weights: str
    losses: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "architecture": self.architecture.to_dict()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> TrialResult:
        """The inverse of `to_dict`."""
        curve = tuple((int(tokens), float(loss)) for tokens, loss in value["curve"])
        return cls(**{**value, "architecture": Architecture.from_dict(value["architecture"]), "curve": curve})


def run_trial(spec: TrialSpec, report: Report) -> TrialResult:
    """Prune the teacher to ``spec.architecture``, distil, evaluate, and save the student in ``spec.directory``.

    ``report(tokens, {"val_loss", "seconds", "kl"})`` is called at 0 tokens (without "kl") and at every rung, after the
    rung's checkpoint is on disk. Another call with the same spec returns the result of a finished trial, or continues
    an interrupted one from its checkpoint. It first repeats the reports made before.

    Raises InputError for a wrong input and NonFiniteLoss when training diverges.
    """
    directory = Path(spec.directory)
    directory.mkdir(parents=True, exist_ok=True)
    common = shared(spec.recipe, spec.cache, spec.device)
    common.teacher.shape.check(spec.architecture)
    identity = digest(VERSION, json.dumps(spec.recipe.to_dict()), spec.architecture.key, common.fingerprint)
    finished = read_result(directory, identity, TrialResult.from_dict, report)
    if finished is not None:
        return replace(finished, resumed_from=finished.tokens, weights=str(directory / STUDENT))
    try:
        return _train(spec, common, identity, report)
    finally:  # `_train` has returned and freed the student: give its memory back to other trials on the device
        if spec.device == "cuda":
            torch.cuda.empty_cache()


def load_student(spec: TrialSpec) -> PreTrainedModel:
    """The student of the finished trial ``spec``, in float32 on the CPU, in eval mode.

    A quantized student has the weights from which its codes are made. `trials.compress.compress.round_weights` rounds
    them. Raises FileNotFoundError when the student is missing or damaged.
    """
    return load_weights(spec, Path(spec.directory) / STUDENT)


def load_weights(spec: TrialSpec, folder: Path) -> PreTrainedModel:
    """As `load_student`, from the ``folder`` of a later training of the same architecture."""
    if problem := damage(folder):
        raise FileNotFoundError(f"student {folder}: {problem}; run the trial again")
    config = read_config(resolve_model(spec.recipe.model))
    settings = json.loads((folder / SETTINGS).read_text())
    student = student_from(config, spec.architecture, load_file(folder / WEIGHTS), settings)
    student.generation_config = GenerationConfig.from_pretrained(folder)  # nosec B615  # a folder
    return student


def _train(spec: TrialSpec, common: Shared, identity: str, report: Report) -> TrialResult:
    directory, recipe = Path(spec.directory), spec.recipe
    if spec.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    streams = common.streams if recipe.refit else None
    student = prune(common.teacher.model, common.scores, spec.architecture, streams).float()
    settings = DistillSettings(
        recipe.tokens,
        recipe.rungs,
        recipe.sequence_length,
        recipe.batch_tokens,
        recipe.learning_rate * rate_of(spec.architecture.compression),
        recipe.seed,
        identity,
        text_share=text_share_of(spec.architecture.compression, recipe.text_share),
    )
    calibration = windows(common.corpus.train, recipe.sequence_length)
    compressing = compressor(student, spec.architecture.compression, calibration)
    before = slice_losses(common, recipe, spec.architecture)
    outcome = distill(student, common.targets, common.corpus, settings, directory, report, compressing, before)
    if compressing:
        compressing.leave()
    save_student(student, directory / STUDENT)
    result = _result(spec, common.teacher.shape, outcome)
    write_result(directory, identity, outcome.rungs, result.to_dict())
    discard_checkpoints(directory)
    return result


def _result(spec: TrialSpec, shape: ModelShape, outcome: DistillResult) -> TrialResult:
    last, tokens = outcome.rungs[-1].metrics, outcome.rungs[-1].tokens
    curve = tuple((rung.tokens, rung.metrics["val_loss"]) for rung in outcome.rungs)
    return TrialResult(
        architecture=spec.architecture,
        parameters=shape.parameters(spec.architecture),
        stock=shape.is_stock(spec.architecture),
        val_loss=last["val_loss"],
        zero_shot_loss=curve[0][1],
        kl=last.get("kl"),
        tokens=tokens,
        seconds=outcome.seconds,
        tokens_per_second=tokens / outcome.seconds,
        peak_memory_bytes=peak_memory(spec.device),
        curve=curve,
        resumed_from=outcome.resumed_from,
        weights=str(Path(spec.directory) / STUDENT),
        losses=text_losses(outcome.window_losses),
    )


def peak_memory(device: str) -> int:
    """Peak memory in bytes: of the allocator on CUDA, of this process so far on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts in KiB, except on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
