"""The informed first candidates: what a careful engineer would try before any sampler knows anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from search_spaces.architecture import Architecture
from search_spaces.shape import ModelShape

Score = Callable[[ModelShape, Architecture], tuple[float, ...]]


def informed(shape: ModelShape, feasible: Sequence[Architecture]) -> list[tuple[str, Architecture]]:
    """Up to three distinct candidates of the band, each with the name of the idea behind it, and twins by layer.

    ``depth-only`` keeps the width and drops layers, ``width-only`` keeps the layers and narrows, ``balanced``
    shrinks all axes alike. Where the band holds no pure one, the nearest to the idea stands in; among equals the
    one with most parameters. Of two with the same sizes in all, that with equal layers is the idea; the one with its
    neurons where they are worth most follows behind all ideas.
    """
    chosen: dict[Architecture, str] = {}
    for name, score in IDEAS.items():
        best = min(_plainest(feasible), key=partial(_order, shape, score))
        chosen.setdefault(best, name)
    varied = {_totals(one): one for one in feasible if not one.is_uniform}
    for one, name in list(chosen.items()):
        if (twin := varied.get(_totals(one))) is not None:
            chosen.setdefault(twin, f"{name}, by layer")
    return [(name, architecture) for architecture, name in chosen.items()]


def baselines(shape: ModelShape, feasible: Sequence[Architecture], seed: int) -> dict[str, Architecture]:
    """What a winner is to be compared with, by name: layers alone dropped, widths alone cut, one drawn by ``seed``.

    Which layers go, and which channels, heads and neurons, is decided by the scores as for any candidate. Where the
    band holds no pure one, the nearest stands in and is called so.
    """
    plainest = _plainest(feasible)
    depth, width = (min(plainest, key=partial(_order, shape, IDEAS[name])) for name in ("depth-only", "width-only"))
    pure_depth = all(share == 1 for share in _shares(shape, depth)[1:])
    pure_width = width.depth == shape.layers
    return {
        "depth only" if pure_depth else "nearest to depth only": depth,
        "width only" if pure_width else "nearest to width only": width,
        "random": Random(seed).choice(feasible),
    }


def _order(shape: ModelShape, score: Score, one: Architecture) -> tuple[float | str, ...]:
    return *score(shape, one), -shape.parameters(one), one.key


def _plainest(feasible: Sequence[Architecture]) -> list[Architecture]:
    """One architecture for each of the sizes in all; that with equal layers where there is one."""
    found: dict[tuple[int, ...], Architecture] = {}
    for one in feasible:
        if one.is_uniform or _totals(one) not in found:
            found[_totals(one)] = one
    return list(found.values())


def _totals(one: Architecture) -> tuple[int, ...]:
    return one.depth, one.hidden, sum(one.heads), sum(one.kv_heads), sum(one.mlp)


def _shares(shape: ModelShape, one: Architecture) -> tuple[float, ...]:
    """Of the teacher's layers, and of the sizes of an average one."""
    heads, kv_heads, mlp = (sum(sizes) / one.depth for sizes in (one.heads, one.kv_heads, one.mlp))
    shared = () if shape.group == 1 else (kv_heads / shape.kv_heads,)
    return one.depth / shape.layers, one.hidden / shape.hidden, heads / shape.heads, mlp / shape.mlp, *shared


def _depth_only(shape: ModelShape, one: Architecture) -> tuple[float, ...]:
    return (-sum(_shares(shape, one)[1:]),)


def _width_only(shape: ModelShape, one: Architecture) -> tuple[float, ...]:
    depth, *widths = _shares(shape, one)
    return -depth, max(widths) - min(widths)


def _balanced(shape: ModelShape, one: Architecture) -> tuple[float, ...]:
    shares = _shares(shape, one)
    return (max(shares) - min(shares),)


IDEAS: dict[str, Score] = {"depth-only": _depth_only, "width-only": _width_only, "balanced": _balanced}
