"""Evaluates a model on test text. A search does this only at its end, for the models of its final table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from transformers import PreTrainedModel

from trials.compress.compress import round_weights
from trials.distill.results import WEIGHTS
from trials.evaluate.evaluation import default_length, headline, read
from trials.evaluate.likelihood import Measurement
from trials.evaluate.reading import Reading
from trials.evaluate.tasks import HarnessTask, evaluate_tasks, open_tasks
from trials.preparation import shared
from trials.prune.prune import prune
from trials.recipe import VERSION as TRIALS
from trials.storage.cache import Cache, digest
from trials.storage.durable import file_sha256
from trials.teacher.causal_lm import DEFAULT_DTYPES, DTYPES
from trials.teacher.source import fingerprint, read_config, resolve_model
from trials.teacher.teacher import load_tokenizer, load_weights
from trials.text.evaluation_text import TextTask, open_text
from trials.trial import TrialSpec
from trials.trial import load_weights as load_student

VERSION = 1  # part of the cache key: raise it whenever a metric or its computation changes
READINGS = "readings.json"


@dataclass(frozen=True)
class EvaluationSpec:
    """One model to evaluate on ``tasks``, which are texts and downstream tasks.

    It is the student in the folder ``weights``, or the teacher of ``trial`` if None.
    If ``untrained``, it is the student of ``trial`` before retraining instead: pruned and refitted, made again here.
    ``tokens`` is the largest number of tokens taken from the start of each text; None means all. ``dtype``, a key of
    `DTYPES`, is the model's number format; None means the default of ``python -m nas.evaluate`` on the device.
    """

    trial: TrialSpec
    weights: str | None
    tasks: tuple[TextTask | HarnessTask, ...]
    tokens: int | None
    dtype: str | None = None
    untrained: bool = False


def check_tests(model: str, tasks: Sequence[TextTask | HarnessTask], tokens: int | None) -> None:
    """Open all ``tasks`` for the teacher ``model``, so that a wrong one fails before a long search starts.

    Raises InputError.
    """
    texts, downstream = _by_kind(tasks)
    _measurements(resolve_model(model), texts, tokens)
    open_tasks(downstream)


def _by_kind(tasks: Sequence[TextTask | HarnessTask]) -> tuple[tuple[TextTask, ...], tuple[HarnessTask, ...]]:
    texts = tuple(one for one in tasks if isinstance(one, TextTask))
    return texts, tuple(one for one in tasks if isinstance(one, HarnessTask))


def evaluate_on_tests(spec: EvaluationSpec) -> list[Reading]:
    """The `headline` readings of one model on its texts, then those of its downstream tasks, cached or measured now.

    They equal those of ``python -m nas.evaluate`` with the same conventions and number format.
    """
    path, device = resolve_model(spec.trial.recipe.model), spec.trial.device
    dtype = spec.dtype or DEFAULT_DTYPES[device]
    texts, downstream = _by_kind(spec.tasks)
    measurements, opened = _measurements(path, texts, spec.tokens), open_tasks(downstream)

    def write(folder: Path) -> None:
        model = _load(spec, path).to(DTYPES[dtype]).to(device).eval().requires_grad_(False)
        readings = read(model, [one for _, one in measurements])
        if opened:
            readings += evaluate_tasks(model, load_tokenizer(path), opened, dtype)
        (folder / READINGS).write_text(json.dumps([asdict(one) for one in readings]))

    key = digest(
        VERSION,
        _identity(spec, path),
        dtype,
        *(content for content, _ in measurements),
        *(one.content for one in opened),
    )
    try:
        folder = Cache(Path(spec.trial.cache)).build("final_readings", key, write)
    finally:
        if device == "cuda":
            torch.cuda.empty_cache()
    return [replace(Reading(**one), dtype=dtype) for one in json.loads((folder / READINGS).read_text())]


def _identity(spec: EvaluationSpec, teacher: Path) -> str:
    """A digest of everything that the weights of the model depend on."""
    if spec.untrained:
        trial, common = spec.trial, shared(spec.trial.recipe, spec.trial.cache, spec.trial.device)
        return digest(TRIALS, json.dumps(trial.recipe.to_dict()), trial.architecture.key, common.fingerprint)
    return file_sha256(Path(spec.weights) / WEIGHTS) if spec.weights else fingerprint(teacher)


def _load(spec: EvaluationSpec, teacher: Path) -> PreTrainedModel:
    if spec.untrained:
        common = shared(spec.trial.recipe, spec.trial.cache, spec.trial.device)
        return prune(common.teacher.model, common.scores, spec.trial.architecture, common.streams)
    if spec.weights is None:
        return load_weights(teacher, torch.float32)
    student = load_student(spec.trial, Path(spec.weights))
    round_weights(student, spec.trial.architecture.compression)
    return student


@lru_cache(maxsize=1)
def _measurements(path: Path, tasks: tuple[TextTask, ...], tokens: int | None) -> tuple[tuple[str, Measurement], ...]:
    """For each of ``tasks``, in order: a digest of the tokens to be read, and the measurement."""
    texts = [open_text(task) for task in tasks]
    measurements = headline(texts, load_tokenizer(path), default_length(read_config(path)), tokens)
    return tuple((_content(task.name, one), one) for task, one in zip(tasks, measurements, strict=True))


def _content(name: str, measurement: Measurement) -> str:
    windows = [[list(window.tokens), window.predicted] for window in measurement.windows]
    return digest(name, json.dumps(windows))
