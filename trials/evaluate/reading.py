"""One figure about a model, with everything that it takes to compare it with another one."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Reading:
    """What was measured, how, and on how much.

    Two readings may stand in one column only if they agree in task, convention, metric, unit, length, stride and
    ``dtype``, the number format of the model where nothing else says it.

    ``tokens`` (predicted ones), ``words``, ``bytes`` and ``documents`` are what was counted; ``length`` is the most
    tokens that the model saw at once, ``stride`` how far a window is from the next. Of timings, ``value`` is the
    figure at the median time of ``repeats`` samples, taken after ``warmup`` that do not count, and ``at_p5`` the same
    figure at the 5th percentile of the time, which a busy neighbour moves least.
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

    def to_dict(self) -> dict[str, Any]:
        """JSON form: what does not apply is left out; a value beyond every number is None."""
        fields = {name: value for name, value in asdict(self).items() if value is not None}
        return {**fields, "value": self.value if math.isfinite(self.value) else None}


def perplexity(nats: float) -> float:
    """Of a mean loss in nats; infinite where that is all a float can say."""
    return math.exp(nats) if nats < 700 else math.inf
