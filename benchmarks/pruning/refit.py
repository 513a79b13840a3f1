r"""Compares refits: one shot or layer by layer, amounts of text, and ridges; before and after retraining.

    python -m benchmarks.pruning.refit
    python -m benchmarks.pruning.refit --model teachers/SmolLM2-135M-Instruct.Q4_1.gguf \
      --corpus ./wikitext-2 --students MLP

Three students have the teacher's whole width: one with half of the neurons, one with half of the neurons and three
quarters of the heads, and one with three quarters of the layers. They are made in three ways:

    plain     the baseline: slices by Minitron's scores, distilled at a rate of their own
    one shot  each output projection is fitted to its output in the whole teacher, with the teacher's inputs only
    in turn   the refit of a search (`trials.prune.refit`): layer by layer, to the teacher's stream, with the inputs of
              the layers that are already pruned; for each ridge, as a share of the mean variance of the inputs

The refits use the first samples of the calibration text, 128 tokens each. All students are distilled on the same
batches. Printed is the excess validation loss over the teacher's in nats per token.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.flags import flags_of, plan_of
from benchmarks.pruning.minitron import RATES, REFIT, SLICES, Bench
from search_spaces.architecture import Architecture
from search_spaces.shape import ModelShape
from trials.losses.precision import autocast
from trials.losses.window_losses import mean_loss
from trials.prune.prune import choose, student_from
from trials.prune.refit import RIDGE, fit_projection, refit

IN_TURN, ONE_SHOT = "in turn", "one shot"


def students(shape: ModelShape) -> dict[str, Architecture]:
    """The students by the name of the pruned parts."""
    groups, neurons, depth = max(1, round(0.75 * shape.kv_heads)), shape.mlp // 2, round(0.75 * shape.layers)
    return {
        "MLP": Architecture.uniform(shape.layers, shape.hidden, shape.heads, neurons, shape.kv_heads),
        "heads and MLP": Architecture.uniform(shape.layers, shape.hidden, groups * shape.group, neurons, groups),
        "layers": Architecture.uniform(depth, shape.hidden, shape.heads, shape.mlp, shape.kv_heads),
    }


@torch.no_grad()
def student(bench: Bench, architecture: Architecture, way: str, samples: int, ridge: float) -> PreTrainedModel:
    """The student of ``architecture``, refitted in ``way`` on ``samples`` windows, in float32."""
    common, family = bench.common, bench.common.targets.family
    teacher, streams = common.teacher.model, common.streams.first(samples)
    kept = choose(common.scores, architecture, common.teacher.shape.group)
    model = student_from(teacher.config, architecture, family.cut(teacher, kept))
    if way == IN_TURN:
        refit(model, family, kept.layers.tolist(), streams, ridge=ridge)
        return model.float()
    dim, whole, own = common.teacher.shape.head_dim, family.layers(teacher), family.layers(model)
    handles = []
    for place, number in enumerate(kept.layers.tolist()):
        heads = (kept.heads[place][:, None] * dim + torch.arange(dim)).flatten()
        for one, units in ((family.attention_output, heads), (family.mlp_output, kept.mlp[place])):
            handles.append(one(whole[number]).register_forward_hook(fitting(one(own[place]), units, ridge)))
    with autocast("cpu"):
        family.backbone(teacher, streams.windows)
    for handle in handles:
        handle.remove()
    return model.float()


def fitting(projection: nn.Module, units: Tensor, ridge: float) -> Callable[..., None]:
    """A hook of a teacher's projection that fits the student's, which reads only ``units``, to its output."""

    def fit(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        own = inputs[0].flatten(0, 1)[:, units].float()
        with torch.autocast("cpu", enabled=False):
            fit_projection(projection, own, output.flatten(0, 1).float(), ridge)

    return fit


def excess(bench: Bench, model: PreTrainedModel, way: str) -> str:
    """A column of the table: the excess loss before and after training at the rate for ``way``."""
    losses = bench.losses(model), bench.trained(model, RATES[way])
    before, after = (mean_loss(one) - bench.teacher_loss for one in losses)
    return f"{f'{before:.3f} {after:.3f}':>17}"


def main() -> None:
    parser = flags_of(__doc__, sequence_length=128, calibration_samples=512)  # the budget has no effect here
    parser.add_argument("--students", nargs="+", choices=("MLP", "heads and MLP", "layers"), default=None)
    parser.add_argument("--samples", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--ridges", type=float, nargs="+", default=[0.01, RIDGE, 1.0])
    flags = parser.parse_args()
    bench = Bench(plan_of(flags))
    print(f"teacher {bench.teacher_loss:.4f}; excess before and after {bench.recipe.tokens:,} tokens, nats a token")
    ways = [(ONE_SHOT, RIDGE), *((IN_TURN, ridge) for ridge in flags.ridges)]
    for name, architecture in students(bench.common.teacher.shape).items():
        if flags.students and name not in flags.students:
            continue
        print(f"\n{name}: {architecture.key}\n{'':10}{'ridge':>7}", end="")
        print("".join(f"{f'{samples} samples':>17}" for samples in flags.samples))
        print(f"{'plain':<17}{excess(bench, bench.student(architecture, SLICES), SLICES)}", flush=True)
        for way, ridge in ways:
            print(f"{way:<10}{ridge:>7g}", end="", flush=True)
            for samples in flags.samples:
                print(excess(bench, student(bench, architecture, way, samples, ridge), REFIT), end="", flush=True)
            print()


if __name__ == "__main__":
    main()
