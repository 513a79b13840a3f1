"""Whether early rankings of architectures agree with late ones. They show how far short trainings can be trusted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.choosing.bootstrap import COVERAGE
from nas.study.records import SCREEN_LOSS, FinalRecord, TrialRecord

RESAMPLES = 1_000
FEWEST = 3  # pairs for a tau; two pairs can only agree or disagree completely
ENOUGH = 8  # pairs for an interval; resamples of fewer say little about further architectures
TOO_FEW = "too few to tell"
SURVIVORS = "Trials that were stopped early have no final loss and are left out, so the sample is biased."
BY = (
    "Kendall's tau compares two orders: 1 is the same, 0 is unrelated, -1 is reversed; in brackets the 95 % interval, "
    f"from {ENOUGH} architectures on."
)


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau-b of two rankings of the same ``pairs`` architectures, the first one after ``tokens``.

    ``name`` is part of metric names; ``what`` describes the two rankings to a reader. ``tau`` is None for fewer than
    `FEWEST` pairs, and when all losses of one ranking are equal. ``low`` and ``high`` are the 95 % bootstrap interval
    over architectures, None for fewer than `ENOUGH` pairs.
    """

    name: str
    what: str
    tokens: int
    tau: float | None
    pairs: int
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.pairs < FEWEST:
            return f"too few (n = {self.pairs})"
        if self.tau is None:
            return f"undefined, equal losses (n = {self.pairs})"
        interval = f" [{self.low:+.2f}, {self.high:+.2f}]" if self.has_interval else f", {TOO_FEW}"
        return f"{self.tau:+.2f}{interval} (n = {self.pairs})"

    @property
    def has_interval(self) -> bool:
        """Whether there are enough pairs for an interval."""
        return self.low is not None


def agreement(name: str, what: str, tokens: int, pairs: Sequence[tuple[float, float]]) -> Agreement:
    """The agreement of ``pairs`` (early loss, late loss), one pair for each architecture.

    The interval goes from the 2.5th to the 97.5th percentile of tau over `RESAMPLES` samples of the pairs, drawn with
    replacement. A pair that is drawn twice is a tie in both rankings, and tau-b ignores such ties. Fewer than
    `ENOUGH` pairs have no interval: if a few pairs agree, so do all samples of them.
    """
    losses, count = np.array(pairs, dtype=float).reshape(-1, 2), len(pairs)
    tau = float(_taus(losses, np.ones((1, count)))[0]) if count >= FEWEST else np.nan
    if not np.isfinite(tau):
        return Agreement(name, what, tokens, None, count)
    if count < ENOUGH:
        return Agreement(name, what, tokens, tau, count)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    low, high = np.nanquantile(_taus(losses, drawn), [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Agreement(name, what, tokens, tau, count, float(low), float(high))


def _taus(losses: NDArray[np.float64], counts: NDArray[np.floating] | NDArray[np.integer]) -> NDArray[np.float64]:
    """Kendall's tau-b (R,) of the two columns of ``losses`` (n, 2), with each row repeated ``counts`` (R, n) times.

    It is nan where all losses of one column are equal.
    """
    first, second = (np.sign(column[:, None] - column) for column in losses.T)
    agreeing, *untied = (((counts @ signs) * counts).sum(axis=1) for signs in (first * second, first**2, second**2))
    with np.errstate(invalid="ignore"):
        taus: NDArray[np.float64] = agreeing / np.sqrt(untied[0] * untied[1])
    return taus


def agreements(records: Iterable[TrialRecord], finals: Iterable[FinalRecord] = ()) -> list[Agreement]:
    """All agreements of a search, in the order of the early rankings.

    The rankings in the screening, before retraining and at each rung are compared with the ranking at the end of the
    trials, over COMPLETE trials. The end of the trials is compared with the end of the finals.
    """
    complete = [one for one in records if one.state == "COMPLETE" and one.curve]
    curves = [dict(one.curve) for one in complete]
    last = max((tokens for curve in curves for tokens in curve), default=0)
    early = sorted({tokens for curve in curves for tokens in curve} - {last})
    found = [
        agreement(
            f"{tokens}_tokens" if tokens else "zero_shot",
            f"{f'after {tokens:,} tokens' if tokens else 'before retraining'}, with the end of the trials",
            tokens,
            [(curve[tokens], curve[last]) for curve in curves if tokens in curve and last in curve],
        )
        for tokens in early
    ]
    screened = [(one.metrics[SCREEN_LOSS], dict(one.curve)[last]) for one in complete if SCREEN_LOSS in one.metrics]
    if screened:
        found.insert(0, agreement("screen", "in the screening, with the end of the trials", 0, screened))
    late = [(one.metrics["trial_loss"], one.val_loss) for one in finals if one.val_loss is not None]
    return [*found, agreement("final", "end of the trials, with the end of the finals", last, late)] if late else found


def lines(found: Sequence[Agreement], stopped_early: bool) -> list[str]:
    """The agreements and how to read them, one line each; nothing without agreements."""
    notes = [BY, *([SURVIVORS] if stopped_early else [])]
    return [*(f"{one.what}: {one}" for one in found), *notes] if found else []
