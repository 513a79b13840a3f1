"""Rows of the tables, how they are printed, and what they say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nas.choosing.bootstrap import Difference, paired_difference
from trials.losses.window_losses import WindowLosses


@dataclass(frozen=True)
class Row:
    """A student, before training (``tokens`` is 0) or after.

    ``excess`` is its loss over the teacher's in nats per token on each text. The first text is the corpus's own, which
    everybody calibrated on; nobody calibrated on the others. ``seconds`` is the time to cut it, or to train it.
    """

    way: str
    sizes: str
    parameters: int
    non_embedding: int
    excess: Mapping[str, float]
    seconds: float
    tokens: int = 0
    rate: float | None = None
    losses: WindowLosses = field(default_factory=dict, compare=False, repr=False)

    @property
    def calibrated(self) -> float:
        """The excess on the corpus's own text."""
        return next(iter(self.excess.values()))

    @property
    def unseen(self) -> float | None:
        """The mean excess over the other texts; None if there are none."""
        others = list(self.excess.values())[1:]
        return sum(others) / len(others) if others else None

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without the losses of windows."""
        value = asdict(self)
        del value["losses"]
        return {**value, "unseen": self.unseen}

    def line(self) -> str:
        """The row as a line under `heading`."""
        numbers = [*self.excess.values(), self.unseen]
        cells = "".join(f"{'-' if one is None else format(one, '.3f'):>13}" for one in numbers)
        tokens = f"{self.tokens:>9,}" if self.tokens else f"{'-':>9}"
        start = f"{self.way:<23}{self.sizes:<38}{self.parameters:>12,}{self.non_embedding:>14,}"
        return f"{start}{tokens}{cells}{self.seconds:>9.1f}"


def heading(texts: Sequence[str]) -> str:
    """The line above the rows."""
    cells = "".join(f"{name[:12]:>13}" for name in (*texts, "unseen mean"))
    return f"{'way':<23}{'sizes':<38}{'parameters':>12}{'non-embedding':>14}{'tokens':>9}{cells}{'seconds':>9}"


@dataclass(frozen=True)
class Against:
    """Ours against the best peer on one side: the corpus's own text, or the unseen ones.

    ``ratio`` is our excess divided by the peer's. ``difference`` is ours minus the peer's, paired by window.
    """

    side: str
    peer: str
    ratio: float
    difference: Difference

    def line(self) -> str:
        """One line about it."""
        return f"{self.side}: {self.ratio:.2f} of the best peer's, {self.peer}; difference {self.difference}"

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "difference": self.difference.to_dict()}


def best_peers(rows: Sequence[Row]) -> dict[str, Row]:
    """The best peer on each side among ``rows``, of which the first is ours."""
    best = {"calibrated": min(rows[1:], key=lambda row: row.calibrated)}
    if rows[0].unseen is not None:
        best["unseen"] = min(rows[1:], key=lambda row: row.unseen or 0.0)
    return best


def against(rows: Sequence[Row]) -> list[Against]:
    """Ours, the first of ``rows``, against the best peer on each side."""
    ours = rows[0]
    own, *others = ours.losses
    found = []
    for side, peer in best_peers(rows).items():
        names = [own] if side == "calibrated" else others
        difference = paired_difference(
            {name: ours.losses[name] for name in names}, {name: peer.losses[name] for name in names}
        )
        mine, theirs = (sum(row.excess[name] for name in names) for row in (ours, peer))
        found.append(Against(side, f"{peer.way} {peer.sizes}", mine / theirs, difference))
    return found
