"""Compares students whose removed heads were folded into kept ones with students without folding.

    python -m benchmarks.pruning.folding
    python -m benchmarks.pruning.folding --model teachers/SmolLM2-135M-Instruct.Q4_1.gguf --corpus ./wikitext-2

Minitron (arXiv 2407.14679, section 2.3) adds to a kept head its difference from a removed one. With L heads ordered by
importance and K of them kept, head i becomes head i + (head i - head (2K - i + 1)) for the last L - K of the kept
heads. As in the paper, query, key and value weights are folded if every head has its own, and only the queries of a
group if heads share keys and values. Printed is the excess validation loss over the teacher's before retraining, of
slices and of refitted students.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.flags import flags_of, plan_of
from benchmarks.pruning.minitron import Bench
from search_spaces.architecture import Architecture
from trials.families.base import bias_of, matrix_of
from trials.losses.window_losses import mean_loss
from trials.prune.prune import prune

SHARES = (7 / 8, 3 / 4, 5 / 8, 1 / 2)


def weights_of(layer: nn.Module, heads: int, alone: bool) -> Iterator[Tensor]:
    """The folded parameters of a layer as views (heads, ...): GPT-2's, or those of the Llama family."""
    names = ["self_attn.q_proj", *(["self_attn.k_proj", "self_attn.v_proj"] if alone else [])]
    apart = hasattr(layer, "self_attn")
    for projection in map(layer.get_submodule, names if apart else ["attn.c_attn"]):
        for parameter in (matrix_of(projection), bias_of(projection)):
            if parameter is not None:  # GPT-2 has query, key and value in one matrix
                yield from parameter.view(1 if apart else 3, heads, -1, *parameter.shape[1:])


@torch.no_grad()
def fold(weights: Tensor, scores: NDArray[np.float32], kept: int) -> None:
    """Fold the heads of one pool (heads, ...) in place. The best ``kept`` by ``scores`` (heads,) will stay."""
    order = np.argsort(-scores, kind="stable")
    before = weights.clone()
    for place in range(max(0, 2 * kept - len(scores)), kept):
        weights[order[place]] = 2 * before[order[place]] - before[order[2 * kept - 1 - place]]


class Folding:
    """A teacher, and students of it with and without folded heads."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.common = bench, bench.common
        self.shape = self.common.teacher.shape

    def architecture(self, members: int) -> Architecture:
        """The teacher with ``members`` heads in each pool. A pool is a layer, or a group that shares keys."""
        shape = self.shape
        heads, kv_heads = (members, members) if shape.group == 1 else (members * shape.kv_heads, shape.kv_heads)
        return Architecture.uniform(shape.layers, shape.hidden, heads, shape.mlp, kv_heads)

    def excess(self, architecture: Architecture, members: int, refitted: bool, folded: bool) -> float:
        model = copy.deepcopy(self.common.teacher.model)
        if folded:
            for layer, scores in zip(self.common.targets.family.layers(model), self.common.scores.heads, strict=True):
                for weights in weights_of(layer, self.shape.heads, self.shape.group == 1):
                    for pool in range(self.pools):
                        part = slice(pool * self.pool, (pool + 1) * self.pool)
                        fold(weights[part], scores[part], members)
        student = prune(model, self.common.scores, architecture, self.common.streams if refitted else None).float()
        return mean_loss(self.bench.losses(student)) - self.bench.teacher_loss

    @property
    def pool(self) -> int:
        """The number of heads in a pool, which may be folded into each other."""
        return self.shape.heads if self.shape.group == 1 else self.shape.group

    @property
    def pools(self) -> int:
        return self.shape.heads // self.pool


def main() -> None:
    flags = flags_of(__doc__).parse_args()  # the budget has no effect here
    plan = plan_of(flags)
    folding = Folding(Bench(plan))
    print(f"teacher {folding.bench.teacher_loss:.4f}; excess loss before retraining, nats a token")
    print(f"{'heads':<10}{'slices':>8}{'folded':>8}{'refit':>8}{'folded and refit':>18}", flush=True)
    for members in dict.fromkeys(int(share * folding.pool) for share in SHARES):
        architecture = folding.architecture(members)
        plain, folded, refitted, both = (
            folding.excess(architecture, members, *way) for way in itertools.product((False, True), repeat=2)
        )
        name = f"{members} of {folding.pool}"
        print(f"{name:<10}{plain:8.3f}{folded:8.3f}{refitted:8.3f}{both:18.3f}", flush=True)


if __name__ == "__main__":
    main()
