"""The recipe of a study: all settings that trials must share so that their results can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from search_spaces.errors import InputError

if TYPE_CHECKING:  # the code of models takes seconds to import
    from trials.teacher.targets import Way

VERSION = 7  # raise it whenever a trial computes something else: old results and checkpoints are then not used
SCREEN_CALIBRATION, SCREEN_VALIDATION = 8_192, 8_192  # tokens of each text in a screening: docs/lab/search.md

LATER = ("validation", "teacher_targets", "text_share", "refit")  # fields that were added later; see `Recipe.to_dict`


@dataclass(frozen=True)
class Recipe:
    """The settings of every trial of a study. Only results of the same recipe can be compared.

    - A full trial distils ``tokens`` tokens, ``batch_tokens`` in each optimizer step, in windows of
      ``sequence_length`` tokens. With 0 tokens it measures the refitted student and trains nothing.
    - Validation loss is measured at the ``rungs`` (tokens, ascending; the last is ``tokens``), on at most
      ``validation_tokens`` tokens of the corpus' held-out text and of each further text in ``validation``, pairs (name,
      source). The mean over texts decides.
    - Importance scores are computed on ``calibration_samples`` windows.
    - ``teacher_targets`` is as in `trials.teacher.targets.way_for`; None chooses automatically.
    - ``text_share`` of the loss is cross-entropy with the text; the rest is the KL divergence from the teacher.
    - Without ``refit`` a student is a plain slice of the teacher.

    Raises InputError when the numbers are inconsistent.
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
    refit: bool = True

    def __post_init__(self) -> None:
        if problem := _problem(self):
            raise InputError(f"recipe: {problem}")

    @property
    def text_tokens(self) -> int:
        """Tokens of training text that trials and calibration need."""
        return max(self.tokens, self.calibration_samples * self.sequence_length)

    def targets_for(self, tokens: int) -> Way | None:
        """The `teacher_targets` of a training of ``tokens``. Without training nothing is stored."""
        return self.teacher_targets if tokens else "online"

    def to_dict(self) -> dict[str, Any]:
        """JSON form. Fields of `LATER` are left out at their defaults: digests of older recipes stay the same."""
        value = {**asdict(self), "rungs": list(self.rungs), "validation": [list(one) for one in self.validation]}
        defaults = {one.name: one.default for one in fields(self) if one.name in LATER}
        return {name: one for name, one in value.items() if name not in LATER or getattr(self, name) != defaults[name]}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_dict`."""
        further = tuple((str(name), str(source)) for name, source in value.get("validation", ()))
        return cls(**{**value, "rungs": tuple(value["rungs"]), "validation": further})


def _problem(recipe: Recipe) -> str | None:
    counts = ("validation_tokens", "sequence_length", "batch_tokens", "calibration_samples")
    for name in counts:
        if getattr(recipe, name) < 1:
            return f"{name} {getattr(recipe, name)}: must be at least 1"
    if recipe.batch_tokens % recipe.sequence_length:
        return f"batch_tokens {recipe.batch_tokens}: must be a multiple of the sequence length {recipe.sequence_length}"
    if recipe.tokens < 0:
        return f"tokens {recipe.tokens}: must be at least 0"
    if (0, *recipe.rungs)[-1] != recipe.tokens:
        return f"rungs {list(recipe.rungs)}: the last one must be tokens, {recipe.tokens}"
    if any(after - before < recipe.batch_tokens for before, after in pairwise((0, *recipe.rungs))):
        return f"rungs {list(recipe.rungs)}: must ascend by at least one step of batch_tokens, {recipe.batch_tokens}"
    if not 0 <= recipe.text_share <= 1:
        return f"text_share {recipe.text_share}: must be from 0 to 1"
    if not 0 < recipe.learning_rate < 1:
        return f"learning_rate {recipe.learning_rate}: must be above 0 and below 1"
    return None
