r"""Compares refitted students with plain Minitron students, before and after the same short distillation.

    python -m benchmarks.pruning.minitron --model mini --corpus stdlib
    python -m benchmarks.pruning.minitron --model teachers/SmolLM2-135M-Instruct.Q4_1.gguf \
      --corpus ./wikitext-2 --candidates 8

For each share of the teacher's non-embedding parameters, the candidates of the space at most 3 % below the share are
pruned in two ways. The plain way takes slices by Minitron's scores (arXiv 2407.14679: mean over the sequence, L2 over
the batch, Block Importance). The other way is that of a search (`trials.prune.prune`). The student with the lowest
validation loss of each way is then distilled. Both see the same batches, each at its best learning rate, and their
losses are compared window by window.

A refit costs as much as some steps of training. So the best plain student is also distilled on more tokens, such that
its training costs as many FLOPs as refit and training of the other one.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from benchmarks.flags import flags_of, plan_of
from nas.choosing.bootstrap import paired_difference
from nas.planning.plan import Plan
from search_spaces.architecture import Architecture
from search_spaces.space import SearchSpace
from trials.distill.distill import DistillSettings, distill
from trials.estimate import refit_flops, training_flops
from trials.losses.window_losses import WindowLosses, mean_loss, window_losses
from trials.preparation import shared
from trials.prune.importance import compute_importance
from trials.prune.prune import prune
from trials.text.corpus import windows

SHARES, SLACK = (0.75, 0.60), 0.03
SLICES, REFIT = "slices", "refit"
RATES = {SLICES: 4e-4, REFIT: 2e-4}  # the best peak rates for mini: docs/lab/refit.md


@dataclass(frozen=True)
class Student:
    """One candidate, pruned in one way. ``excess`` is its loss over the teacher's before retraining, nats per token."""

    architecture: Architecture
    way: str
    excess: float


def candidates(space: SearchSpace, share: float, count: int | None) -> list[Architecture]:
    """``count`` evenly spaced architectures of ``space`` within `SLACK` below ``share`` of non-embedding parameters."""
    shape = space.shape
    whole = shape.non_embedding_parameters(shape.full)
    band = [one for one in space if 1 - SLACK <= shape.non_embedding_parameters(one) / (share * whole) <= 1]
    if count is None or count >= len(band):
        return band
    return [band[place] for place in np.linspace(0, len(band) - 1, count).round().astype(int)]


