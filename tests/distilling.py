"""A distillation that takes a second: a tiny teacher, a student of it, random text, and ways to watch and to cut it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from conftest import VOCAB, make_gpt2
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from search_spaces.architecture import Architecture
from trials.distill.distill import DistillResult, DistillSettings, distill
from trials.families.lookup import FAMILIES
from trials.families.shapes import shape_of
from trials.prune.importance import compute_importance
from trials.prune.prune import prune
from trials.teacher.targets import Targets
from trials.teacher.teacher import Teacher
from trials.text.corpus import Corpus

GPT2 = FAMILIES["gpt2"]
MODEL = make_gpt2()
TEACHER = Teacher(Path(), MODEL, None, shape_of(MODEL.config), "fingerprint")
ARCHITECTURE = Architecture(2, 40, (4, 2), (10, 96))
SCORES = compute_importance(MODEL, GPT2, torch.arange(64).reshape(4, 16))
TOKENS = np.random.default_rng(0).integers(0, VOCAB, 16 * 60, dtype=np.uint16)
CORPUS = Corpus(TOKENS[:640], TOKENS[640:], "random", "fingerprint", "random tokens")
SETTINGS = DistillSettings(
    tokens=640,  # 10 steps of 4 windows
    rungs=(192, 640),
    sequence_length=16,
    batch_tokens=64,
    learning_rate=3e-3,
    seed=0,
    identity="this trial",
    checkpoint_seconds=1e9,
)


def student() -> PreTrainedModel:
    """The same student each time."""
    return prune(MODEL, SCORES, ARCHITECTURE)


class Readings(list[tuple[int, dict[str, float]]]):
    """A report which remembers; ``without_time`` is what must be the same on every machine."""

    def __call__(self, tokens: int, metrics: dict[str, float]) -> None:
        self.append((tokens, metrics))

    def without_time(self) -> list[tuple[int, dict[str, float]]]:
        return [(tokens, {**metrics, "seconds": 0.0}) for tokens, metrics in self]


class Cut(Exception):  # noqa: N818
    """The process ends here."""


class Watched(Targets):
    """Targets which remember the windows asked for, and call ``before(number of windows)`` first."""

    def __init__(self, teacher: Teacher, before: Callable[[int], None] = lambda _: None) -> None:
        super().__init__(teacher)
        self.before, self.places = before, []

    def hidden(self, places: NDArray[np.int64], tokens: Tensor) -> Tensor:
        self.before(len(places))
        self.places.append(places.tolist())
        return super().hidden(places, tokens)


def after(calls: int, error: Exception) -> Callable[[int], None]:
    """Raises ``error`` when called once more than ``calls`` times."""
    left = iter(range(calls))

    def check(_: int) -> None:
        if next(left, None) is None:
            raise error

    return check


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@lru_cache
def uninterrupted() -> tuple[dict[str, Tensor], Readings, DistillResult]:
    """The weights, readings and result of the whole run, from beginning to end."""
    model, readings = student(), Readings()
    with TemporaryDirectory() as folder:
        result = distill(model, Targets(TEACHER), CORPUS, SETTINGS, Path(folder), readings)
    return weights(model), readings, result
