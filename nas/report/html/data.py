"""Everything that the page of a search shows, as one frozen value with a JSON form."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nas.choosing.agreement import Agreement, agreements
from nas.choosing.selection import inside
from nas.display.readings_table import column_name, measured
from nas.report.html.costs import Failure, Stage, failures_of, largest, stages_of
from nas.report.html.models import Model, models_of
from nas.report.html.verdict import Place, Winner, places_of, progress, remarks, trust, verdict, winner_of
from nas.study.records import FinalRecord
from nas.study.snapshot import IMPORTANCE, PLAN, RESULT, TEACHER, StudySnapshot
from search_spaces.budget import BYTES, Budget
from trials.evaluate.reading import Reading

MOST = 1_200  # architectures on a page, the best known; more would make the file larger than 2 MB
MOST_FAILURES = 60  # in the table of a study
RUNNING, FINISHED, UNFINISHED = "running", "finished", "unfinished"


@dataclass(frozen=True)
class Row:
    """A row of the final table. ``difference`` is (mean, low, high) of its loss minus the winner's."""

    roles: tuple[str, ...]
    key: str
    parameters: int
    share: float
    tokens: int
    loss: float | None
    difference: tuple[float, float, float] | None
    losses: tuple[tuple[str, float], ...] = ()
    tests: tuple[tuple[str, str], ...] = ()
    loads_in: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Part:
    """What is known for one budget of one study. ``name`` tells it from the others on the page.

    ``winner`` is None until there is one. ``sentence`` is the verdict, or how far the search has come.
    """

    name: str
    study: str
    budget: Mapping[str, Any]
    teacher: str
    teacher_loss: float
    sentence: str
    remarks: tuple[str, ...]
    winner: Winner | None
    rows: tuple[Row, ...]
    models: tuple[Model, ...]
    left_out: int
    agreements: tuple[Agreement, ...]
    trust: str
    objectives: tuple[str, ...]
    programs: tuple[Place, ...]
    formats: tuple[Place, ...]


