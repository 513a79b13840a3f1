"""What a student loses when it sees a part of its teacher's distribution: sparse targets against exact ones.

    python -m benchmarks.targets
    python -m benchmarks.targets --model teachers/SmolLM2-135M-Instruct.Q4_1.gguf --corpus ./wikitext-2 --budget 100M

The same student is trained on the same batches, once on the exact distribution (from the teacher's hidden states, as
trials are) and once on each kind of sparse target: the ``top`` k tokens with the mass of all others as one more
outcome, and k tokens ``drawn`` from the distribution with replacement, their counts the weights, which is unbiased
(random sampling knowledge distillation, arXiv 2503.16870). Printed are the KL to the teacher on validation text, the
validation loss, what is kept of a token, and steps in a second; 2 bytes an id, 2 a probability, 1 a count, 2 a hidden
channel.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.flags import flags_of, plan_of
from nas.candidates import informed
from nas.plan import Plan
from trials.corpus import BatchOrder, windows
from trials.distill import MAX_GRADIENT_NORM, DistillSettings, learning_rate, make_optimizer
from trials.evaluate import validation_loss
from trials.kl import chunk_tokens, chunked_kl
from trials.precision import autocast
from trials.preparation import Shared, shared
from trials.prune import prune

SIZES = (8, 32, 64, 256)
EXACT, TOP, DRAWN = "exact", "top", "drawn"
PART = 1_024  # tokens whose whole distribution is held at a time


@dataclass(frozen=True)
class Sparse:
    """``ids`` and ``weights`` (windows * length, k) of a teacher's distributions, of ``kind`` TOP or DRAWN."""

    kind: str
    ids: Tensor
    weights: Tensor

    def loss(self, hidden: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
        """Mean cross-entropy of a student's states (N, H) with the targets of ``rows`` (N,)."""
        logits = F.linear(hidden, weight).float()
        ids, weights = self.ids[rows].long(), self.weights[rows].float()
        own = logits.gather(1, ids) - logits.logsumexp(dim=1, keepdim=True)
        found = -(weights * own).sum(dim=1)
        if self.kind == TOP:  # all other tokens are one outcome
            rest = torch.log1p(-own.exp().sum(dim=1).clamp(max=1 - 1e-6))
            found = found - (1 - weights.sum(dim=1)).clamp(min=0) * rest
        return found.mean()


class Trainings:
    """A student, its batches and its teacher, ready to be trained again and again."""

    def __init__(self, plan: Plan) -> None:
        self.plan, recipe = plan, plan.recipe
        self.common: Shared = shared(recipe, str(plan.cache), "cpu")
        self.family = self.common.targets.family
        self.train = windows(self.common.corpus.train, recipe.sequence_length)[: self.common.first]
        self.text = windows(self.common.corpus.validation, recipe.sequence_length)
        sizes = (recipe.tokens, (recipe.tokens,), recipe.sequence_length, recipe.batch_tokens, recipe.learning_rate)
        self.settings = DistillSettings(*sizes, recipe.seed, identity="benchmark")
        self.order = BatchOrder(len(self.train), self.settings.batch_windows, recipe.seed, 0)
        self.architecture = dict(informed(plan.target.shape, plan.target.feasible))["balanced"]

    def sparse(self, kind: str, size: int) -> Sparse:
        """The targets of all windows that the batches take."""
        generator, length = torch.Generator().manual_seed(0), self.settings.sequence_length
        ids = torch.zeros(self.train.size, size, dtype=torch.int32)
        weights = torch.zeros(self.train.size, size, dtype=torch.float16)
        places = np.unique(np.concatenate([self.order.indices(step) for step in range(self.settings.steps)]))
        for place in places:
            tokens = torch.from_numpy(self.train[place : place + 1].astype(np.int64))
            hidden = self.common.targets.hidden(np.array([place]), tokens)
            head = self.common.targets.head()
            shares = F.softmax(F.linear(hidden.to(head.dtype), head).float(), dim=-1)
            rows = slice(place * length, (place + 1) * length)
            if kind == TOP:
                best = shares.topk(size, dim=-1)
                ids[rows], weights[rows] = best.indices.int(), best.values.half()
            else:
                ids[rows] = shares.multinomial(size, replacement=True, generator=generator).int()
                weights[rows] = 1 / size
        return Sparse(kind, ids, weights)

    def student(self) -> PreTrainedModel:
        common = self.common
        return prune(common.teacher.model, common.scores, self.architecture, common.streams).float()

    def trained(self, sparse: Sparse | None) -> tuple[PreTrainedModel, float]:
        """The student after all steps, and steps in a second."""
        student, settings = self.student(), self.settings
        optimizer, started = make_optimizer(student, settings.learning_rate), time.perf_counter()
        for step in range(settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(self._loss(student, self.order.indices(step), sparse))
            torch.nn.utils.clip_grad_norm_(student.parameters(), MAX_GRADIENT_NORM)
            optimizer.step()
        return student, settings.steps / (time.perf_counter() - started)

    def _loss(self, student: PreTrainedModel, places: NDArray[np.int64], sparse: Sparse | None) -> Tensor:
        tokens, length = torch.from_numpy(self.train[places].astype(np.int64)), self.settings.sequence_length
        with autocast("cpu"):
            hidden, weight = self.family.backbone(student, tokens).flatten(0, 1), self.family.output_weight(student)
            if sparse is not None:
                rows = torch.from_numpy(places[:, None] * length + np.arange(length)).flatten()
                return sparse.loss(hidden, weight, rows)
            exact, head = self.common.targets.hidden(places, tokens), self.common.targets.head()
            return chunked_kl(hidden, weight, exact, head, chunk_tokens(weight.shape[0], "cpu"))

    @torch.no_grad()
    def divergence(self, student: PreTrainedModel) -> float:
        """Mean KL to the teacher on validation text, in nats per token."""
        found, batch = [], max(1, PART // self.text.shape[1])
        for start in range(0, len(self.text), batch):
            tokens = torch.from_numpy(self.text[start : start + batch].astype(np.int64))
            pairs = [
                (self.family.backbone(model, tokens).flatten(0, 1), self.family.output_weight(model))
                for model in (student, self.common.teacher.model)
            ]
            chunk = chunk_tokens(pairs[0][1].shape[0], "cpu")
            found += [float(chunked_kl(*pairs[0], *pairs[1], chunk))] * len(tokens)
        return float(np.mean(found))


def line(trainings: Trainings, kind: str, size: int) -> str:
    """A row of the table."""
    sparse = None if kind == EXACT else trainings.sparse(kind, size)
    student, speed = trainings.trained(sparse)
    hidden = trainings.common.teacher.shape.hidden
    kept = {EXACT: 2 * hidden, TOP: 4 * size, DRAWN: 3 * size}[kind]
    loss = validation_loss(student, trainings.family, trainings.text)
    name = f"{kind} {size}" if size else kind
    return f"{name:<12}{trainings.divergence(student):10.4f}{loss:10.4f}{kept:10,}{speed:9.2f}"


def main() -> None:
    parser = flags_of(__doc__, tokens_per_trial=32_768)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    flags = parser.parse_args()
    trainings = Trainings(plan_of(flags))
    student = trainings.student()
    print(
        f"{trainings.architecture.key}, {trainings.settings.tokens:,} tokens; validation KL and loss in nats per token"
    )
    print(f"before: KL {trainings.divergence(student):.4f}")
    print(f"{'targets':<12}{'KL':>10}{'loss':>10}{'bytes':>10}{'steps/s':>9}")
    print(line(trainings, EXACT, 0), flush=True)
    for kind in (TOP, DRAWN):
        for size in flags.sizes:
            print(line(trainings, kind, size), flush=True)


if __name__ == "__main__":
    main()
