"""Heads and neurons spread over the layers by what they are worth, against as many in every layer.

    python -m benchmarks.allocation
    python -m benchmarks.allocation --model teachers/SmolLM2-135M-Instruct.Q4_1.gguf --corpus ./wikitext-2 --budget 100M

Of the informed first candidates, those with fewer heads or neurons than the teacher are compared with their twins by
layer (`search_spaces.allocation`), of the same depth, width and parameters. Twins follow what units add to the stream
as a share of it (`trials.worth`, as in a search whose space has them), or Fisher's scores (`benchmarks.scores`). The
refitted students are compared before and after the same short distillation; excess loss over the teacher's on
validation text, nats per token. Which heads and neurons stay within a layer is decided by the scores of a search.
"""

from __future__ import annotations

from benchmarks.flags import flags_of, plan_of
from benchmarks.pruning import REFIT, Bench
from benchmarks.scores import fisher
from nas.bootstrap import paired_difference
from nas.candidates import informed
from search_spaces.allocation import Worth, allocated
from search_spaces.architecture import Architecture
from trials.losses import mean_loss
from trials.preparation import unit_worth


def compare(bench: Bench, uniform: Architecture, worths: dict[str, Worth]) -> None:
    """Print the table of one architecture."""
    shape = bench.common.teacher.shape
    ways = {"uniform": uniform} | {name: allocated(uniform, worth) for name, worth in worths.items()}
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
    parser.add_argument("--ways", nargs="+", choices=("output", "Fisher"), default=["output", "Fisher"])
    parser.add_argument("--score-windows", type=int, default=64, help="of calibration text, for Fisher's scores")
    flags = parser.parse_args()
    plan = plan_of(flags)
    bench = Bench(plan)
    shape = bench.common.teacher.shape
    worths = {"output": unit_worth(plan.recipe, str(plan.cache), plan.resources.device)}
    if "Fisher" in flags.ways:
        slopes = fisher(bench, bench.common.streams.windows[: flags.score_windows])
        groups = slopes["heads"].reshape(shape.layers, -1, shape.group).sum(axis=2)
        layers = bench.common.scores.layers
        worths["Fisher"] = Worth.of(layers.tolist(), groups.tolist(), slopes["mlp"].tolist())
    print(f"teacher {bench.teacher_loss:.4f}; excess loss before and after {bench.recipe.tokens:,} tokens")
    for _, architecture in informed(plan.target.shape, plan.target.feasible):
        if (architecture.heads[0], architecture.mlp[0]) != (shape.heads, shape.mlp):
            compare(bench, architecture, {name: worths[name] for name in flags.ways})


if __name__ == "__main__":
    main()
