"""Sizes for a given number of parameters: of each peer, and of the students beside which they are put."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from transformers import PreTrainedModel

from benchmarks.pruning.minitron import SLACK
from search_spaces.architecture import Architecture
from search_spaces.shape import ModelShape
from search_spaces.space import SearchSpace
from trials.families.base import Family, matrix_of


def name_of(architecture: Architecture) -> str:
    """The name of ``architecture``, or its mean sizes when they differ by layer."""
    if architecture.is_uniform:
        return architecture.key
    heads, kv_heads, mlp = (
        sum(sizes) / architecture.depth for sizes in (architecture.heads, architecture.kv_heads, architecture.mlp)
    )
    return f"d{architecture.depth}-h{architecture.hidden}-a{heads:.1f}k{kv_heads:.1f}-m{mlp:.0f} mean"


def fewer_layers(shape: ModelShape, target: int) -> Architecture:
    """The teacher with as many layers as come nearest to ``target`` non-embedding parameters."""
    count = nearest(shape.layers, target, lambda size: shape.non_embedding_parameters(_of_depth(shape, size)))
    return _of_depth(shape, count)


def fewer_neurons(shape: ModelShape, target: int, count: Callable[[Architecture], int]) -> Architecture:
    """The teacher with as many neurons in every layer as come nearest to ``target`` parameters, as ``count`` counts."""

    def of_size(size: int) -> Architecture:
        return replace(shape.full, mlp=(size,) * shape.layers)

    return of_size(nearest(shape.mlp, target, lambda size: count(of_size(size))))


def nearest(most: int, target: int, count: Callable[[int], int]) -> int:
    """The size from 1 to ``most`` whose ``count`` is nearest to ``target``; the smaller of equal ones."""
    return min(range(1, most + 1), key=lambda size: abs(count(size) - target))


def _of_depth(shape: ModelShape, depth: int) -> Architecture:
    return Architecture.uniform(depth, shape.hidden, shape.heads, shape.mlp, shape.kv_heads)


def three_shapes(space: SearchSpace, share: float) -> dict[str, Architecture]:
    """A shape with fewer layers only, one that is narrower only, and one that is both, near ``share``.

    ``share`` is of the non-embedding parameters. The shapes are chosen without a look at any loss. Those at most
    `SLACK` below the share come first. Among them, all axes that are cut keep about the same share of their sizes. If
    no shape is that near, which happens where a layer is a large part of the model, the nearest one is taken.
    """
    shape = space.shape
    whole = shape.non_embedding_parameters(shape.full)
    groups: dict[str, list[Architecture]] = {"depth": [], "width": [], "depth and width": []}
    for one in space:
        _, *narrower = _kept(shape, one)
        if all(each == 1 for each in narrower):
            groups["depth"].append(one)
        elif all(each < 1 for each in narrower):
            groups["width" if one.depth == shape.layers else "depth and width"].append(one)
    return {name: min(group, key=lambda one: _distance(shape, one, share * whole)) for name, group in groups.items()}


def _kept(shape: ModelShape, one: Architecture) -> tuple[float, ...]:
    """The shares that stay of layers, hidden size, heads and MLP."""
    return one.depth / shape.layers, one.hidden / shape.hidden, one.heads[0] / shape.heads, one.mlp[0] / shape.mlp


def _distance(shape: ModelShape, one: Architecture, target: float) -> tuple[bool, float]:
    """Whether ``one`` is out of the band below ``target``; then how far it is, or how unevenly its axes are cut."""
    share = shape.non_embedding_parameters(one) / target
    if not 1 - SLACK <= share <= 1:
        return True, abs(share - 1)
    cut = [math.log(each) for each in _kept(shape, one) if each < 1]
    return False, max(cut, default=0) - min(cut, default=0)


def non_embedding(model: PreTrainedModel, family: Family) -> int:
    """The parameters that ``model`` really has, without its input and output embeddings."""
    outside = {id(one.get_parameter("weight")) for one in family.embeddings(model)} | {id(family.output_weight(model))}
    return sum(one.numel() for one in model.parameters() if id(one) not in outside)


def flops_per_token(model: PreTrainedModel, family: Family, context: int) -> int:
    """Forward FLOPs of one token as `ModelShape.flops_per_token` counts them, from the matrices that ``model`` has."""
    total = 2 * family.output_weight(model).numel()
    for layer in family.layers(model):
        total += 2 * sum(one.numel() for one in layer.parameters() if one.dim() == 2)
        total += 4 * context * matrix_of(family.attention_output(layer)).shape[1]
    return total
