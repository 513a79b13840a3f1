"""The table of layer removal, its insights and its heat map, from measurements whose answers are known."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from tracking_reference import record

from nas.study.records import LATENCY
from nas.tables.layers import BEST_SHOWN, layers_table, pair_matrix, plot_pairs, removals_of, table_of
from nas.tables.removals import Removal, Removals, insights
from nas.tables.study_table import csv_text, markdown
from nas.tables.writer import MAKERS, PLOTTERS
from search_spaces.architecture import Architecture
from search_spaces.shape import ModelShape

LAYERS = 5
DAMAGE = (0.9, 0.2, 0.1, 0.4, 0.3)  # of each layer alone
TOGETHER = {(1, 2): 0.5, (3, 4): -0.25}  # beyond the sum of both


def added_by(removed: tuple[int, ...]) -> float:
    pairs = (more for pair, more in TOGETHER.items() if {*pair} <= {*removed})
    return sum(DAMAGE[one] for one in removed) + sum(pairs)


def make(layers: int = LAYERS, added: Callable[[tuple[int, ...]], float] = added_by) -> Removals:
    """All removals; a layer takes 2 ms and 100 parameters, and everything else as much as one layer."""

    def removal(removed: tuple[int, ...]) -> Removal:
        left = layers - len(removed) + 1
        return Removal(removed, 2 + added(removed), 2.0 * left, 100 * left)

    every = [one for count in range(layers) for one in combinations(range(layers), count)]
    baseline, *others = map(removal, every)
    return Removals(layers, baseline, tuple(reversed(others)))


def test_rows_are_the_baseline_single_layers_and_combinations_with_their_changes() -> None:
    table = table_of(make(), "tiny")
    found = list(csv.DictReader(io.StringIO(csv_text(table))))
    assert len(found) == 2**LAYERS - 1
    assert [row["layers removed"] for row in found[:7]] == ["none", "2", "1", "4", "3", "0", "2 4"]
    lefts = [int(row["layers left"]) for row in found]
    assert lefts == sorted(lefts, reverse=True)
    row = next(row for row in found if row["layers removed"] == "1 2")
    assert float(row["perplexity"]) == pytest.approx(math.exp(2.8))
    assert float(row["change"]) == pytest.approx(100 * (math.exp(0.8) - 1))
    assert (float(row["ms a token"]), float(row["ms change"])) == (8.0, pytest.approx(-100 / 3))
    assert (row["parameters"], row["layers left"]) == ("400", "3")
    assert (float(found[0]["change"]), float(found[0]["ms change"])) == (0, 0)


def test_people_see_the_baseline_every_single_layer_and_the_best_of_each_depth() -> None:
    table = table_of(make(), "tiny")
    lines = markdown(table).split("\n\n")[1].splitlines()[2:]
    seen = [line.split("|")[1].strip() for line in lines]
    assert seen[: 1 + LAYERS] == ["none", "2", "1", "4", "3", "0"]
    assert [sum(len(one.split()) == count for one in seen[1:]) for count in (2, 3, 4)] == [BEST_SHOWN] * 3
    for count in (2, 3, 4):
        best = min(combinations(range(LAYERS), count), key=added_by)
        assert " ".join(map(str, best)) in seen
    assert f"{len(seen)} of 31 rows are shown; layers.csv has all" in table.notes
    assert not [note for note in table_of(make(2), "tiny").notes if "are shown" in note]


def test_the_insights_are_what_the_measurements_say() -> None:
    removals = make()
    assert [layer for layer, _ in removals.ranking()] == [2, 1, 4, 3, 0]
    assert removals.together() == {
        pair: pytest.approx(TOGETHER.get(pair, 0), abs=1e-9) for pair in combinations(range(LAYERS), 2)
    }
    ranking, best, greedy, pairs = insights(removals)
    assert ranking.endswith("2 (+0.100), 1 (+0.200), 4 (+0.300), 3 (+0.400), 0 (+0.900)")
    assert "4 left: without 2; 3 left: without 2 4; 2 left: without 2 3 4" in best
    assert greedy.endswith("finds the best combination for 4 of 4 numbers of layers")
    assert pairs.endswith("the most and the least beyond it: 1 and 2 (+0.500 nats), 3 and 4 (-0.250 nats)")


def test_one_after_another_can_miss_the_best_combination() -> None:
    """Without layer 2 first, layers 0 and 1 could go for nothing."""
    removals = make(3, lambda removed: 0.0 if removed == (0, 1) else 0.2 * len(removed) - 0.1 * (removed == (2,)))
    assert removals.one_after_another()[2] != removals.best()[2].removed == (0, 1)
    assert any(one.endswith("for 1 of 2 numbers of layers") for one in insights(removals))


def test_nothing_is_said_about_what_was_not_measured() -> None:
    removals = make()
    few = replace(removals, others=tuple(one for one in removals.others if one.removed in ((1, 2), (1,), (0, 3, 4))))
    notes = insights(few)
    assert [note for note in notes if note.startswith("least loss")] == [
        "least loss by layers left; 4 left: without 1; 3 left: without 1 2; 2 left: without 0 3 4"
    ]
    assert not few.together()
    assert not few.one_after_another()
    assert len(notes) == 2
    assert insights(replace(removals, others=())) == []
    assert len(table_of(replace(removals, others=()), "tiny").rows) == 1


def test_the_heat_map_has_pairs_and_single_layers_on_its_diagonal(tmp_path: Path) -> None:
    removals = make()
    matrix = pair_matrix(removals)
    assert np.diag(matrix) == pytest.approx(DAMAGE)
    assert np.array_equal(matrix, matrix.T)
    assert matrix[1, 2] == pytest.approx(0.8)
    few = replace(removals, others=tuple(one for one in removals.others if one.removed != (1, 2)))
    assert np.isnan(pair_matrix(few)[2, 1])
    sizes = [imread(plot_pairs(one, tmp_path / "pairs.png")).shape for one in (removals, few, make(2))]
    assert len({*sizes}) == 1


SHAPE = ModelShape("gpt2", LAYERS, 48, 4, 12, 96, 320, 64, True)


def outcome_of(records: list[Any]) -> Any:
    recipe = SimpleNamespace(refit=False, tokens=0, validation_tokens=128, sequence_length=64)
    settings, target = SimpleNamespace(model="tiny"), SimpleNamespace(shape=SHAPE)
    resources = SimpleNamespace(device="cpu", cpus=1)
    plan = SimpleNamespace(settings=settings, target=target, recipe=recipe, resources=resources, times_candidates=True)
    return SimpleNamespace(plan=plan, preparation=SimpleNamespace(teacher_loss=2.0), records=records)


def test_trials_that_are_not_whole_layers_or_not_complete_are_no_rows(tmp_path: Path) -> None:
    two = Architecture.uniform(2, 48, 4, 96)
    trials = [
        record(0, architecture=replace(two, kept_layers=(0, 3)), val_loss=3.0, metrics={LATENCY: 4.0}, parameters=7),
        record(1, architecture=two, val_loss=1.0),
        record(2, architecture=Architecture.uniform(LAYERS, 36, 3, 96), val_loss=1.0),
        record(3, "FAIL", architecture=replace(two, kept_layers=(0, 1)), val_loss=None),
    ]
    removals = removals_of([outcome_of(trials)])
    assert removals.others == (Removal((1, 2, 4), 3.0, 4.0, 7),)
    assert removals.baseline == Removal((), 2.0, None, SHAPE.parameters(SHAPE.full))
    whole = record(4, architecture=SHAPE.full, val_loss=2.5, metrics={LATENCY: 9.0}, parameters=9)
    outcomes = [outcome_of(trials), outcome_of([whole])]
    assert removals_of(outcomes).baseline == Removal((), 2.5, 9.0, 9)
    table = layers_table(outcomes)
    assert [row[0] for row in table.rows] == ["none", "1 2 4"]
    assert any("29 tokens, greedy, one sequence, after a prompt of 32; alone" in note for note in table.notes)
    assert MAKERS["layers"](outcomes) == table
    assert PLOTTERS["layers"](outcomes, tmp_path) == []  # no pair, no picture
