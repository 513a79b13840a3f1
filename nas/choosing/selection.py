"""Rankings of trials and finals, and the Pareto front: pure functions of the records of one study.

All trials of a budget are inside its band, because `nas.study.sampler` proposes nothing else. So the loss decides. A
trial that was stopped early has a loss at fewer tokens. Such losses are never compared with final losses.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from nas.study.objectives import LOSS, PARAMETERS, places, point_of
from nas.study.records import FinalRecord, TrialRecord
from search_spaces.budget import Budget
from search_spaces.shape import ModelShape
from search_spaces.stored_size import fits

STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING")
FINALIST, STOCK = "finalist", "stock finalist"
SIZE = (LOSS, PARAMETERS)  # the objectives of `pareto_front`
COMPETING = (FINALIST, STOCK)  # roles of finals that can win; all others are baselines

Record = TypeVar("Record", TrialRecord, FinalRecord)


def inside(budget: Budget, shape: ModelShape, records: Iterable[Record]) -> list[Record]:
    """The ``records`` whose architecture lies in the band of ``budget``; ``shape`` is the teacher's."""
    return [one for one in records if fits(budget, shape, one.architecture)]


def ranking(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The COMPLETE trials, best first: smallest validation loss, then fewer parameters, then the key's order."""
    return sorted((one for one in records if _has_final_loss(one)), key=_order)


def best(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """The winner, or None when no trial is COMPLETE."""
    return min((one for one in records if _has_final_loss(one)), key=_order, default=None)


def best_stock(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """The best trial whose model loads with a plain ``from_pretrained``, or None when there is none."""
    return best(one for one in records if one.stock)


def competes(record: FinalRecord) -> bool:
    """Whether a final can win. A finalist of the search can, even if it is also a baseline. Other baselines cannot."""
    return any(role in COMPETING for role in record.roles)


def final_ranking(finals: Iterable[FinalRecord]) -> list[FinalRecord]:
    """The COMPLETE finals, best first: smallest validation loss, then fewer parameters, then the key's order."""
    complete = (one for one in finals if one.state == "COMPLETE" and one.val_loss is not None)
    return sorted(complete, key=lambda one: (one.val_loss, one.parameters, one.architecture.key))


def weighed(records: Iterable[TrialRecord], objectives: Sequence[str]) -> list[TrialRecord]:
    """The COMPLETE trials by how many others dominate them, the Pareto front first; equals stay in `ranking` order."""
    return [record for _, record in sorted(_placed(records, objectives), key=lambda one: one[0])]


def front(records: Iterable[TrialRecord], objectives: Sequence[str]) -> list[TrialRecord]:
    """The COMPLETE trials on the Pareto front of ``objectives``, smallest loss first.

    No other trial dominates them: none is at least as good in every objective and better in one.
    """
    return [record for place, record in _placed(records, objectives) if not place]


def _placed(records: Iterable[TrialRecord], objectives: Sequence[str]) -> list[tuple[int, TrialRecord]]:
    """The `ranking`, each trial with the number of others that dominate it."""
    ranked = ranking(records)
    points = [point_of(one, objectives) for one in ranked]
    return list(zip(places(points), ranked, strict=True))


def front_values(records: Iterable[TrialRecord], objectives: Sequence[str]) -> list[dict[str, Any]]:
    """The `front` as JSON: the architecture, and each objective by its name. An unmeasured value is None."""
    found = [(one.architecture.key, point_of(one, objectives)) for one in front(records, objectives)]
    finite = [(key, [value if math.isfinite(value) else None for value in point]) for key, point in found]
    return [{"architecture": key, **dict(zip(objectives, point, strict=True))} for key, point in finite]


def pareto_front(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The `front` of loss and parameters, fewest parameters first, with one trial for each point.

    The last one has the smallest loss.
    """
    by_point = {point_of(one, SIZE): one for one in reversed(front(records, SIZE))}
    return sorted(by_point.values(), key=lambda one: one.parameters)


def counts(records: Iterable[TrialRecord]) -> dict[str, int]:
    """The number of trials in each of `STATES`, in that order."""
    counted = Counter(one.state for one in records)
    return {state: counted.get(state, 0) for state in STATES}


def listing(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """All trials in the order of a report: the `ranking`, then PRUNED, FAIL and RUNNING, each by tokens reached."""
    rest = [one for one in records if not _has_final_loss(one)]
    return ranking(records) + sorted(rest, key=_distance)


def last_reading(record: TrialRecord) -> tuple[int, float] | None:
    """(tokens, validation loss) of the last rung that the trial reached, or None when it reached none."""
    return record.curve[-1] if record.curve else None


def perplexity(loss: float) -> float:
    """exp of a ``loss`` in nats per token; infinite where a float overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def _has_final_loss(record: TrialRecord) -> bool:
    return record.state == "COMPLETE" and record.val_loss is not None


def _loss(record: TrialRecord) -> float:
    return float("inf") if record.val_loss is None else record.val_loss


def _order(record: TrialRecord) -> tuple[float, int, str, int]:
    return _loss(record), record.parameters, record.architecture.key, record.number


def _distance(record: TrialRecord) -> tuple[int, int, float, int]:
    tokens, loss = last_reading(record) or (0, float("inf"))
    state = STATES.index(record.state) if record.state in STATES else len(STATES)
    return state, -tokens, loss, record.number
