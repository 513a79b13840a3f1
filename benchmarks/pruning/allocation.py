r"""Compares neurons (and heads) spread over layers by value with the same number in every layer.

    python -m benchmarks.pruning.allocation
    python -m benchmarks.pruning.allocation --model teachers/SmolLM2-135M-Instruct.Q4_1.gguf \
      --corpus ./wikitext-2 --budget 100M

Each informed first candidate with fewer neurons than the teacher is compared with its twins: architectures of the same
depth, width and parameters whose neurons are spread over layers (`search_spaces.allocation`) by one of these values:

    elimination  the loss that the neuron's removal adds to its layer (`trials.prune.neuron_value`), as in a search
    output       the neuron's part of the output, as a share of the stream (`benchmarks.pruning.scores`)
    Fisher       Fisher's score (`benchmarks.pruning.scores`)
    heads too    as elimination, with heads spread as well, by output

The scores of a search choose the heads and neurons within a layer. Printed are the excess losses of the refitted
students over the teacher's on validation text in nats per token, before and after the same short distillation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from benchmarks.flags import flags_of, plan_of
from benchmarks.pruning.minitron import RATES, REFIT, Bench
from benchmarks.pruning.scores import Moments, Values, fisher, output
from nas.choosing.bootstrap import paired_difference
from nas.planning.candidates import informed
from search_spaces.allocation import NeuronValues, allocated, spread
from search_spaces.architecture import Architecture
from trials.losses.window_losses import mean_loss
from trials.prune.neuron_value import neuron_values, squares

UNIFORM = "uniform"
WAYS = ("elimination", "output", "Fisher", "heads too")

Twin = Callable[[Architecture], Architecture]


def twins(bench: Bench, names: Sequence[str], score_windows: int) -> dict[str, Twin]:
    """For each of ``names``, the function from a uniform architecture to its twin."""
    common, shape = bench.common, bench.common.teacher.shape
    text = common.streams.windows[:score_windows]
    values = {"elimination": neuron_values(common.scores, common.streams)}
    heads: Values = np.empty(0, np.float32)
    if {"output", "heads too"} & set(names):
        moments, sizes = Moments(bench, text), squares(common.streams)[:, None].astype(np.float32)
        values["output"] = values_of(bench, moments.scores("mlp", output) / sizes)
        heads = (moments.scores("heads", output) / sizes).reshape(shape.layers, -1, shape.group).sum(axis=2)
    if "Fisher" in names:
        values["Fisher"] = values_of(bench, fisher(bench, text)["mlp"])

    def heads_too(uniform: Architecture) -> Architecture:
        best = values["elimination"]
        rows = [sorted(heads[layer].tolist(), reverse=True) for layer in best.kept(uniform.depth)]
        shared, members = spread(rows, uniform.kv_heads[0], 1), uniform.heads[0] // uniform.kv_heads[0]
        return replace(allocated(uniform, best), heads=tuple(members * one for one in shared), kv_heads=shared)

    def by(given: NeuronValues) -> Twin:
        return lambda uniform: allocated(uniform, given)

    ways: dict[str, Twin] = {name: by(one) for name, one in values.items()} | {"heads too": heads_too}
    return {name: ways[name] for name in names}


def values_of(bench: Bench, neurons: Values) -> NeuronValues:
    """Neuron values from scores (L, M). The layers that stay are those of a search."""
    return NeuronValues.of(bench.common.scores.layers.tolist(), neurons.tolist())


def compare(bench: Bench, uniform: Architecture, ways: Mapping[str, Twin]) -> None:
    """Print the table of one architecture."""
    shape = bench.common.teacher.shape
    print(f"\n{uniform.key}, {shape.parameters(uniform):,} parameters\n{'spread by':<12}{'before':>8}{'after':>8}")
    base = None
    for name, architecture in {UNIFORM: uniform, **{name: way(uniform) for name, way in ways.items()}}.items():
        assert shape.parameters(architecture) == shape.parameters(uniform)
        student = bench.student(architecture, REFIT)
        before = mean_loss(bench.losses(student)) - bench.teacher_loss
        after = bench.trained(student, RATES[REFIT])
        base = base or after
        against = "" if name == UNIFORM else f"  {paired_difference(after, base)} against uniform"
        print(f"{name:<12}{before:8.3f}{mean_loss(after) - bench.teacher_loss:8.3f}{against}", flush=True)
        if name != UNIFORM:
            heads = f"heads {' '.join(map(str, architecture.heads))}; " if len(set(architecture.heads)) > 1 else ""
            print(f"  {heads}neurons {' '.join(map(str, architecture.mlp))}")


def main() -> None:
    parser = flags_of(__doc__)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--score-windows", type=int, default=64, help="calibration windows for output and Fisher")
    flags = parser.parse_args()
    plan = plan_of(flags)
    bench = Bench(plan)
    ways = twins(bench, flags.ways, flags.score_windows)
    print(f"teacher {bench.teacher_loss:.4f}; excess loss before and after {bench.recipe.tokens:,} tokens")
    for _, architecture in informed(plan.target.shape, plan.target.feasible):
        if architecture.mlp[0] != bench.common.teacher.shape.mlp:
            compare(bench, architecture, ways)


if __name__ == "__main__":
    main()
