"""Which trials go on beyond a rung, and which are stopped there: asynchronous successive halving."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nas.planning.rungs import REDUCTION
from nas.study.study import SearchStudy


def promotes(better: int, seen: int, fewest: int = 1, reduction: int = REDUCTION) -> bool:
    """Whether a trial goes on when ``better`` of the ``seen`` trials at its rung, itself included, are better.

    This is the stopping variant of asynchronous successive halving (Li et al., MLSys 2020, algorithm 2), as in Ray
    Tune's AsyncHyperBandScheduler: a trial goes on when it is in the better ``1 / reduction`` of those seen so far.

    The best ``fewest`` of those seen so far go on too. Screened candidates start in the order of their losses before
    retraining. Without this rule the first candidate alone would go on.
    """
    return better < max(fewest, math.ceil(seen / reduction))


@dataclass(frozen=True)
class Promotion:
    """The rule of one search.

    The study holds the losses that a trial is compared with. An interrupted search therefore stops the same trials as
    an uninterrupted one. ``last`` is the rung at the end of a trial, in tokens; no trial is stopped there. Without
    ``halving`` every trial with a finite loss goes on. At least the best ``fewest`` trials of a rung go on.
    """

    study: SearchStudy
    last: int
    halving: bool
    fewest: int = 1

    def goes_on(self, number: int, tokens: int, loss: float) -> bool:
        """Whether trial ``number`` goes on after ``loss`` (nats per token) at the rung ``tokens``."""
        if not math.isfinite(loss):
            return False
        if tokens in (0, self.last) or not self.halving:
            return True
        rank = self.study.rank_at(tokens, number)
        return promotes(rank.better, rank.seen, self.fewest) or self._is_best_stock(number, tokens)

    def _is_best_stock(self, number: int, tokens: int) -> bool:
        """Whether the trial is the best at its rung of those that load without our code.

        It always goes on. Otherwise a search could end without a complete stock trial.
        """
        return self.study.is_stock(number) and not self.study.rank_at(tokens, number, stock_only=True).dominated_by
