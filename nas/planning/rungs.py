"""Rungs: the token counts at which the losses of trials are compared."""

from __future__ import annotations

REDUCTION = 2  # the better half goes on at each rung
FIRST_RUNG = 4  # the first rung comes after a quarter of a trial's tokens; earlier rankings are not stable


def rungs(tokens: int, step: int) -> tuple[int, ...]:
    """A quarter, a half and all of ``tokens``, in whole optimizer steps of ``step`` tokens; ascending, each once.

    There is none where nothing is trained, at 0 tokens.
    """
    if not tokens:
        return ()
    total = max(1, tokens // step)
    shares = [FIRST_RUNG, REDUCTION, 1]
    return tuple(sorted({max(1, total // share) * step for share in shares}))
