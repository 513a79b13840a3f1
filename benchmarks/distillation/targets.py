r"""Compares sparse targets, which hold a part of the teacher's distribution, with exact ones.

    python -m benchmarks.distillation.targets
    python -m benchmarks.distillation.targets --model teachers/SmolLM2-135M-Instruct.Q4_1.gguf \
      --corpus ./wikitext-2 --budget 100M

The same student is trained on the same batches, once for each kind of targets:

    exact    the whole distribution, from the teacher's hidden states, as in trials
    top k    the k likeliest tokens, and the mass of all others as one more outcome
    drawn k  k tokens drawn from the distribution with replacement, by the code of the trials; unbiased (random sampling
             knowledge distillation, arXiv 2503.16870)

Printed are the KL to the teacher on validation text, the validation loss, the stored bytes per token, and steps per
second. An id takes 2 bytes, a probability 2, a hidden channel 2, and the likelihood of all drawn tokens 4.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.distillation.trainings import Trainings
from benchmarks.flags import flags_of, plan_of
from trials.losses.kl import chunk_tokens, chunked_drawn_kl

SIZES = (8, 32, 64, 256)
EXACT, TOP, DRAWN = "exact", "top", "drawn"


class SparseTargets:
    """Sparse targets of ``kind`` TOP or DRAWN for the windows in the batches."""

    def __init__(self, trainings: Trainings, kind: str, size: int, seed: int = 0) -> None:
        self.trainings, self.kind = trainings, kind
        self.ids, self.shares = _sparse(trainings, kind, size, seed)

    def loss(self, student: PreTrainedModel, places: NDArray[np.int64], tokens: Tensor) -> Tensor:
        """The loss of a batch, see `Loss`. For drawn tokens it is computed by the code of the trials."""
        family, length = self.trainings.family, tokens.shape[1]
        hidden, weight = family.backbone(student, tokens).flatten(0, 1), family.output_weight(student)
        rows = torch.from_numpy(places[:, None] * length + np.arange(length)).flatten().to(tokens.device)
        ids = self.ids[rows].long()
        if self.kind == TOP:
            return _top_loss(F.linear(hidden, weight).float(), ids, self.shares[rows].float())
        unknown = torch.zeros(len(ids), device=hidden.device)  # likelihoods, which do not affect the gradient
        return chunked_drawn_kl(hidden, weight, ids, unknown, chunk_tokens(len(weight), hidden.device.type))


def _top_loss(logits: Tensor, ids: Tensor, shares: Tensor) -> Tensor:
    """Mean cross-entropy of ``logits`` (N, V) with the ``shares`` (N, k) of tokens ``ids`` and of all others as one."""
    own = logits.gather(1, ids) - logits.logsumexp(dim=1, keepdim=True)
    rest = torch.log1p(-own.exp().sum(dim=1).clamp(max=1 - 1e-6))
    return -((shares * own).sum(dim=1) + (1 - shares.sum(dim=1)).clamp(min=0) * rest).mean()


def _sparse(trainings: Trainings, kind: str, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Token ids (windows * length, size), and for TOP their probabilities, filled for all windows in the batches."""
    device, length = trainings.device, trainings.settings.sequence_length
    generator = torch.Generator(device).manual_seed(seed)
    train, targets = trainings.train, trainings.common.targets
    ids = torch.zeros(train.size, size, dtype=torch.int32, device=device)
    shares = torch.zeros(train.size, size if kind == TOP else 0, dtype=torch.float16, device=device)
    places = np.unique(np.concatenate([trainings.order.indices(step) for step in range(trainings.settings.steps)]))
    for place in places:
        tokens = torch.from_numpy(train[place : place + 1].astype(np.int64)).to(device)
        hidden, head = targets.hidden(np.array([place]), tokens), targets.head()
        found = F.softmax(F.linear(hidden.to(head.dtype), head).float(), dim=-1)
        rows = slice(place * length, (place + 1) * length)
        if kind == TOP:
            best = found.topk(size, dim=-1)
            ids[rows], shares[rows] = best.indices.int(), best.values.half()
        else:
            ids[rows] = found.multinomial(size, replacement=True, generator=generator).int()
    return ids, shares


def line(trainings: Trainings, start: PreTrainedModel, kind: str, size: int, seed: int = 0) -> str:
    """A row of the table: the results of a copy of ``start``, trained on targets of ``kind``."""
    loss = trainings.exact if kind == EXACT else SparseTargets(trainings, kind, size, seed).loss
    student = copy.deepcopy(start)
    speed = trainings.trained(student, loss, trainings.settings.learning_rate)
    hidden = trainings.common.teacher.shape.hidden
    kept = {EXACT: 2 * hidden, TOP: 4 * size, DRAWN: 2 * size + 4}[kind]
    name = f"{kind} {size}" if size else kind
    return f"{name:<12}{trainings.divergence(student):10.4f}{trainings.loss(student):10.4f}{kept:10,}{speed:9.2f}"


def main() -> None:
    parser = flags_of(__doc__, tokens_per_trial=32_768)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--draws", type=int, default=1, help="repetitions of each size with other draws")
    flags = parser.parse_args()
    trainings = Trainings(plan_of(flags))
    architecture = trainings.ideas["balanced"]
    start = trainings.student(architecture)
    print(f"{architecture.key}, {trainings.settings.tokens:,} tokens; validation KL and loss in nats per token")
    print(f"before: KL {trainings.divergence(start):.4f}")
    print(f"{'targets':<12}{'KL':>10}{'loss':>10}{'bytes':>10}{'steps/s':>9}")
    print(line(trainings, start, EXACT, 0), flush=True)
    for kind, draws in ((TOP, 1), (DRAWN, flags.draws)):
        for size in flags.sizes:
            for seed in range(draws):
                print(line(trainings, start, kind, size, seed), flush=True)


if __name__ == "__main__":
    main()
