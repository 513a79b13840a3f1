"""Heads and neurons spread over the layers by what they are worth, against as many in every layer.

    python -m benchmarks.allocation
    python -m benchmarks.allocation --model teachers/SmolLM2-135M-Instruct.Q4_1.gguf --corpus ./wikitext-2 --budget 100M

Of the informed first candidates, those with fewer heads or neurons than the teacher keep their depth, width and
parameters; their heads (in whole groups) and neurons (by sixteenths of the teacher's) are given to the layers one after
the other where the score of what comes back is highest, from a quarter of the teacher's on. The scores are those of
`benchmarks.scores` that can be compared between layers: Fisher, and what units add to the stream as a share of it. The
refitted students are compared before and after the same short distillation; excess loss over the teacher's on
validation text, nats per token. Which heads and neurons stay within a layer is decided by the scores of a search.
"""

from __future__ import annotations

import heapq
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.flags import flags_of, plan_of
from benchmarks.pruning import REFIT, Bench
from benchmarks.scores import Moments, fisher, output
from nas.bootstrap import paired_difference
from nas.candidates import informed
from search_spaces.architecture import Architecture
from trials.losses import mean_loss
from trials.prune import choose

LEAST = 0.25  # of the teacher's in every layer
CHUNKS = 16  # of neurons in a layer

Values = NDArray[np.float32]


def spread(values: Values, total: int, size: int, least: int) -> tuple[int, ...]:
    """How many of each row's units stay, ``total`` in all, in pieces of ``size`` and at least ``least`` each.

    Greedy: the piece of highest sum, each row's best units first, which is exact as no later piece of a row is better.
    """
    ordered = -np.sort(-values, axis=1)
    worth = ordered.reshape(len(values), -1, size).sum(axis=2)
    counts = [least // size] * len(values)
    heap = [(-float(row[count]), place) for place, (row, count) in enumerate(zip(worth, counts, strict=True))]
    heapq.heapify(heap)
    for _ in range((total - sum(counts) * size) // size):
        _, place = heapq.heappop(heap)
        counts[place] += 1
        if counts[place] < worth.shape[1]:
            heapq.heappush(heap, (-float(worth[place, counts[place]]), place))
    return tuple(count * size for count in counts)


def allocated(bench: Bench, uniform: Architecture, heads: Values, mlp: Values) -> Architecture:
    """``uniform`` with its heads and neurons spread by scores (L, A) and (L, M) of the teacher's layers."""
    shape, layers = bench.common.teacher.shape, choose(bench.common.scores, uniform).layers.numpy()
    group, piece = shape.group, shape.mlp // CHUNKS
    neurons = spread(mlp[layers], sum(uniform.mlp), piece, max(piece, round(LEAST * shape.mlp)))
    groups = heads[layers].reshape(len(layers), -1, group).sum(axis=2)
    kv_heads = spread(groups, sum(uniform.kv_heads), 1, max(1, round(LEAST * shape.kv_heads)))
    if uniform.heads[0] != group * uniform.kv_heads[0]:  # heads that are gone from within groups stay so
        return replace(uniform, mlp=neurons)
    return replace(uniform, mlp=neurons, heads=tuple(group * one for one in kv_heads), kv_heads=kv_heads)


def compare(bench: Bench, uniform: Architecture, scores: dict[str, tuple[Values, Values]]) -> None:
    """Print the table of one architecture."""
    shape = bench.common.teacher.shape
    ways = {"uniform": uniform} | {name: allocated(bench, uniform, *pair) for name, pair in scores.items()}
    print(f"\n{uniform.key}, {shape.parameters(uniform):,} parameters\n{'spread by':<12}{'before':>8}{'after':>8}")
    base = None
    for name, architecture in ways.items():
        assert shape.parameters(architecture) == shape.parameters(uniform)
        before = mean_loss(bench.losses(bench.student(architecture, REFIT))) - bench.teacher_loss
        after = bench.distilled(architecture, REFIT)
        base = base or after
        against = "" if name == "uniform" else f"  {paired_difference(after, base)} against uniform"
        print(f"{name:<12}{before:8.3f}{mean_loss(after) - bench.teacher_loss:8.3f}{against}", flush=True)
        if name != "uniform":
            print(f"  heads {' '.join(map(str, architecture.heads))}; neurons {' '.join(map(str, architecture.mlp))}")


def main() -> None:
    parser = flags_of(__doc__)
    parser.add_argument("--score-windows", type=int, default=64, help="of calibration text")
    flags = parser.parse_args()
    plan = plan_of(flags)
    bench = Bench(plan)
    windows, shape = bench.common.streams.windows[: flags.score_windows], bench.common.teacher.shape
    moments, slopes = Moments(bench, windows), fisher(bench, windows)
    streams = [bench.common.streams.before(layer + 1).square().sum(dim=1).mean() for layer in range(shape.layers)]
    whole = np.array(streams, np.float32)[:, None]
    shares = tuple(moments.scores(axis, output) / whole for axis in ("heads", "mlp"))
    scores = {"Fisher": (slopes["heads"], slopes["mlp"]), "output": (shares[0], shares[1])}
    print(f"teacher {bench.teacher_loss:.4f}; excess loss before and after {bench.recipe.tokens:,} tokens")
    for _, architecture in informed(plan.target.shape, plan.target.feasible):
        if (architecture.heads[0], architecture.mlp[0]) != (shape.heads, shape.mlp):
            compare(bench, architecture, scores)


if __name__ == "__main__":
    main()
