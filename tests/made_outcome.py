"""A made-up result of a search, as large as a test wants it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tracking_reference import record

from nas.choosing.agreement import agreements
from nas.choosing.comparison import Comparison, compare
from nas.choosing.outcome import Chosen, Outcome
from nas.choosing.selection import FINALIST
from nas.planning.machine import Machine, Node
from nas.planning.plan import Plan, make_plan, resolve_target
from nas.planning.settings import load_settings
from nas.study.records import LATENCY, SCREEN_LOSS, FinalRecord
from search_spaces.architecture import Architecture
from search_spaces.shape import ModelShape
from trials.preparation import Preparation

ROLES = ((FINALIST,), (FINALIST,), (FINALIST, "width only"), ("nearest to depth only",), ("random",))
MINI = ModelShape("gpt2", 8, 256, 8, 32, 1024, 4096, 256, tied=True)
NOISE = np.random.default_rng(0).normal(0, 0.02, (len(ROLES), 64))


def made_plan(teacher: Path, output: Path, **more: Any) -> Plan:
    """A plan for 60 % of the tiny teacher."""
    given = {"model": teacher, "output": output, "corpus": "stdlib", "budget": "60%", "tolerance": 0.2, **more}
    settings = load_settings({name: str(value) for name, value in given.items()}, None, {})
    return make_plan(settings, resolve_target(settings), Machine((Node(2, 0.0, 2**34),)))


def made_finals(parameters: int, tokens: int) -> tuple[list[FinalRecord], dict[str, dict[str, np.ndarray]]]:
    """Five finals, the first one the best, and their losses by window."""
    finals, windows = [], {}
    for place, roles in enumerate(ROLES):
        losses = 2.7 + place / 100 + NOISE[place]
        architecture = Architecture.uniform(8, 24 * (place + 1), 4, 512)
        known = {"trial_loss": 3.0 + place / 10}
        one = FinalRecord(architecture, parameters - place, place != 1, tokens, roles, "COMPLETE", metrics=known)
        finals.append(FinalRecord(**{**vars(one), "val_loss": float(losses.mean()), "ended": 1_700_000_000.0}))
        windows[one.name] = {"text": losses}
    return finals, windows


def made_comparison(parameters: int = 4_436_160, tokens: int = 65_536) -> Comparison:
    """Five finals and a teacher of twice their size."""
    finals, windows = made_finals(parameters, tokens)
    return compare(finals, windows, {"text": np.full(64, 2.5)}, 2 * parameters)


def made_outcome(
    plan: Plan, shape: ModelShape = MINI, parameters: int = 4_436_160, tokens: int = 65_536, trials: int = 8
) -> Outcome:
    """The result of ``plan`` for a teacher of another ``shape``: five finals, and ``trials``, some stopped early."""
    plan = replace(plan, target=replace(plan.target, shape=shape))
    comparison = made_comparison(parameters, tokens)
    keys = [one.architecture for one in comparison.finals]
    shapes = [
        keys[place] if place < len(keys) else Architecture.uniform(7, 16 * place, 4, 512) for place in range(trials)
    ]
    records = [
        record(
            place,
            "COMPLETE" if place < 5 else "PRUNED",
            architecture=shapes[place],
            parameters=parameters - place,
            curve=((0, 3.0 + place / 10), (tokens // 2, 2.8 + place / 10)),
            metrics={SCREEN_LOSS: 3.0 + place, LATENCY: 1.5 + place},
            val_loss=2.8 + place / 10 if place < 5 else None,
        )
        for place in range(trials)
    ]
    winner, stock = (
        Chosen(one, tokens // 2, tokens // 2, plan.folder) for one in (comparison.winner, comparison.stock)
    )
    return Outcome(
        plan=plan,
        preparation=Preparation(shape, "f", 2.5, "a corpus", "t", "", False, 1.0),
        records=records,
        winner=winner,
        winner_path=plan.folder / "best",
        stock=stock,
        stock_path=plan.folder / "best",
        comparison=comparison,
        agreements=agreements(records, comparison.finals),
        screened={one.architecture.key: one.metrics[SCREEN_LOSS] for one in records},
        seconds=66.4,
    )
