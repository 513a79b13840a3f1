"""Which trial wins, and what it is compared with: pure functions of the records of one study.

Every record is inside the budget band already (`nas.study.sampler` proposes nothing else), so the loss decides alone.
Losses of trials that were stopped early were read at fewer tokens and are never compared with final ones.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from nas.study.objectives import LOSS, PARAMETERS, dominated_by, point_of
from nas.study.records import FinalRecord, TrialRecord

STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING")
FINALIST, STOCK = "finalist", "stock finalist"
SIZE = (LOSS, PARAMETERS)  # what `pareto_front` weighs
COMPETING = (FINALIST, STOCK)  # roles of finals that can win; all others are baselines


def ranking(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The COMPLETE trials, best first: smallest validation loss, then fewer parameters, then the key's order."""
    return sorted((one for one in records if _judged(one)), key=_order)


def best(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """The winner, or None when no trial is COMPLETE."""
    return min((one for one in records if _judged(one)), key=_order, default=None)


def best_stock(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """The best of those that load with a plain ``from_pretrained``, or None when there is none."""
    return best(one for one in records if one.stock)


def competes(record: FinalRecord) -> bool:
    """Whether a final can win: a candidate that the search found, whatever else it is."""
    return any(role in COMPETING for role in record.roles)


def final_ranking(finals: Iterable[FinalRecord]) -> list[FinalRecord]:
    """The COMPLETE finals, best first: smallest validation loss, then fewer parameters, then the key's order."""
    complete = (one for one in finals if one.state == "COMPLETE" and one.val_loss is not None)
    return sorted(complete, key=lambda one: (one.val_loss, one.parameters, one.architecture.key))


def weighed(records: Iterable[TrialRecord], objectives: Sequence[str]) -> list[TrialRecord]:
    """The `ranking`, but those that fewer others beat in all ``objectives`` first: the Pareto front, then the rest."""
    return [record for _, record in sorted(_placed(records, objectives), key=lambda one: one[0])]


def front(records: Iterable[TrialRecord], objectives: Sequence[str]) -> list[TrialRecord]:
    """The COMPLETE trials that no other one beats in all ``objectives``, smallest loss first.

    One beats another when it is no worse in all of them and better in one.
    """
    return [record for place, record in _placed(records, objectives) if not place]


def _placed(records: Iterable[TrialRecord], objectives: Sequence[str]) -> list[tuple[int, TrialRecord]]:
    """The `ranking`, each with how many others beat it in all ``objectives``."""
    ranked = ranking(records)
    points = [point_of(one, objectives) for one in ranked]
    return [(dominated_by(point, points), one) for one, point in zip(ranked, points, strict=True)]


def pareto_front(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The `front` of parameters and loss, fewest parameters first; of equals one. The winner is the last."""
    by_point = {point_of(one, SIZE): one for one in reversed(front(records, SIZE))}
    return sorted(by_point.values(), key=lambda one: one.parameters)


def counts(records: Iterable[TrialRecord]) -> dict[str, int]:
    """Trials by state, every state named, in a fixed order."""
    counted = Counter(one.state for one in records)
    return {state: counted.get(state, 0) for state in STATES}


def listing(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """All trials in the order of a report: the ranking, then PRUNED by how far they came, FAIL, and RUNNING."""
    rest = [one for one in records if not _judged(one)]
    return ranking(records) + sorted(rest, key=_distance)


def last_reading(record: TrialRecord) -> tuple[int, float] | None:
    """(tokens, validation loss) of the last rung that the trial reached, or None when it reached none."""
    return record.curve[-1] if record.curve else None


def perplexity(loss: float) -> float:
    """Of a loss in nats per token; infinite where that is all a float can say."""
    return math.exp(loss) if loss < 700 else math.inf


def _judged(record: TrialRecord) -> bool:
    return record.state == "COMPLETE" and record.val_loss is not None


def _loss(record: TrialRecord) -> float:
    return float("inf") if record.val_loss is None else record.val_loss


def _order(record: TrialRecord) -> tuple[float, int, str, int]:
    return _loss(record), record.parameters, record.architecture.key, record.number


def _distance(record: TrialRecord) -> tuple[int, int, float, int]:
    tokens, loss = last_reading(record) or (0, float("inf"))
    state = STATES.index(record.state) if record.state in STATES else len(STATES)
    return state, -tokens, loss, record.number
