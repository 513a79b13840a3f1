"""Compares how much search strategies spend until they find the best architecture, replayed from a table.

    python -m benchmarks.search.strategies

Reads ``benchmarks/search/truth_NAME.json`` (see `benchmarks.search.ground_truth`). Every strategy runs on it with the
study, the samplers and the scheduler of a search, one trial at a time. The losses of a trial come from the table, so
nothing is trained. The choice after each trial is the best of the complete trials.

Printed is what was spent until the choice was within 1 % of the lowest loss, and until it was the best architecture, as
medians over seeds: trials, distillation tokens, their share of training every architecture in full, and the share of
FLOPs (refit, evaluation and training of trials; refit and evaluation of screenings). The number in brackets counts the
seeds that never reached the goal, because the scheduler had stopped the architecture early.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from nas.choosing.agreement import Agreement, agreement
from nas.choosing.promotion import Promotion
from nas.planning.candidates import informed
from nas.running.tune_search import StudyScheduler
from nas.study.sampler import INNER, FeasibleSampler, distributions
from nas.study.study import SearchStudy
from search_spaces.architecture import Architecture
from search_spaces.shape import ModelShape
from search_spaces.space import SearchSpace
from trials.estimate import evaluation_flops, refit_flops, refit_windows, screen_flops, training_flops
from trials.recipe import Recipe
from trials.teacher.source import read_shape, resolve_model

NEAR = 1.01
SEEDS = 10


@dataclass(frozen=True)
class Truth:
    """A table of `benchmarks.search.ground_truth`."""

    table: dict[str, Any]

    @cached_property
    def shape(self) -> ModelShape:
        return read_shape(resolve_model(self.table["model"]))

    @cached_property
    def recipe(self) -> Recipe:
        return Recipe.from_dict({**self.table["recipe"], "model": self.table["model"], "corpus": "stdlib"})

    @cached_property
    def space(self) -> SearchSpace:
        axes: dict[str, Any] = {axis: tuple(sizes) for axis, sizes in self.table["space"].items()}
        return SearchSpace(self.shape, **axes)

    @cached_property
    def architectures(self) -> dict[str, Architecture]:
        known = {one["key"] for one in self.table["architectures"]}
        return {one.key: one for one in self.space if one.key in known}

    @cached_property
    def curves(self) -> dict[str, dict[int, float]]:
        return {one["key"]: {int(at): loss for at, loss in one["curve"]} for one in self.table["architectures"]}

    @cached_property
    def best(self) -> float:
        return min(curve[self.recipe.tokens] for curve in self.curves.values())

    def screens(self, tokens: int) -> dict[str, float]:
        return {one["key"]: one["screens"][str(tokens)]["loss"] for one in self.table["architectures"]}

    def trial_flops(self, one: Architecture, tokens: int) -> float:
        """FLOPs of a trial that ends at the rung ``tokens``: refit, evaluations at 0 and every rung, and training."""
        recipe, rungs = self.recipe, sum(rung <= tokens for rung in self.recipe.rungs)
        evaluation = evaluation_flops(self.shape, one, recipe) * (rungs + 1) / (len(recipe.rungs) + 1)
        training = training_flops(self.shape, one, recipe, "cpu") * tokens / recipe.tokens
        return refit_flops(self.shape, one, recipe, refit_windows(self.shape, recipe, "cpu")) + evaluation + training

    def screen_flops(self, one: Architecture, tokens: int) -> float:
        """FLOPs of a refit on ``tokens`` tokens and an evaluation on as many."""
        return screen_flops(self.shape, one, self.recipe, tokens, tokens)


class Guided(FeasibleSampler):
    """TPE that knows every screened architecture, as a trial that was stopped before its first token."""

    def __init__(self, space: SearchSpace, feasible: tuple[Architecture, ...], seed: int) -> None:
        super().__init__("tpe", space, feasible, seed)
        self.prior: dict[str, float] = {}

    def _propose(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution], seed: int
    ) -> dict[str, Any]:
        inner = optuna.create_study(sampler=TPESampler(seed=seed, multivariate=True))
        tried = [one for one in study.get_trials(deepcopy=False) if one.state.is_finished()]
        known = {tuple(one.params.values()) for one in tried}
        for one in self.feasible:
            sizes = self.space.sizes(one)
            if tuple(sizes.values()) not in known:
                inner.add_trial(
                    create_trial(
                        state=TrialState.PRUNED,
                        params=sizes,
                        distributions=distributions(self.space),
                        intermediate_values={0: self.prior[one.key]},
                    )
                )
        inner.add_trials(tried)
        asked = inner.ask(search_space)
        return dict(asked.params)


@dataclass(frozen=True)
class Strategy:
    """A search strategy.

    ``sampler`` is one of `nas.study.sampler.INNER` or "guided". ``halving`` turns on successive halving (ASHA).
    ``screened`` is the number of tokens of a screening, 0 for none.
    """

    sampler: str
    halving: bool
    screened: int = 0

    @property
    def name(self) -> str:
        screening = f", screened on {self.screened:,}" if self.screened else ""
        return f"{self.sampler}{' + asha' if self.halving else ''}{screening}"


@dataclass(frozen=True)
class Spent:
    """What was spent so far: distillation tokens, trials, and FLOPs as a share of training every architecture."""

    tokens: int
    trials: int
    flops: float


def replay(truth: Truth, strategy: Strategy, seed: int) -> list[tuple[Spent, float]]:
    """For each trial: what was spent up to its end, and the final loss of the choice (inf if there is none yet).

    The replay ends when the best architecture has been tried, even if its trial was stopped early.
    """
    study = _study(truth, strategy, seed)
    scheduler = StudyScheduler(
        study, lambda _: None, Promotion(study, last=truth.recipe.tokens, halving=strategy.halving)
    )
    best = min(truth.curves, key=lambda key: truth.curves[key][truth.recipe.tokens])
    whole = sum(truth.trial_flops(one, truth.recipe.tokens) for one in truth.architectures.values())
    flops = sum(truth.screen_flops(one, strategy.screened) for one in truth.architectures.values() if strategy.screened)
    tokens, chosen, history = 0, float("inf"), []
    while (candidate := study.ask()) is not None:
        number, curve = candidate.number, truth.curves[candidate.architecture.key]
        for at, loss in sorted(curve.items()):
            trial = SimpleNamespace(config={"number": number})
            if scheduler.on_trial_result(None, trial, {"tokens": at, "val_loss": loss}) == scheduler.STOP:
                study.prune(number, {})
                break
        else:
            study.complete(number, loss, {})
            chosen = min(chosen, loss)
        tokens += at
        flops += truth.trial_flops(candidate.architecture, at)
        history.append((Spent(tokens, number + 1, flops / whole), chosen))
        if candidate.architecture.key == best:
            break
    return history


def _study(truth: Truth, strategy: Strategy, seed: int) -> SearchStudy:
    feasible, guided = tuple(truth.architectures.values()), strategy.sampler == "guided"
    study = SearchStudy(
        "sqlite:///:memory:",
        "replay",
        truth.space,
        feasible,
        sampler="tpe" if guided else strategy.sampler,
        seed=seed,
        identity={},
    )
    if guided:
        study.sampler = study._study.sampler = Guided(truth.space, feasible, seed)
        study.sampler.prior = truth.screens(strategy.screened)
    elif strategy.screened:
        study.sampler.screened = dict(truth.screens(strategy.screened))
    else:
        study.queue(informed(truth.shape, feasible) if strategy.sampler != "exhaustive" else ())
    return study


def first(history: list[tuple[Spent, float]], goal: float) -> Spent | None:
    """What was spent when the choice first reached the loss ``goal``; None if it never did."""
    return next((spent for spent, chosen in history if chosen <= goal), None)


def line(truth: Truth, strategy: Strategy, seeds: int) -> str:
    """A row of the table: for both goals the medians over seeds, and the number of seeds that never reached it."""
    histories = [replay(truth, strategy, seed) for seed in range(seeds)]
    cells, whole = [f"{strategy.name:<30}"], len(truth.architectures) * truth.recipe.tokens
    for goal in (truth.best * NEAR, truth.best):
        found = [first(history, goal) for history in histories]
        reached = [one for one in found if one is not None]
        if 2 * len(reached) <= seeds:
            cells.append(f"{'not reached':>35}")
        else:
            unbounded = [float("inf")] * (seeds - len(reached))
            trials, tokens, flops = (
                statistics.median([*(getattr(one, what) for one in reached), *unbounded])
                for what in ("trials", "tokens", "flops")
            )
            cells.append(f"{trials:>7g}{tokens:>12,.0f}{tokens / whole:>8.1%}{flops:>8.1%}")
        lost = seeds - len(reached)
        cells.append(f" ({lost})" if lost else " " * 4)
    return "".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="mini", help="name of the table")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--samplers", nargs="+", default=[*INNER, "guided"], help="gp and guided take minutes a seed")
    flags = parser.parse_args()
    truth = Truth(json.loads((Path(__file__).parent / f"truth_{flags.name}.json").read_text("utf-8")))
    for kind in agreements(truth):
        print(f"tau with the end, {kind.what}: {kind}")
    goal, count = f"{'trials':>7}{'tokens':>12}{'share':>8}{'FLOPs':>8}    ", len(truth.architectures)
    print(f"{count} architectures, {truth.recipe.tokens:,} tokens each; the best ends at {truth.best:.4f}")
    print(f"{'':<30}{'within 1 % of it':^39}{'the very best':^39}\n{'':<30}{goal}{goal}")
    for strategy in (one for one in strategies(truth) if one.sampler in flags.samplers):
        print(line(truth, strategy, flags.seeds), flush=True)


def agreements(truth: Truth) -> list[Agreement]:
    """Rank agreement of screenings, and of validation losses at each rung, with the final losses."""
    ends = {key: curve[truth.recipe.tokens] for key, curve in truth.curves.items()}
    rungs = [at for at in (0, *truth.recipe.rungs) if at < truth.recipe.tokens]
    early = {f"after {at:,} tokens": {key: curve[at] for key, curve in truth.curves.items()} for at in rungs}
    early |= {f"screened on {cost:,}": truth.screens(cost) for cost in costs(truth)}
    return [agreement("", name, 0, [(losses[key], ends[key]) for key in ends]) for name, losses in early.items()]


def costs(truth: Truth) -> list[int]:
    """The tokens of the screenings in the table, ascending."""
    return sorted(int(tokens) for tokens in truth.table["architectures"][0]["screens"])


def strategies(truth: Truth) -> list[Strategy]:
    """All compared strategies, those without screening first."""
    plain = [Strategy(sampler, halving) for sampler in ("random", "tpe", "gp", "nsga2") for halving in (False, True)]
    ordered = [Strategy("screen", False, tokens) for tokens in costs(truth)]
    return [
        Strategy("exhaustive", False),
        *plain,
        *ordered,
        Strategy("screen", True, 8_192),
        Strategy("guided", False, 8_192),
    ]


if __name__ == "__main__":
    main()
