"""The informed candidates and the baselines: architectures that follow a simple idea instead of a sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from search_spaces.architecture import Architecture
from search_spaces.shape import ModelShape
from search_spaces.stored_size import stored_bytes

Score = Callable[[ModelShape, Architecture], tuple[float, ...]]


def informed(shape: ModelShape, feasible: Sequence[Architecture]) -> list[tuple[str, Architecture]]:
    """The candidates that a careful engineer would try first, each with the name of its idea.

    ``depth-only`` keeps the width and drops layers. ``width-only`` keeps all layers and makes them narrower.
    ``balanced`` shrinks all axes by the same share. If the band has no architecture of an idea, the nearest one is
    taken; among equally near ones, the one with most parameters. An idea takes equal layers if it can. Its twin with
    the same total sizes, but with neurons moved to the layers where they are worth most, comes after all ideas.
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
    """The architectures that a winner is compared with, by name: depth only, width only, and one drawn by ``seed``.

    They are pruned by the same scores as any candidate. If the band has no pure architecture of a kind, the nearest one
    is taken, and its name says so. Where weights are compressed too, they are `one_way_only` and the drawn one.
    """
    if any(one.compression for one in feasible):
        return one_way_only(shape, feasible) | {"random": Random(seed).choice(feasible)}  # nosec B311  # repeatable
    plainest = _plainest(feasible)
    depth, width = (min(plainest, key=partial(_order, shape, IDEAS[name])) for name in ("depth-only", "width-only"))
    pure_depth = all(share == 1 for share in _shares(shape, depth)[1:])
    pure_width = width.depth == shape.layers
    return {
        "depth only" if pure_depth else "nearest to depth only": depth,
        "width only" if pure_width else "nearest to width only": width,
        "random": Random(seed).choice(feasible),  # nosec B311  # repeatable
    }


def one_way_only(shape: ModelShape, feasible: Sequence[Architecture]) -> dict[str, Architecture]:
    """The largest architecture of the band that was made smaller in one way only, by the name of the way.

    A way that no architecture of the band takes alone is left out.
    """
    found: dict[str, Architecture] = {}
    for one in sorted(feasible, key=lambda one: (-stored_bytes(shape, one), one.key)):
        ways = [name for name, taken in _ways(shape, one).items() if taken]
        if len(ways) == 1:
            found.setdefault(f"{ways[0]} only", one)
    return found


def _ways(shape: ModelShape, one: Architecture) -> dict[str, bool]:
    done = one.compression
    quantized = done.quantization.scheme != "none"
    return {"structure": one.plain != shape.full, "sparsity": bool(done.sparsity.level), "quantization": quantized}


def _order(shape: ModelShape, score: Score, one: Architecture) -> tuple[float | str, ...]:
    return *score(shape, one), -shape.parameters(one), one.key


def _plainest(feasible: Sequence[Architecture]) -> list[Architecture]:
    """One architecture for each combination of total sizes: the first with equal layers, or else the first.

    The first has the least done to its weights, because spaces list their values in that order.
    """
    found: dict[tuple[int, ...], Architecture] = {}
    for one in feasible:
        known = found.setdefault(_totals(one), one)
        if one.is_uniform and not known.is_uniform:
            found[_totals(one)] = one
    return list(found.values())


def _totals(one: Architecture) -> tuple[int, ...]:
    return one.depth, one.hidden, sum(one.heads), sum(one.kv_heads), sum(one.mlp)


def _shares(shape: ModelShape, one: Architecture) -> tuple[float, ...]:
    """The share of the teacher's layers, then the shares of its sizes, averaged over the layers of ``one``."""
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
