"""What a search found for one budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nas.choosing.agreement import Agreement
from nas.choosing.comparison import Comparison
from nas.planning.plan import Plan
from nas.study.records import FinalRecord, TrialRecord
from trials.preparation import Preparation


@dataclass(frozen=True)
class Chosen:
    """An exported student: of a COMPLETE trial after ``tokens``, or of a final after ``final_tokens`` more.

    ``weights`` is the folder of the student. ``verdict`` compares it with the next best,
    ``other_text`` with the teacher on other text.
    """

    record: TrialRecord | FinalRecord
    tokens: int
    final_tokens: int
    weights: Path
    verdict: str = ""
    other_text: str = ""

    @property
    def key(self) -> str:
        """The architecture's name."""
        return self.record.architecture.key

    @property
    def val_loss(self) -> float:
        """The validation loss in nats per token."""
        assert self.record.val_loss is not None, "only a COMPLETE record is chosen"
        return self.record.val_loss


@dataclass(frozen=True)
class Outcome:
    """What a search found for one budget. Paths are exported checkpoints.

    ``comparison`` is None without a final stage. ``screened`` are losses before retraining by the architecture's key,
    None where there is none. ``seconds`` are those since the search began.
    """

    plan: Plan
    preparation: Preparation
    records: Sequence[TrialRecord]
    winner: Chosen
    winner_path: Path
    stock: Chosen | None
    stock_path: Path | None
    comparison: Comparison | None
    agreements: Sequence[Agreement]
    screened: Mapping[str, float | None]
    seconds: float

    @property
    def finals(self) -> tuple[FinalRecord, ...]:
        """The finalists and the baselines."""
        return self.comparison.finals if self.comparison else ()

    @property
    def teacher_parameters(self) -> int:
        """The number of parameters of the teacher."""
        shape = self.plan.target.shape
        return shape.parameters(shape.full)