class Bench:
    """A teacher with its text; prunes, distils and evaluates its students.

    There are up to ``more`` further tokens of training text, for students that train on more than the recipe's tokens.
    """

    def __init__(self, plan: Plan, more: int = 0) -> None:
        self.recipe, self.space = plan.recipe, plan.target.space
        self.common = shared(self.recipe, str(plan.cache), plan.resources.device, more)
        length = self.recipe.sequence_length
        self.texts = {name: windows(tokens, length) for name, tokens in self.common.corpus.texts.items()}
        model, family, calibration = self.common.teacher.model, self.common.targets.family, self.common.streams.windows
        self.minitron = compute_importance(model, family, calibration)
        self.teacher_losses = self.losses(model)
        self.teacher_loss = mean_loss(self.teacher_losses)

    def losses(self, model: PreTrainedModel) -> WindowLosses:
        """The losses on every window of the validation texts, the corpus's own first."""
        return {name: window_losses(model, self.common.targets.family, text) for name, text in self.texts.items()}

    def student(self, architecture: Architecture, way: str) -> PreTrainedModel:
        """The teacher pruned to ``architecture``, in float32."""
        streams, scores = (self.common.streams, self.common.scores) if way == REFIT else (None, self.minitron)
        return prune(self.common.teacher.model, scores, architecture, streams).float()

    def zero_shot(self, architectures: Sequence[Architecture]) -> list[Student]:
        """Students of every architecture, pruned in both ways. Prints a line for each architecture."""
        found = []
        for architecture in architectures:
            pair = []
            for way in (SLICES, REFIT):
                started = time.perf_counter()
                student = self.student(architecture, way)
                seconds = time.perf_counter() - started
                pair.append(Student(architecture, way, mean_loss(self.losses(student)) - self.teacher_loss))
            plain, refitted = (one.excess for one in pair)
            size = self.common.teacher.shape.parameters(architecture)
            line = f"{architecture.key:<22}{size:>12,}{plain:9.3f}{refitted:9.3f}{refitted / plain:8.2f}"
            print(f"{line}{seconds:8.1f} s", flush=True)
            found += pair
        return found

    def distilled(self, architecture: Architecture, way: str, tokens: int | None = None) -> WindowLosses:
        """The losses of a student after distillation on ``tokens``, or those of the recipe."""
        return self.trained(self.student(architecture, way), RATES[way], tokens)

    def tokens_for_refit(self, plain: int, refitted: Architecture) -> int:
        """Tokens that train another student at the FLOPs of refitting and training ``refitted``.

        ``refitted`` trains on the recipe's tokens. ``plain`` is the other student's FLOPs for a token, forward.
        """
        shape, recipe, device = self.common.teacher.shape, self.recipe, self.common.teacher.model.device.type
        training = training_flops(shape, refitted, recipe, device)
        more = plain - shape.flops_per_token(refitted, recipe.sequence_length)
        other = training + 3 * recipe.tokens * more  # both students have the same teacher's work
        whole = training + refit_flops(shape, refitted, recipe, len(self.common.streams.windows))
        return round(recipe.tokens * whole / other / recipe.batch_tokens) * recipe.batch_tokens

    def trained(self, model: PreTrainedModel, rate: float, tokens: int | None = None) -> WindowLosses:
        """The losses of ``model`` after distillation in place, on ``tokens`` or the recipe's, at the peak ``rate``."""
        recipe = self.recipe
        tokens = tokens or recipe.tokens
        sizes = (tokens, (tokens,), recipe.sequence_length, recipe.batch_tokens, rate)
        settings = DistillSettings(*sizes, recipe.seed, identity="benchmark", first_windows=self.common.first)
        with tempfile.TemporaryDirectory() as folder:
            run = distill(model, self.common.targets, self.common.corpus, settings, Path(folder), lambda *_: None)
        return run.window_losses


def compare(bench: Bench, share: float, count: int | None) -> None:
    """Print the table of one share."""
    print(f"\n{share:.0%} of the non-embedding parameters, teacher {bench.teacher_loss:.4f}; excess loss, nats a token")
    print(f"{'architecture':<22}{'parameters':>12}{'slices':>9}{'refit':>9}{'ratio':>8}{'refitted in':>12}")
    students = bench.zero_shot(candidates(bench.space, share, count))
    best = [min((one for one in students if one.way == way), key=lambda one: one.excess) for way in (SLICES, REFIT)]
    after = [bench.distilled(one.architecture, one.way) for one in best]
    for one, losses in zip(best, after, strict=True):
        excess = mean_loss(losses) - bench.teacher_loss
        key = one.architecture.key
        print(f"best {one.way:<8}{key:<22} before {one.excess:.3f}, after {bench.recipe.tokens:,} tokens {excess:.3f}")
    ratio = best[1].excess / best[0].excess
    print(f"before: {ratio:.2f} of plain; after: {paired_difference(after[1], after[0])} against plain")
    plain = bench.common.teacher.shape.flops_per_token(best[0].architecture, bench.recipe.sequence_length)
    more = bench.tokens_for_refit(plain, best[1].architecture)
    equal = bench.distilled(best[0].architecture, SLICES, more)
    excess = mean_loss(equal) - bench.teacher_loss
    against = paired_difference(after[1], equal)
    print(f"best slices at equal FLOPs: after {more:,} tokens {excess:.3f}; refit: {against} against it")


def main() -> None:
    parser = flags_of(__doc__, space="default")  # the budget has no effect, but the space must contain it
    parser.add_argument("--candidates", type=int, default=None, metavar="N", help="candidates per share (all)")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the non-embedding parameters")
    flags = parser.parse_args()
    bench = Bench(plan_of(flags))
    for share in flags.shares:
        compare(bench, share, flags.candidates)


if __name__ == "__main__":
    main()
