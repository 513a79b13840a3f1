"""Whether the validation text is enough to distinguish two models."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # takes seconds to import, and a report of a study needs none of it
    from trials.losses.window_losses import WindowLosses

RESAMPLES = 10_000
COVERAGE = 0.95
DRAWS_AT_ONCE = 2**22  # bounds memory, changes no draw


@dataclass(frozen=True)
class Difference:
    """The loss of one model minus that of another, in nats per token, with its interval ``low`` to ``high``.

    ``windows`` is the number of validation windows.
    """

    mean: float
    low: float
    high: float
    windows: int

    @property
    def distinguishable(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "distinguishable": self.distinguishable}


def paired_difference(one: WindowLosses, other: WindowLosses, resamples: int = RESAMPLES, seed: int = 0) -> Difference:
    """The loss of ``one`` minus that of ``other`` on the same windows, with a 95 % bootstrap interval.

    Windows are drawn with replacement within each text, the same windows for both models. The statistic is the mean
    over texts of their mean differences. The interval goes from the 2.5th to the 97.5th percentile (Efron & Tibshirani
    1993, chapter 13; Koehn 2004 for paired comparisons). It covers the choice of text only. It does not cover the
    training seed, and it treats windows of one document as independent.

    Raises ValueError when the two models were not measured on the same windows.
    """
    if {name: len(losses) for name, losses in one.items()} != {name: len(losses) for name, losses in other.items()}:
        raise ValueError("losses of different windows cannot be paired")
    differences = [np.asarray(one[name]) - np.asarray(other[name]) for name in sorted(one)]
    generator = np.random.default_rng(seed)
    means = np.mean([_resampled_means(part, resamples, generator) for part in differences], axis=0)
    low, high = np.quantile(means, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    mean = float(np.mean([part.mean() for part in differences]))
    return Difference(mean, float(low), float(high), sum(map(len, differences)))


def _resampled_means(
    values: NDArray[np.float64], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """The means (resamples,) of samples of n from ``values`` (n,), drawn with replacement."""
    at_once = max(1, DRAWS_AT_ONCE // len(values))
    parts = [min(at_once, resamples - done) for done in range(0, resamples, at_once)]
    draws = (generator.integers(len(values), size=(count, len(values))) for count in parts)
    return np.concatenate([values[drawn].mean(axis=1) for drawn in draws])
