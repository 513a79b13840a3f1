"""Whom a screening takes of a band that is too large for it, and that losses alone decide it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from nas.choosing.screening import follow, to_screen
from nas.planning.candidates import informed
from nas.planning.machine import Machine, Node
from nas.planning.plan import Plan, make_plan, resolve_target
from nas.planning.settings import load_settings
from search_spaces.architecture import Architecture
from search_spaces.budget import Budget
from search_spaces.files import load_space
from search_spaces.shape import ModelShape

SHAPE = ModelShape("gpt2", 8, 256, 8, 32, 1024, 4096, 256, tied=True)
SPACE = load_space("fine", SHAPE)
BAND = tuple(SPACE.feasible(Budget(4_300_000, 4_600_000, "")))
SEEDS = range(8)

Loss = Callable[[Architecture], float | None]


def order_of(seed: int) -> list[Architecture]:
    return Random(seed).sample(BAND, len(BAND))


def loss_of(seed: int) -> Loss:
    """A bowl whose bottom lies anywhere, with a little noise."""
    generator = np.random.default_rng(seed)
    bottom, noise = (
        generator.random(len(SPACE.axes)),
        dict(zip(BAND, generator.normal(0, 1e-3, len(BAND)), strict=True)),
    )
    return lambda one: float(np.square(SPACE.position(SPACE.sizes(one)) - bottom).sum() + noise[one])


def screened(order: list[Architecture], most: int, loss: Loss, known: dict[str, float | None]) -> set[Architecture]:
    """All that are screened from where ``known`` stands."""
    losses = dict(known)
    while new := [one for one in follow(SPACE, order, most, losses) if one.key not in losses]:
        losses |= {one.key: loss(one) for one in new}
    return {one for one in order if one.key in losses}


def test_the_best_of_a_band_is_among_a_third_of_it_where_a_draw_would_miss_it() -> None:
    most, drawn = len(BAND) // 3, 0
    for seed in SEEDS:
        order, loss = order_of(seed), loss_of(seed)
        best = min(BAND, key=loss)  # type: ignore[arg-type]
        found = screened(order, most, loss, {})
        assert len(found) == most
        assert best in found
        drawn += best in order[:most]
    assert drawn < len(SEEDS) / 2


def test_an_interrupted_screening_comes_to_the_same_architectures() -> None:
    order, loss, most = order_of(0), loss_of(0), 24
    whole = screened(order, most, loss, {})
    known = dict[str, float | None]()
    for _ in range(most):
        left = [one for one in follow(SPACE, order, most, known) if one.key not in known]
        known[left[-1].key] = loss(left[-1])  # whichever ended first
        assert screened(order, most, loss, known) == whole


def test_one_that_failed_counts_and_is_not_asked_again() -> None:
    order, most = order_of(0), 24
    assert screened(order, most, lambda _: None, {}) == set(order[:most])
    loss, lost = loss_of(0), order[0]
    found = screened(order, most, lambda one: None if one is lost else loss(one), {})
    assert len(found) == most


def make(teacher: Path, **changes: Any) -> Plan:
    flags = {"model": teacher, "corpus": "stdlib", "budget": "60%", "tolerance": "0.1", "sampler": "screen", **changes}
    settings = load_settings({name: str(value) for name, value in flags.items()}, None, {})
    return make_plan(settings, resolve_target(settings), Machine((Node(2, 0.0, 2**34),)))


def test_a_small_band_is_screened_whole_and_of_a_larger_one_first_the_informed_and_a_draw(
    tiny_teacher_folder: Path,
) -> None:
    plan = make(tiny_teacher_folder)
    feasible = plan.target.feasible
    assert 8 < len(feasible) <= 64
    assert to_screen(plan, {}) == feasible
    assert plan.screenings == len(feasible)
    some = to_screen(make(tiny_teacher_folder, screened=8), {})
    assert make(tiny_teacher_folder, screened=8).screenings == 8
    assert len(set(some)) == 4
    assert {one for _, one in informed(plan.target.shape, feasible)} <= set(some) <= set(feasible)
    assert to_screen(make(tiny_teacher_folder, screened=8, seed=1), {}) != some
    assert to_screen(make(tiny_teacher_folder, screened=10), {})[:4] == some
    assert to_screen(make(tiny_teacher_folder, screened=1), {}) == some[:1]
    assert to_screen(make(tiny_teacher_folder, sampler="tpe"), {}) == ()


def test_a_front_wants_all_parts_of_a_band(tiny_teacher_folder: Path) -> None:
    plan = make(tiny_teacher_folder, screened=8, objectives="loss,params")
    drawn = to_screen(plan, {})
    assert len(drawn) == 8
    assert to_screen(plan, {one.key: float(one.hidden) for one in drawn}) == drawn


def test_every_budget_follows_its_own_losses(tiny_teacher_folder: Path) -> None:
    """Of one whose losses are not known yet the first half, of the other all."""
    plan = make(tiny_teacher_folder, budget="80%,60%", screened=8)
    large, small = plan.parts
    losses = {one.key: float(one.hidden) for one in small.target.feasible}
    found = to_screen(plan, losses)
    assert found == (*to_screen(large, {}), *to_screen(small, losses))
    assert len(found) == 4 + 8
    assert plan.screenings == 16


@pytest.mark.parametrize("most", [1, 2, 5, 9, len(BAND) - 1])
def test_as_many_are_screened_as_asked_for(most: int) -> None:
    assert len(screened(order_of(1), most, loss_of(1), {})) == most
