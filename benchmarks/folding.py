"""Whether heads that go should be folded into those that stay, as slices and beside the refit.

    python -m benchmarks.folding
    python -m benchmarks.folding --model teachers/SmolLM2-135M-Instruct.Q4_1.gguf --corpus ./wikitext-2

Minitron (arXiv 2407.14679, section 2.3) adds to the weights of a head that stays what it has beside one that goes: with
the heads ordered by importance, K of L kept, head i becomes head i + (head i - head 2K - i + 1) for the last L - K of
the kept. Query, key and value weights are folded where every head has its own, the queries of a group where heads
share keys and values, both as the paper has it. Excess of the validation loss over the teacher's, before retraining.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.flags import flags_of, plan_of
from benchmarks.pruning import Bench
from search_spaces.architecture import Architecture
from trials.evaluate import window_losses
from trials.losses import mean_loss
from trials.prune import prune

SHARES = (7 / 8, 3 / 4, 5 / 8, 1 / 2)


def weights_of(layer: nn.Module, heads: int, alone: bool) -> Iterator[Tensor]:
    """The folded parameters of a layer as views (heads, ...): GPT-2's, or those of the Llama family."""
    if hasattr(layer, "attn"):
        projection = layer.attn.c_attn
        yield from projection.weight.T.unflatten(0, (3, heads, -1))
        yield from projection.bias.unflatten(0, (3, heads, -1))
        return
    attention = layer.self_attn
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj) if alone else (attention.q_proj,):
        yield projection.weight.unflatten(0, (heads, -1))
        if projection.bias is not None:
            yield projection.bias.unflatten(0, (heads, -1))


@torch.no_grad()
def fold(weights: Tensor, scores: NDArray[np.float32], kept: int) -> None:
    """Fold the heads of one pool (heads, ...), in place, when the best ``kept`` by ``scores`` (heads,) are to stay."""
    order = np.argsort(-scores, kind="stable")
    before = weights.clone()
    for place in range(max(0, 2 * kept - len(scores)), kept):
        weights[order[place]] = 2 * before[order[place]] - before[order[2 * kept - 1 - place]]


class Folding:
    """A teacher whose heads can be folded."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.common = bench, bench.common
        self.shape = self.common.teacher.shape

    def architecture(self, members: int) -> Architecture:
        """All of the teacher but ``members`` heads of each pool: of a layer, or of a group that shares keys."""
        shape = self.shape
        heads = members if shape.group == 1 else members * shape.kv_heads
        return Architecture.uniform(
            shape.layers, shape.hidden, heads, shape.mlp, heads if shape.group == 1 else shape.kv_heads
        )

    def excess(self, architecture: Architecture, members: int, folded: bool, refitted: bool) -> float:
        model = copy.deepcopy(self.common.teacher.model)
        if folded:
            for layer, scores in zip(self.common.targets.family.layers(model), self.common.scores.heads, strict=True):
                for weights in weights_of(layer, self.shape.heads, self.shape.group == 1):
                    for pool in range(self.pools):
                        part = slice(pool * self.pool, (pool + 1) * self.pool)
                        fold(weights[part], scores[part], members)
        student = prune(model, self.common.scores, architecture, self.common.streams if refitted else None).float()
        return (
            mean_loss({"validation": window_losses(student, self.common.targets.family, self.bench.text)})
            - self.bench.teacher_loss
        )

    @property
    def pool(self) -> int:
        """Heads that may be folded into each other."""
        return self.shape.heads if self.shape.group == 1 else self.shape.group

    @property
    def pools(self) -> int:
        return self.shape.heads // self.pool


def main() -> None:
    flags = flags_of(__doc__).parse_args()  # the budget is not asked for anything
    plan = plan_of(flags)
    folding = Folding(Bench(plan.recipe, plan.cache))
    print(f"teacher {folding.bench.teacher_loss:.4f}; excess loss before retraining, nats a token")
    print(f"{'heads':<10}{'slices':>8}{'folded':>8}{'refit':>8}{'folded and refit':>18}", flush=True)
    for members in dict.fromkeys(int(share * folding.pool) for share in SHARES):
        architecture = folding.architecture(members)
        found = [
            folding.excess(architecture, members, *way)
            for way in ((False, False), (True, False), (False, True), (True, True))
        ]
        print(
            f"{members} of {folding.pool:<5}"
            + "".join(f"{one:{size}.3f}" for one, size in zip(found, (8, 8, 8, 18), strict=True)),
            flush=True,
        )


if __name__ == "__main__":
    main()
