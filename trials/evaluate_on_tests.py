"""What a finished search reads on test text: a few figures of each model of its final table, and never before it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from transformers import PreTrainedModel

from trials.distill.results import WEIGHTS
from trials.evaluate.evaluation import default_length, headline, read
from trials.evaluate.likelihood import Measurement
from trials.evaluate.reading import Reading
from trials.storage.cache import Cache, digest
from trials.storage.durable import file_sha256
from trials.teacher.causal_lm import DEFAULT_DTYPES, DTYPES
from trials.teacher.source import fingerprint, read_config, resolve_model
from trials.teacher.teacher import load_tokenizer, load_weights
from trials.text.evaluation_text import TextTask, open_text
from trials.trial import TrialSpec
from trials.trial import load_weights as load_student

VERSION = 1  # of what is read and how: raise it, and readings of before are not taken up
READINGS = "readings.json"


@dataclass(frozen=True)
class ReadingSpec:
    """The teacher of ``trial``, or its student in the folder ``weights``, to be read on ``tasks``.

    ``tokens`` is how many of each text at most, from its start; None means all. ``dtype``, a key of `DTYPES`, is the
    number format of the model; None means that of ``python -m nas.evaluate`` on the device.
    """

    trial: TrialSpec
    weights: str | None
    tasks: tuple[TextTask, ...]
    tokens: int | None
    dtype: str | None = None


def check_tests(model: str, tasks: Sequence[TextTask], tokens: int | None) -> None:
    """Open and tokenise all of ``tasks`` for the teacher ``model``, so that no search of hours ends at a wrong one.

    Raises InputError.
    """
    _measurements(resolve_model(model), tuple(tasks), tokens)


def read_model(spec: ReadingSpec) -> list[Reading]:
    """The `headline` readings of one model on its tasks, from the cache or taken now.

    They are those that ``python -m nas.evaluate`` gives by the same conventions in the same number format.
    """
    path, device = resolve_model(spec.trial.recipe.model), spec.trial.device
    dtype = spec.dtype or DEFAULT_DTYPES[device]
    weights = file_sha256(Path(spec.weights) / WEIGHTS) if spec.weights else fingerprint(path)
    measurements = _measurements(path, spec.tasks, spec.tokens)

    def write(folder: Path) -> None:
        model = _load(spec, path).to(DTYPES[dtype]).to(device).eval().requires_grad_(False)
        readings = read(model, [one for _, one in measurements])
        (folder / READINGS).write_text(json.dumps([asdict(one) for one in readings]))

    key = digest(VERSION, weights, dtype, *(content for content, _ in measurements))
    try:
        folder = Cache(Path(spec.trial.cache)).build("final_readings", key, write)
    finally:
        if device == "cuda":
            torch.cuda.empty_cache()
    return [replace(Reading(**one), dtype=dtype) for one in json.loads((folder / READINGS).read_text())]


def _load(spec: ReadingSpec, teacher: Path) -> PreTrainedModel:
    if spec.weights is None:
        return load_weights(teacher, torch.float32)
    return load_student(spec.trial, Path(spec.weights))


@lru_cache(maxsize=1)
def _measurements(path: Path, tasks: tuple[TextTask, ...], tokens: int | None) -> tuple[tuple[str, Measurement], ...]:
    """Of each task, a digest of what is read and the measurement, in the order of ``tasks``."""
    texts = [open_text(task) for task in tasks]
    measurements = headline(texts, load_tokenizer(path), default_length(read_config(path)), tokens)
    return tuple((_content(task.name, one), one) for task, one in zip(tasks, measurements, strict=True))


def _content(name: str, measurement: Measurement) -> str:
    windows = [[list(window.tokens), window.predicted] for window in measurement.windows]
    return digest(name, json.dumps(windows))
