"""A search that never ran, in a real study: for whatever reads studies. Nothing is trained and Ray is not started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nas.choosing.agreement import agreements
from nas.choosing.comparison import compare
from nas.choosing.finalists import finalists
from nas.choosing.outcome import Chosen, Outcome
from nas.choosing.selection import inside
from nas.planning.machine import Machine, Node
from nas.planning.plan import Plan, make_plan, resolve_target
from nas.planning.settings import load_settings
from nas.running.tasks import PreparedTeacher
from nas.stages.events import BudgetConcluded, Event, SearchConcluded, SearchPrepared, StepEnded, TrialChanged
from nas.stages.keep_facts import add_seconds, keep_facts, keep_result, keep_sizes
from nas.stages.prepare import open_study
from nas.study.records import FinalRecord
from nas.study.study import SearchStudy
from nas.study.trial_records import SCREENED
from search_spaces.architecture import Architecture
from trials.preparation import Preparation
from trials.prune.importance import ImportanceScores

TEACHER_LOSS, WINDOWS = 2.5, 16


class MadeUp:
    """A search that goes on step by step. ``events`` are those that a listener would hear; ``plan`` is its plan."""

    def __init__(self, teacher: Path, output: Path, **changes: Any) -> None:
        flags = {"model": teacher, "output": output, "corpus": "stdlib", "budget": "60%", "tolerance": "0.2"}
        flags |= {"study": "made-up", "trials": 6, "screened": 20, **changes}
        settings = load_settings({name: str(value) for name, value in flags.items()}, None, {})
        plan = make_plan(settings, resolve_target(settings), Machine((Node(2, 0.0, 2**34),)))
        self.plan: Plan = replace(plan, command="python -m nas.search --budget 60%")
        self.teacher = _teacher(self.plan)
        self.plan.folder.mkdir(parents=True, exist_ok=True)
        self.study: SearchStudy = open_study(self.plan, self.teacher.preparation)
        self.events: list[Event] = []
        keep_facts(self.plan, self.study, self.teacher)
        add_seconds(self.study, "prepare", -3.0)
        self.events.append(SearchPrepared(self.plan, self.study.unique_id, self.teacher))

    def screen(self) -> None:
        """Every architecture of every budget has a loss before retraining."""
        feasible, sequence = self.plan.target.feasible[:40], self.plan.recipe.sequence_length
        keep_sizes(self.study, self.plan.target.shape, feasible, sequence)
        for one in feasible:
            self.study.keep(SCREENED, one.key, loss_of(one) + 0.4)
        self.study.queue([("best before retraining", feasible[0])])
        self.events.append(StepEnded())

    def trials(self, count: int, failing: Sequence[int] = (), reason: str = "NonFiniteLoss: nan") -> None:
        """``count`` trials that reach all rungs; every fourth is stopped at the first; those in ``failing`` fail."""
        for _ in range(count):
            candidate = self.study.ask()
            assert candidate is not None
            number, loss = candidate.number, loss_of(candidate.architecture)
            rungs = (0, *self.plan.recipe.rungs)
            for place, tokens in enumerate(rungs if number % 4 != 3 else rungs[:2]):
                self.study.report(number, tokens, loss + 0.3 / (place + 1))
            if number in failing:
                self.study.fail(number, reason)
            elif number % 4 == 3:
                self.study.prune(number, {})
            else:
                self.study.complete(number, loss + 0.3 / len(rungs), {"seconds": 1.0})
            self.events.append(TrialChanged(self.study.record(number)))

    def conclude(self) -> list[Outcome]:
        """Train the finals, choose the winner of every budget, and keep the results."""
        outcomes = [self._outcome(part) for part in self.plan.parts]
        for one in outcomes:
            keep_result(self.study, one)
            self.events.append(BudgetConcluded(one))
        self.events.append(SearchConcluded(self.plan, outcomes, self.study.records()))
        return outcomes

    def _outcome(self, part: Plan) -> Outcome:
        shape = part.target.shape
        records = inside(part.target.budget, shape, self.study.records())
        finals = [self._final(one) for one in finalists(part, records)] if part.settings.finalists else []
        windows = {one.name: _windows(one.val_loss or 0.0, one.parameters) for one in finals}
        compared = compare(finals, windows, _windows(TEACHER_LOSS, 0), shape.parameters(shape.full)) if finals else None
        best = min((one for one in records if one.val_loss is not None), key=lambda one: one.val_loss or 0.0)
        chosen = Chosen(compared.winner if compared else best, part.recipe.tokens, part.final_tokens, part.folder)
        return Outcome(
            plan=part,
            preparation=self.teacher.preparation,
            records=records,
            winner=chosen,
            winner_path=part.results / "best",
            stock=None,
            stock_path=None,
            comparison=compared,
            agreements=agreements(records, finals),
            screened={},
            seconds=9.0,
        )

    def _final(self, waiting: FinalRecord) -> FinalRecord:
        loss = loss_of(waiting.architecture) + 0.05
        curve = (*waiting.curve, (waiting.tokens, loss))
        found = replace(waiting, state="COMPLETE", val_loss=loss, curve=curve, metrics={"trial_loss": loss + 0.05})
        self.study.remember(f"final 5 {found.name}", replace(found, started=1.0, ended=2.0).to_dict())
        return found


def loss_of(one: Architecture) -> float:
    """The loss of an architecture after long training: wide and deep ones are better, and no two are alike."""
    return TEACHER_LOSS + 0.1 + 0.5 / one.depth + 3.0 / one.hidden + 1.0 / (sum(one.mlp) + 7 * sum(one.heads))


def _windows(mean: float, seed: int) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    noise = np.random.default_rng(seed).normal(0, 0.01, WINDOWS)
    return {"text": mean + noise - noise.mean()}


def _teacher(plan: Plan) -> PreparedTeacher:
    shape, chance = plan.target.shape, np.random.default_rng(0)
    layers, hidden, heads, mlp = (
        chance.random(size).astype(np.float32) + 0.1
        for size in ((shape.layers,), (shape.hidden,), (shape.layers, shape.heads), (shape.layers, shape.mlp))
    )
    shares = np.sort(chance.random(shape.hidden).astype(np.float32))[::-1]
    preparation = Preparation(shape, "teacher", TEACHER_LOSS, "text", "text", "scores", False, 1.0)
    scores = ImportanceScores(layers, hidden, heads, mlp)
    return PreparedTeacher(preparation, scores, shares / shares.sum(), _windows(TEACHER_LOSS, 0), None)
