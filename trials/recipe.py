"""How the trials of a study are made, in numbers and names: what two of them must share to be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from search_spaces.errors import InputError

VERSION = 5  # of what a trial computes: raise it, and results and checkpoints of before are not taken up
SCREEN_CALIBRATION, SCREEN_VALIDATION = 8_192, 8_192  # tokens that a student is screened on: docs/results.md

Way = Literal["cached", "drawn", "online"]

LATER = ("validation", "teacher_targets", "text_share")  # parts that recipes did not have from the start


@dataclass(frozen=True)
class Recipe:
    """How every trial of a study is made; results of one recipe can be compared.

    ``tokens`` are distilled in a full trial, ``batch_tokens`` of them in each optimizer step, in windows of
    ``sequence_length``; ``rungs`` (tokens, ascending, the last is ``tokens``) say where validation loss is
    measured, on ``validation_tokens`` of the corpus' own held-out text and of each of ``validation``, (name, source)
    of further texts; the mean over texts decides. ``calibration_samples`` windows are read for the importance scores.
    ``teacher_targets`` are as `trials.teacher.targets.way_for` says, None included; ``text_share`` of the loss is of the text.

    Raises InputError when the numbers do not fit together.
    """

    model: str
    corpus: str
    tokens: int
    rungs: tuple[int, ...]
    validation_tokens: int
    sequence_length: int
    batch_tokens: int
    learning_rate: float
    calibration_samples: int
    seed: int
    validation: tuple[tuple[str, str], ...] = ()
    teacher_targets: Way | None = None
    text_share: float = 0.0

    def __post_init__(self) -> None:
        if problem := _problem(self):
            raise InputError(f"recipe: {problem}")

    @property
    def text_tokens(self) -> int:
        """Tokens of training text that trials and calibration read."""
        return max(self.tokens, self.calibration_samples * self.sequence_length)

    def to_dict(self) -> dict[str, Any]:
        """JSON form. What was not always a part of a recipe is left out where nothing is said of it."""
        value = {**asdict(self), "rungs": list(self.rungs), "validation": [list(one) for one in self.validation]}
        return {name: one for name, one in value.items() if name not in LATER or one}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_dict`."""
        further = tuple((str(name), str(source)) for name, source in value.get("validation", ()))
        return cls(**{**value, "rungs": tuple(value["rungs"]), "validation": further})


def _problem(recipe: Recipe) -> str | None:
    counts = ("tokens", "validation_tokens", "sequence_length", "batch_tokens", "calibration_samples")
    for name in counts:
        if getattr(recipe, name) < 1:
            return f"{name} {getattr(recipe, name)}: must be at least 1"
    if recipe.batch_tokens % recipe.sequence_length:
        return f"batch_tokens {recipe.batch_tokens}: must be a multiple of the sequence length {recipe.sequence_length}"
    if not recipe.rungs or recipe.rungs[-1] != recipe.tokens:
        return f"rungs {list(recipe.rungs)}: the last one must be tokens, {recipe.tokens}"
    gaps = np.diff((0, *recipe.rungs))
    if gaps.min() < recipe.batch_tokens:
        return f"rungs {list(recipe.rungs)}: must ascend by at least one step of batch_tokens, {recipe.batch_tokens}"
    if not 0 <= recipe.text_share <= 1:
        return f"text_share {recipe.text_share}: must be from 0 to 1"
    if not 0 < recipe.learning_rate < 1:
        return f"learning_rate {recipe.learning_rate}: must be above 0 and below 1"
    return None
