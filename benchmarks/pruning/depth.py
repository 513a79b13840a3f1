r"""Compares methods to choose the layers that are removed, before and after retraining.

    python -m benchmarks.pruning.depth
    python -m benchmarks.pruning.depth --model teachers/SmolLM2-135M-Instruct.Q4_1.gguf --corpus ./wikitext-2 \
      --ways "Block Importance" "one after another"

For each share of the layers, the layers that stay are chosen on calibration text by

    Block Importance   the score of Minitron and ShortGPT (arXiv 2403.03853)
    one after another  as in a search (`trials.prune.layer_order`): greedily, by the loss after each removal
    one at a time      the loss without each layer alone
    block              the block of consecutive layers whose removal gives the lowest loss (as arXiv 2403.17887)
    without shortcut   as a search, without its shortcuts
    all subsets        the best of all subsets, if there are at most 100

Choices are made with slices that are not refitted. Printed is the excess validation loss over the teacher's of each
chosen student, as slices and refitted. The first of the ``--ways`` and the best of the others are then distilled on the
same tokens.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.flags import flags_of, plan_of
from benchmarks.pruning.minitron import REFIT, SLICES, Bench
from nas.choosing.bootstrap import paired_difference
from search_spaces.architecture import Architecture
from trials.losses.window_losses import mean_loss, window_losses
from trials.prune.prune import prune
from trials.text.corpus import windows

SHARES = (0.75, 0.5)
SUBSETS = 100  # at most
WAYS = ("Block Importance", "one after another", "one at a time", "block", "without shortcut", "all subsets")

Kept = tuple[int, ...]


class Depths:
    """A teacher, and the methods to choose the layers that stay."""

    def __init__(self, bench: Bench, tokens: int) -> None:
        self.bench, self.layers = bench, bench.common.teacher.shape.layers
        self.text = windows(bench.common.corpus.train, bench.recipe.sequence_length)
        self.text = self.text[: max(1, tokens // bench.recipe.sequence_length)]
        self.known: dict[Kept, float] = {}

    def chosen(self, kept: Kept) -> Bench:
        """The bench with scores that keep exactly the layers ``kept``."""
        common = self.bench.common
        scores = replace(common.scores, layers=np.isin(np.arange(self.layers), kept).astype(np.float32))
        bench = copy.copy(self.bench)
        bench.common = replace(common, scores=scores)
        bench.minitron = replace(self.bench.minitron, layers=scores.layers)
        return bench

    def architecture(self, kept: Kept) -> Architecture:
        shape = self.bench.common.teacher.shape
        return Architecture.uniform(len(kept), shape.hidden, shape.heads, shape.mlp, shape.kv_heads)

    def loss(self, kept: Kept) -> float:
        """The loss on calibration text of the teacher with only the layers ``kept``."""
        if kept not in self.known:
            common = self.chosen(kept).common
            student = prune(common.teacher.model, common.scores, self.architecture(kept))
            self.known[kept] = float(window_losses(student, common.targets.family, self.text).mean())
        return self.known[kept]

    def without(self, kept: Kept, dropped: Iterable[int]) -> Kept:
        return tuple(one for one in kept if one not in set(dropped))

    def by_block_importance(self, count: int) -> Kept:
        return self._highest(self.bench.minitron.layers, count)

    def by_search(self, count: int) -> Kept:
        return self._highest(self.bench.common.scores.layers, count)

    def _highest(self, scores: NDArray[np.float32], count: int) -> Kept:
        return tuple(sorted(map(int, np.argsort(-scores, kind="stable")[:count])))

    def one_at_a_time(self, count: int) -> Kept:
        whole = tuple(range(self.layers))
        losses = [self.loss(self.without(whole, [one])) for one in whole]
        return tuple(sorted(sorted(whole, key=lambda one: -losses[one])[:count]))

    def greedy(self, count: int) -> Kept:
        kept = tuple(range(self.layers))
        while len(kept) > count:
            kept = min((self.without(kept, [one]) for one in kept), key=self.loss)
        return kept

    def block(self, count: int) -> Kept:
        whole, gone = tuple(range(self.layers)), self.layers - count
        return min((self.without(whole, range(first, first + gone)) for first in range(count + 1)), key=self.loss)

    def any_subset(self, count: int) -> Kept:
        return min(itertools.combinations(range(self.layers), count), key=self.loss)


def compare(depths: Depths, count: int, names: Sequence[str]) -> None:
    """Print the table of one depth for the methods ``names``."""
    bench = depths.bench
    print(f"\n{count} of {depths.layers} layers, teacher {bench.teacher_loss:.4f}; excess loss, nats a token")
    print(f"{'chosen by':<20}{'slices':>8}{'refit':>8}{'seconds':>9}  dropped")
    choices: tuple[Callable[[int], Kept], ...] = (
        depths.by_block_importance,
        depths.by_search,
        depths.one_at_a_time,
        depths.block,
        depths.greedy,
        depths.any_subset,
    )
    ways = {name: way for name, way in zip(WAYS, choices, strict=True) if name in names}
    if math.comb(depths.layers, count) > SUBSETS:
        ways.pop(WAYS[-1], None)
    excess: dict[str, float] = {}
    kept: dict[str, Kept] = {}
    for name, way in ways.items():
        started = time.perf_counter()
        kept[name] = way(count)
        seconds = time.perf_counter() - started
        own, architecture = depths.chosen(kept[name]), depths.architecture(kept[name])
        found = [
            mean_loss(bench.losses(own.student(architecture, one))) - bench.teacher_loss for one in (SLICES, REFIT)
        ]
        excess[name] = found[1]
        dropped = " ".join(str(one) for one in range(depths.layers) if one not in kept[name])
        print(f"{name:<20}{found[0]:8.3f}{found[1]:8.3f}{seconds:9.1f}  {dropped}", flush=True)
    first, *others = ways
    best = min(others, key=excess.__getitem__)
    if kept[best] == kept[first]:
        print(f"{first} chose what is best of these")
        return
    after = [depths.chosen(kept[one]).distilled(depths.architecture(kept[one]), REFIT) for one in (first, best)]
    losses = [mean_loss(one) - bench.teacher_loss for one in after]
    difference = paired_difference(after[1], after[0])
    tokens = bench.recipe.tokens
    print(f"after {tokens:,} tokens: {first} {losses[0]:.3f}, {best} {losses[1]:.3f}, difference {difference}")


def main() -> None:
    parser = flags_of(__doc__)  # the budget has no effect here
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--choice-tokens", type=int, default=4_096, help="calibration tokens to choose layers on")
    flags = parser.parse_args()
    depths = Depths(Bench(plan_of(flags)), flags.choice_tokens)
    for share in SHARES:
        compare(depths, round(share * depths.layers), flags.ways)


if __name__ == "__main__":
    main()
