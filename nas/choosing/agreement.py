"""Could the cheap comparison be trusted? Whether early rankings agreed with late ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.choosing.bootstrap import COVERAGE
from nas.study.records import SCREEN_LOSS, FinalRecord, TrialRecord

RESAMPLES = 1_000
FEWEST = 3  # pairs; with two, any ranking agrees or disagrees completely
SURVIVORS = "Trials that were stopped early never reached the last rung: these are the survivors, a biased sample."
BY = "Kendall's tau: 1 is the same order, 0 none in common, -1 the reverse; with a 95 % interval over architectures."


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau-b of two rankings of the same ``pairs`` architectures, the first read after ``tokens``.

    ``name`` is for metrics, ``what`` for readers. ``tau`` is None with fewer than `FEWEST` pairs, and where one side
    holds equal losses only. ``low`` and ``high`` are a 95 % bootstrap interval over architectures.
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
            return f"not defined, all equal (n = {self.pairs})"
        return f"{self.tau:+.2f} [{self.low:+.2f}, {self.high:+.2f}] (n = {self.pairs})"


def agreement(name: str, what: str, tokens: int, pairs: Sequence[tuple[float, float]]) -> Agreement:
    """The agreement of the (early loss, late loss) ``pairs``, one for each architecture.

    The interval reaches from the 2.5th to the 97.5th percentile of tau over samples of the pairs, drawn with
    replacement; a pair that was drawn twice is a tie on both sides, which tau-b leaves out.
    """
    losses, count = np.array(pairs, dtype=float).reshape(-1, 2), len(pairs)
    tau = float(_taus(losses, np.ones((1, count)))[0]) if count >= FEWEST else np.nan
    if not np.isfinite(tau):
        return Agreement(name, what, tokens, None, count)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    low, high = np.nanquantile(_taus(losses, drawn), [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Agreement(name, what, tokens, tau, count, float(low), float(high))


def _taus(losses: NDArray[np.float64], counts: NDArray[np.floating] | NDArray[np.integer]) -> NDArray[np.float64]:
    """Kendall's tau-b of the two columns of ``losses`` (n, 2), each row taken ``counts`` (R, n) times; shape (R,).

    nan where one side holds equal losses only.
    """
    first, second = (np.sign(column[:, None] - column) for column in losses.T)
    agreeing, *untied = (((counts @ signs) * counts).sum(axis=1) for signs in (first * second, first**2, second**2))
    with np.errstate(invalid="ignore"):
        taus: NDArray[np.float64] = agreeing / np.sqrt(untied[0] * untied[1])
    return taus


def agreements(records: Iterable[TrialRecord], finals: Iterable[FinalRecord] = ()) -> list[Agreement]:
    """Of the ranking in the screening, before any retraining, and at each rung with that at the end of the trials, over
    the trials that reached both; and of the end of the trials with the end of the finals.
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
    """What a reader is told, a line each."""
    notes = [BY, *([SURVIVORS] if stopped_early else [])]
    return [*(f"{one.what}: {one}" for one in found), *notes] if found else []
