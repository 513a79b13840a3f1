"""Compares two ways to narrow the stream, channels and principal components, before and after retraining.

    python -m benchmarks.pruning.width
    python -m benchmarks.pruning.width --model teachers/SmolLM2-135M-Instruct.Q4_1.gguf --corpus ./wikitext-2

Students have all layers, heads and neurons of their teacher. One way keeps the channels with the highest Minitron
scores (arXiv 2407.14679) and the weights of the norms. The other way keeps principal components as in a search
(`trials.prune.rotate`). Both students are refitted to the teacher's stream, narrowed in the same way, and distilled on
the same batches at the same peak rates. Printed is the excess validation loss over the teacher's in nats per token, and
the difference at the best rate of each way with its 95 % interval.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from benchmarks.flags import flags_of, plan_of
from benchmarks.pruning.minitron import RATES, Bench
from nas.choosing.bootstrap import paired_difference
from search_spaces.architecture import Architecture
from trials.losses.window_losses import mean_loss
from trials.prune.prune import choose, student_from
from trials.prune.refit import refit
from trials.prune.rotate import Rotation, rotated, rotation_to

SHARES = (7 / 8, 3 / 4, 1 / 2)  # of the width
CHANNELS, COMPONENTS = "channels", "components"


@torch.no_grad()
def student(bench: Bench, architecture: Architecture, way: str, refitted: bool) -> PreTrainedModel:
    """The teacher narrowed to ``architecture`` in one ``way``, in float32."""
    common, family = bench.common, bench.common.targets.family
    teacher, streams = common.teacher.model, common.streams
    if way == CHANNELS:
        kept = choose(bench.minitron, architecture, common.teacher.shape.group)
        channels = torch.eye(common.teacher.shape.hidden)[kept.hidden]
        rotation = Rotation(channels, torch.ones(channels.shape[1]), centred=False)
        state = family.cut(teacher, kept)
    else:
        rotation = rotation_to(teacher, family, streams.directions, architecture.hidden)
        state = rotated(teacher, family, rotation)
    model = student_from(teacher.config, architecture, state)
    if refitted:
        refit(model, family, range(architecture.depth), streams, rotation)
    return model.float()


def compare(bench: Bench, width: int, rates: Sequence[float]) -> None:
    """Print the lines of one width."""
    shape = bench.common.teacher.shape
    architecture = Architecture.uniform(shape.layers, width, shape.heads, shape.mlp, shape.kv_heads)
    best = {}
    for way in (CHANNELS, COMPONENTS):
        before = mean_loss(bench.losses(student(bench, architecture, way, refitted=False)))
        model = student(bench, architecture, way, refitted=True)
        fitted = mean_loss(bench.losses(model))
        after = [bench.trained(copy.deepcopy(model), rate) for rate in rates]
        best[way] = min(after, key=mean_loss)
        excess = [one - bench.teacher_loss for one in (before, fitted, *map(mean_loss, after))]
        print(f"{width:>5}  {way:<11}" + "".join(f"{one:9.3f}" for one in excess), flush=True)
    print(f"       best of each: {paired_difference(best[COMPONENTS], best[CHANNELS])} against channels", flush=True)


def main() -> None:
    parser = flags_of(__doc__)  # the budget has no effect here
    parser.add_argument("--rates", type=float, nargs="+", default=sorted(RATES.values()), help="peak learning rates")
    flags = parser.parse_args()
    bench = Bench(plan_of(flags))
    shape, tokens = bench.common.teacher.shape, bench.recipe.tokens
    print(f"teacher {bench.teacher_loss:.4f}, width {shape.hidden}; excess loss, nats a token")
    print(f"{'':18}{'before retraining':>18}   after {tokens:,} tokens at")
    print(f"{'width':>5}  {'kept':<11}{'slices':>9}{'refit':>9}" + "".join(f"{one:>9.0e}" for one in flags.rates))
    for share in SHARES:
        compare(bench, round(share * shape.hidden), flags.rates)


if __name__ == "__main__":
    main()
