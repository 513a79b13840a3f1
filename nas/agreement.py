"""Could the cheap comparison be trusted? Whether early rankings agreed with late ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from nas.records import FinalRecord, TrialRecord

FEWEST = 3  # pairs; with two, any ranking agrees or disagrees completely
SURVIVORS = "Trials that were stopped early never reached the last rung: these are the survivors, a biased sample."
BY = "Kendall's tau: 1 is the same order, 0 none in common, -1 the reverse."


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau-b of two rankings of the same ``pairs`` architectures, the first read after ``tokens``.

    ``name`` is for metrics, ``what`` for readers. ``tau`` is None with fewer than `FEWEST` pairs, and where one side
    holds equal losses only.
    """

    name: str
    what: str
    tokens: int
    tau: float | None
    pairs: int

    def __str__(self) -> str:
        if self.pairs < FEWEST:
            return f"too few (n = {self.pairs})"
        return f"{'not defined, all equal' if self.tau is None else f'{self.tau:+.2f}'} (n = {self.pairs})"


def agreement(name: str, what: str, tokens: int, pairs: Sequence[tuple[float, float]]) -> Agreement:
    """The agreement of the (early loss, late loss) ``pairs``, one for each architecture."""
    tau = float(kendalltau(*zip(*pairs, strict=True)).statistic) if len(pairs) >= FEWEST else np.nan
    return Agreement(name, what, tokens, tau if np.isfinite(tau) else None, len(pairs))


def agreements(records: Iterable[TrialRecord], finals: Iterable[FinalRecord] = ()) -> list[Agreement]:
    """Of the ranking before any retraining and at each rung with that at the end of the trials, over the trials that
    reached both; and of the end of the trials with the end of the finals.
    """
    curves = [dict(one.curve) for one in records if one.state == "COMPLETE" and one.curve]
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
    late = [(one.metrics["trial_loss"], one.val_loss) for one in finals if one.val_loss is not None]
    return [*found, agreement("final", "end of the trials, with the end of the finals", last, late)] if late else found


def lines(found: Sequence[Agreement], stopped_early: bool) -> list[str]:
    """What a reader is told, a line each."""
    notes = [BY, *([SURVIVORS] if stopped_early else [])]
    return [*(f"{one.what}: {one}" for one in found), *notes] if found else []
