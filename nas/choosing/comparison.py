"""The final comparison: the winner, its lead, and the models it was compared with. Pure functions of the finals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nas.choosing.bootstrap import Difference, paired_difference
from nas.choosing.selection import COMPETING, competes, final_ranking
from nas.planning.errors import NothingFeasibleError
from nas.study.records import FinalRecord, text_losses
from trials.evaluate.reading import Reading
from trials.losses.window_losses import WindowLosses, mean_loss
from trials.losses.window_losses import text_losses as losses_on_texts

TEACHER, WINNER, RUNNER_UP, BEST_STOCK = "teacher", "winner", "runner-up", "best stock"
UNEQUAL = "if the interval contains 0, the two models are not distinguishable"


@dataclass(frozen=True)
class ComparisonRow:
    """One model of the final table.

    ``roles`` are its names in the table, such as "winner" or the name of a baseline. ``share`` is its share of the
    teacher's parameters. ``tokens`` is the total number of tokens it was distilled on. Losses are on validation text,
    in nats per token; ``losses`` holds the loss on each text if there are several. ``difference`` is its loss minus the
    winner's. ``test`` are readings on test text, and ``before`` are those before retraining, where they were asked for.
    No choice depends on them. ``loads_in`` is as in `nas.study.records.TrialRecord`.
    """

    roles: tuple[str, ...]
    architecture: str
    parameters: int
    share: float
    stock: bool
    tokens: int
    val_loss: float | None
    losses: Mapping[str, float] = field(default_factory=dict)
    difference: Difference | None = None
    reason: str = ""
    test: tuple[Reading, ...] = ()
    before: tuple[Reading, ...] = ()
    loads_in: str = ""

    @property
    def is_read(self) -> bool:
        """Whether the model is evaluated on test text: all that have a loss."""
        return self.val_loss is not None


@dataclass(frozen=True)
class Comparison:
    """The final table. ``winner``, ``runner_up`` and the best ``stock`` one are finals that compete, not baselines.

    ``difference`` is the runner-up's loss minus the winner's.
    """

    rows: tuple[ComparisonRow, ...]
    finals: tuple[FinalRecord, ...]
    winner: FinalRecord
    runner_up: FinalRecord | None
    stock: FinalRecord | None
    difference: Difference | None

    @property
    def verdict(self) -> str:
        """The winner against the runner-up in one line."""
        if self.runner_up is None or self.difference is None:
            return "no runner-up: no other finalist was trained"
        key, found = self.runner_up.architecture.key, self.difference
        interval = f"95 % interval {found.low:+.4f} to {found.high:+.4f} over {found.windows} validation windows"
        if found.distinguishable:
            return f"the loss of the runner-up, {key}, is {found.mean:.4f} nats a token higher ({interval})"
        return f"not distinguishable from the runner-up, {key}: {found.mean:+.4f} nats a token ({interval})"

    @property
    def notes(self) -> list[str]:
        """The verdict, and one line for every baseline with a smaller loss than the winner."""
        better = [row for row in self.rows if WINNER not in row.roles and TEACHER not in row.roles and _is_better(row)]
        names = (f"{', '.join(row.roles)} {row.architecture}: {row.difference}{_doubt(row)}" for row in better)
        return [self.verdict, *(f"a baseline has a smaller loss, but cannot win: {name}" for name in names)]

    def against_winner(self, record: FinalRecord) -> str:
        """The loss of ``record``, a final that competes, compared with the winner's, in a few words."""
        row = next(one for one in self.rows if one.architecture == record.architecture.key)
        return f"{row.difference} nats a token compared with the winner, {self.winner.architecture.key}"


def compare(
    finals: Sequence[FinalRecord],
    windows: Mapping[str, WindowLosses],
    teacher: WindowLosses,
    teacher_parameters: int,
    teacher_loads_in: str = "",
) -> Comparison:
    """The comparison of ``finals`` with each other and with the teacher.

    ``windows`` holds the losses per validation window of each COMPLETE final, by its name. The final with the smallest
    loss wins; baselines cannot win. Raises NothingFeasibleError when no final that competes is COMPLETE.
    """
    competing = [one for one in final_ranking(finals) if competes(one)]
    if not competing:
        reasons = "; ".join(sorted({one.reason or one.state for one in finals if competes(one)}))
        raise NothingFeasibleError(
            f"no finalist is complete: {reasons}; give --finalists 0 to take the best trial without a final stage"
        )
    winner, runner_up = competing[0], competing[1] if len(competing) > 1 else None
    stock = next((one for one in competing if one.stock), None)
    named = {WINNER: winner, RUNNER_UP: runner_up, BEST_STOCK: stock}
    rows = [
        _row(one, _roles(one, named), windows, windows[winner.name], teacher_parameters)
        for one in _order(finals, named)
    ]
    first = _teacher_row(teacher, windows[winner.name], teacher_parameters, teacher_loads_in)
    difference = paired_difference(windows[runner_up.name], windows[winner.name]) if runner_up else None
    return Comparison((first, *rows), tuple(finals), winner, runner_up, stock, difference)


def _is_better(row: ComparisonRow) -> bool:
    return row.difference is not None and row.difference.mean < 0


def _doubt(row: ComparisonRow) -> str:
    return "" if row.difference is None or row.difference.distinguishable else ", not distinguishable"


def _order(finals: Sequence[FinalRecord], named: Mapping[str, FinalRecord | None]) -> list[FinalRecord]:
    """The winner, the best stock final, the others that compete, the baselines, the failed; each group by loss."""
    ranked = final_ranking(finals)
    first = [one for one in (named[WINNER], named[BEST_STOCK]) if one is not None]
    rest = [one for one in ranked if competes(one)] + ranked + list(finals)
    return list({one.name: one for one in [*first, *rest]}.values())


def _roles(record: FinalRecord, named: Mapping[str, FinalRecord | None]) -> tuple[str, ...]:
    """The roles from the comparison, then those from before it. "finalist" says less than "winner" and is left out."""
    given = [name for name, one in named.items() if one == record]
    reasons = [role for role in record.roles if not (given and competes(record) and role in COMPETING)]
    return (*given, *reasons)


def _row(
    record: FinalRecord,
    roles: tuple[str, ...],
    windows: Mapping[str, WindowLosses],
    winner: WindowLosses,
    teacher_parameters: int,
) -> ComparisonRow:
    own = windows.get(record.name)
    return ComparisonRow(
        roles=roles,
        architecture=record.architecture.key,
        parameters=record.parameters,
        share=record.parameters / teacher_parameters,
        stock=record.stock,
        tokens=record.tokens,
        val_loss=record.val_loss,
        losses=text_losses(record),
        difference=None if own is None or WINNER in roles else paired_difference(own, winner),
        reason=record.reason or "",
        loads_in=record.loads_in,
    )


def _teacher_row(own: WindowLosses, winner: WindowLosses, parameters: int, loads_in: str) -> ComparisonRow:
    loss, losses = mean_loss(own), losses_on_texts(own)
    difference = paired_difference(own, winner)
    return ComparisonRow((TEACHER,), "", parameters, 1.0, True, 0, loss, losses, difference, loads_in=loads_in)