@dataclass(frozen=True)
class Study:
    """What the budgets of a study share."""

    name: str
    command: str
    importance: Mapping[str, Any]
    stages: tuple[Stage, ...]
    most: Mapping[str, float]
    failures: tuple[Failure, ...]
    more_failures: int
    settings: tuple[tuple[str, str], ...]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Page:
    """The page of one study, or of several beside each other. ``written`` is in seconds since the epoch.

    ``together`` are the final rows of all studies, each with the name of its budget. ``comparison`` says whether losses
    of different studies can be compared.
    """

    title: str
    state: str
    written: float
    studies: tuple[Study, ...]
    parts: tuple[Part, ...]
    together: tuple[tuple[str, Row], ...] = ()
    comparison: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def page_of(found: Sequence[StudySnapshot], running: bool = False) -> Page:
    """The page of the studies ``found``. ``running`` says that the search goes on; a snapshot cannot tell."""
    known = [(one, models_of(one)) for one in found]
    budgets = [(one, models, budget) for one, models in known for budget in _plan(one)["budgets"]]
    parts = tuple(_part(*one, several=len(found) > 1, most=MOST // len(budgets)) for one in budgets)
    done = all(part.winner for part in parts)
    state = RUNNING if running else FINISHED if done else UNFINISHED
    title = " and ".join(one.name for one in found)
    studies = tuple(_study(one, models) for one, models in known)
    if len(found) == 1:
        return Page(title, state, time.time(), studies, parts)
    return Page(title, state, time.time(), studies, parts, _together(parts), _comparison(found))


def _together(parts: Sequence[Part]) -> tuple[tuple[str, Row], ...]:
    """The final rows of all ``parts``, best loss first."""
    rows = [(part.name, row) for part in parts for row in part.rows]
    return tuple(sorted(rows, key=lambda one: (one[1].loss is None, one[1].loss or 0.0)))


def _comparison(found: Sequence[StudySnapshot]) -> str:
    """Whether the losses of different studies can be compared."""
    names = ("teacher", "text", "validation_tokens", "sequence_length", "validation")
    differ = [one for one in names if len({str(study.attributes["identity"].get(one)) for study in found}) > 1]
    if any(name != "teacher" for name in differ):
        return "The studies read different validation text: compare a loss with those of its own study only."
    if differ:
        return "The studies have different teachers and read the same validation text."
    return "The studies have one teacher and read the same validation text, so their losses can be compared."


def _plan(found: StudySnapshot) -> Mapping[str, Any]:
    plan: Mapping[str, Any] = found.attributes[PLAN]
    return plan


def _study(found: StudySnapshot, models: Sequence[Model]) -> Study:
    plan, stages, failures = _plan(found), stages_of(found, models), failures_of(models, found)
    settings = {**plan["settings"], **{name: value for name, value in plan["recipe"].items() if value is not None}}
    return Study(
        name=found.name,
        command=plan["command"],
        importance=found.attributes[IMPORTANCE],
        stages=stages,
        most=largest(stages),
        failures=failures[:MOST_FAILURES],
        more_failures=max(0, len(failures) - MOST_FAILURES),
        settings=tuple(sorted((name.replace("_", " "), str(value)) for name, value in settings.items())),
        versions=plan["versions"],
    )


def _part(
    found: StudySnapshot, models: Sequence[Model], limits: Mapping[str, Any], *, several: bool, most: int
) -> Part:
    teacher, result = found.attributes[TEACHER], found.parts(RESULT).get(limits["part"])
    budget = Budget(limits["minimum"], limits["maximum"], limits["text"], limits["unit"])
    own = [one for one in models if (one.stored_bytes if budget.unit == BYTES else one.parameters) in budget]
    records, finals = inside(budget, found.shape, found.records), inside(budget, found.shape, found.finals)
    winner = winner_of(result, found.shape, found.attributes[IMPORTANCE]["layers"]) if result else None
    found_agreements = tuple(agreements(records, finals))
    ended = sum(one.state != "RUNNING" for one in records)
    programs, formats = places_of(result) if result else ((), ())
    name = limits["text"] if not several else f"{found.name}, {limits['text']}"
    return Part(
        name=name,
        study=found.name,
        budget=limits,
        teacher=_plan(found)["settings"]["model"],
        teacher_loss=teacher["val_loss"],
        sentence=verdict(result, winner) if result and winner else progress(own, limits),
        remarks=tuple(remarks(result, ended, _plan(found)["objectives"])) if result else (),
        winner=winner,
        rows=_final_rows(result) if result else _rows_so_far(finals, teacher),
        models=tuple(own[:most]),
        left_out=max(0, len(own) - most),
        agreements=found_agreements,
        trust=trust(found_agreements),
        objectives=tuple(_plan(found)["objectives"]),
        programs=programs,
        formats=formats,
    )


def _final_rows(result: Mapping[str, Any]) -> tuple[Row, ...]:
    return tuple(map(_final_row, result["final"]))


def _final_row(row: Mapping[str, Any]) -> Row:
    versus = row["vs_winner"]
    readings = [
        Reading(**{**one, "value": float("nan") if one["value"] is None else one["value"]})
        for one in row.get("test", ())
    ]
    return Row(
        roles=tuple(row["roles"]),
        key=row["architecture"] or "",
        parameters=row["params"],
        share=row["share"],
        tokens=row["tokens"],
        loss=row["val_loss"],
        difference=(versus["mean"], versus["low"], versus["high"]) if versus else None,
        losses=tuple(row.get("val_losses", {}).items()),
        tests=tuple((column_name(one), measured(one)) for one in readings),
        loads_in=row.get("loads_in", ""),
        reason=row.get("failed", ""),
    )


def _rows_so_far(finals: Sequence[FinalRecord], teacher: Mapping[str, Any]) -> tuple[Row, ...]:
    """The finals of a search that goes on, best loss first. Intervals come when all of them have ended."""
    whole = teacher["parameters"]
    first = Row(("teacher",), "", whole, 1.0, 0, teacher["val_loss"], None)
    rows = [
        Row(
            one.roles,
            one.architecture.key,
            one.parameters,
            one.parameters / whole,
            one.tokens,
            one.val_loss,
            None,
            reason=one.reason or "" if one.ended else "running",
        )
        for one in finals
    ]
    return (first, *sorted(rows, key=lambda row: (row.loss is None, row.loss or 0.0))) if rows else ()
