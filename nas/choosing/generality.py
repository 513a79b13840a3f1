"""What a student loses on the text that it was calibrated on, and on other text. Pure functions of the final table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from nas.choosing.comparison import TEACHER, Comparison, ComparisonRow
from trials.evaluate.reading import TOKEN_PERPLEXITY

CALIBRATED, OTHER = "on the text it was calibrated on", "on other text"


@dataclass(frozen=True)
class Excess:
    """The loss of one model above its teacher's, in nats per token.

    ``own`` is that on the held-out part of the corpus. ``others`` are those on texts that the model was not calibrated
    on, by name: further validation texts, and test texts with a token perplexity.
    """

    roles: tuple[str, ...]
    architecture: str
    own: float
    others: Mapping[str, float]

    @property
    def other(self) -> float:
        """The mean over ``others``."""
        return sum(self.others.values()) / len(self.others)

    @property
    def sentence(self) -> str:
        """Both figures in words."""
        each = ", ".join(f"{name} {value:+.3f}" for name, value in self.others.items())
        return f"nats a token above the teacher: {self.own:+.3f} {CALIBRATED}, {self.other:+.3f} {OTHER} ({each})"


def excesses(comparison: Comparison) -> tuple[Excess, ...]:
    """The excess of every model of the final table that was read on other text, in the order of the table."""
    teacher = next(row for row in comparison.rows if TEACHER in row.roles)
    found = [_excess(row, teacher) for row in comparison.rows if row is not teacher and row.val_loss is not None]
    return tuple(one for one in found if one.others)


def excess_of(comparison: Comparison, architecture: str) -> Excess | None:
    """The excess of the model with this architecture key, None if it was not read on other text."""
    return next((one for one in excesses(comparison) if one.architecture == architecture), None)


def _excess(row: ComparisonRow, teacher: ComparisonRow) -> Excess:
    before = {one.task: one.value for one in teacher.test if one.metric == TOKEN_PERPLEXITY}
    read = {one.task: one.value for one in row.test if one.metric == TOKEN_PERPLEXITY and one.task in before}
    test = {task: math.log(value / before[task]) for task, value in read.items()}
    if not teacher.losses:
        assert row.val_loss is not None, "only models with a loss are compared"
        assert teacher.val_loss is not None, "the teacher has a loss"
        return Excess(row.roles, row.architecture, row.val_loss - teacher.val_loss, test)
    own, *further = (row.losses[name] - loss for name, loss in teacher.losses.items())  # the corpus's own part is first
    names = list(teacher.losses)[1:]
    return Excess(row.roles, row.architecture, own, {**dict(zip(names, further, strict=True)), **test})
