"""The informed first candidates, on the teachers people start with."""

from __future__ import annotations

import pytest

from nas.planning.candidates import baselines, informed
from search_spaces.budget import parse_budget
from search_spaces.files import PRESETS, load_space
from search_spaces.shape import ModelShape

OTHER = ("layer-removal", "sparsity", "pdp")  # too many layers for the first; the others keep the teacher's own shape
MEDIUM = ModelShape("gpt2", 24, 1024, 16, 64, 4096, 50257, 1024, tied=True)


@pytest.mark.parametrize("preset", [one for one in PRESETS if one not in OTHER])
def test_candidates_are_feasible_and_distinct(preset: str) -> None:
    space = load_space(preset, MEDIUM)
    feasible = tuple(space.feasible(parse_budget("260M", MEDIUM.parameters(MEDIUM.full), space.counts)))
    chosen = [one for _, one in informed(MEDIUM, feasible)]
    assert 1 <= len(chosen) == len(set(chosen)) <= 3
    assert set(chosen) <= set(feasible)


def test_ideas_are_what_they_say() -> None:
    space = load_space("default", MEDIUM)
    feasible = tuple(space.feasible(parse_budget("260M", MEDIUM.parameters(MEDIUM.full), space.counts)))
    ideas = dict(informed(MEDIUM, feasible))
    full = MEDIUM.full
    depth = ideas["depth-only"]
    assert (depth.hidden, depth.heads[0], depth.mlp[0]) == (full.hidden, full.heads[0], full.mlp[0])
    assert ideas["width-only"].depth == full.depth
    shares = [
        ideas["balanced"].depth / 24,
        ideas["balanced"].hidden / 1024,
        ideas["balanced"].heads[0] / 16,
        ideas["balanced"].mlp[0] / 4096,
    ]
    assert max(shares) - min(shares) < 0.1
    same_depth = [one for one in feasible if (one.hidden, one.heads, one.mlp) == (depth.hidden, depth.heads, depth.mlp)]
    assert MEDIUM.parameters(depth) == max(MEDIUM.parameters(one) for one in same_depth)


def test_baselines_are_the_pure_ideas_and_a_draw() -> None:
    space = load_space("default", MEDIUM)
    feasible = tuple(space.feasible(parse_budget("260M", MEDIUM.parameters(MEDIUM.full), space.counts)))
    ideas, found = dict(informed(MEDIUM, feasible)), baselines(MEDIUM, feasible, 0)
    assert list(found) == ["depth only", "width only", "random"]
    assert (found["depth only"], found["width only"]) == (ideas["depth-only"], ideas["width-only"])
    assert found == baselines(MEDIUM, feasible, 0)
    drawn = {baselines(MEDIUM, feasible, seed)["random"] for seed in range(40)}
    assert len(drawn) > 20
    assert drawn <= set(feasible)


def test_a_baseline_that_the_band_does_not_hold_is_not_called_so() -> None:
    space = load_space("width", MEDIUM)
    feasible = tuple(space.feasible(parse_budget("260M", MEDIUM.parameters(MEDIUM.full), space.counts)))
    assert list(baselines(MEDIUM, feasible, 0)) == ["nearest to depth only", "width only", "random"]
