"""One metric of an evaluation, with all the settings needed to compare it with others."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

TOKEN_PERPLEXITY = "token perplexity"  # nosec B105  # a metric
HARNESS = "lm-evaluation-harness"  # begins the convention of a downstream task (`trials.evaluate.tasks`)


@dataclass(frozen=True)
class Reading:
    """The value of one metric, with the method and the amount of data.

    Two readings are comparable only if they have the same task, convention, metric, unit, length, stride and ``dtype``
    (the model's number format).

    ``tokens`` (predicted tokens), ``words``, ``bytes`` and ``documents`` are counts of the data. ``length`` is the
    largest number of tokens in the model's input; ``stride`` is the distance between windows. For timings, ``value`` is
    computed from the median time of ``repeats`` samples after ``warmup`` untimed ones. ``at_p5`` is computed from the
    5th percentile, which other load on the machine affects least. ``stderr`` is the standard error of ``value``.
    """

    task: str
    convention: str
    metric: str
    value: float
    unit: str
    tokens: int | None = None
    words: int | None = None
    bytes: int | None = None
    documents: int | None = None
    length: int | None = None
    stride: int | None = None
    batch: int | None = None
    warmup: int | None = None
    repeats: int | None = None
    at_p5: float | None = None
    dtype: str | None = None
    stderr: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form. Fields that do not apply are left out; an infinite or NaN value becomes None."""
        fields = {name: value for name, value in asdict(self).items() if value is not None}
        return {**fields, "value": self.value if math.isfinite(self.value) else None}


def perplexity(nats: float) -> float:
    """The perplexity exp(``nats``) of a mean loss in nats; infinite above 700 nats, where a float overflows."""
    return math.exp(nats) if nats < 700 else math.inf
