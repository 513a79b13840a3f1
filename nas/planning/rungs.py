"""Successive halving over tokens, with the study as its only memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

REDUCTION = 2  # keep the better half at each rung
FIRST_RUNG = 4  # the first rung comes after a quarter of a trial's tokens; earlier, rankings still flip


def rungs(tokens: int, step: int) -> tuple[int, ...]:
    """The tokens at which losses are compared: a quarter, a half, and all of ``tokens``, in whole steps of ``step``."""
    total = max(1, tokens // step)
    shares = [FIRST_RUNG, REDUCTION, 1]
    return tuple(sorted({max(1, total // share) * step for share in shares}))


def promotes(place: float, others: Sequence[float], fewest: int = 1, reduction: int = REDUCTION) -> bool:
    """Whether a trial at ``place`` may go beyond a rung that ``others`` (its own place included) have reached.

    A place is a loss, or anything of which less is better.

    Asynchronous successive halving (Li et al., MLSys 2020, algorithm 2), stopping variant as in Ray Tune's
    AsyncHyperBandScheduler: a trial goes on when it is in the better ``1 / reduction`` of those seen so far. Here also
    when it is among the best ``fewest``: of candidates that come best first, none after the first would ever do.
    """
    if not math.isfinite(place):
        return False
    better = sum(other < place for other in others)
    return better < max(fewest, math.ceil(len(others) / reduction))
