r"""Compares learning rates and losses of distillation on the same tokens.

    python -m benchmarks.distillation.objectives
    python -m benchmarks.distillation.objectives --model teachers/SmolLM2-135M-Instruct.Q4_1.gguf \
      --corpus ./wikitext-2 --budget 100M --tokens-per-trial 8192

The informed first candidates (the teacher reduced in depth only, in width only, and in all axes) are pruned and
refitted once. Copies are then trained on the same batches, first on the KL divergence of logits at each rate, then at
the recipe's rate on these losses:

    T = 2        the KL of logits divided by 2, times 4 (Hinton et al., arXiv 1503.02531)
    KL + CE      the mean of the KL and the cross-entropy with the text
    KL + stream  the KL plus an equally large term for the residual stream after every layer: its squared distance from
                 the teacher's stream at the same place, relative to the square of that, averaged over layers
                 (Minitron, arXiv 2407.14679, section 3, uses cosine or squared distances of such states, with the
                 same weighting)

Printed are validation losses in nats per token, on the held-out text of the corpus and on the ``--validation`` texts.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.distillation.trainings import Loss, Trainings
from benchmarks.flags import flags_of, plan_of
from search_spaces.architecture import Architecture
from trials.distill.distill import text_loss
from trials.prune.rotate import rotation_to

RATES = (5e-5, 1e-4, 2e-4, 4e-4)
TEMPERATURE = 2.0


def states(layers: Sequence[nn.Module]) -> list[Tensor]:
    """A list that the next forward pass fills with the stream (N, H) after each of ``layers``."""
    found: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        found.append((output if isinstance(output, Tensor) else output[0]).flatten(0, 1))

    for layer in layers:
        layer.register_forward_hook(keep)
    return found


class Objectives:
    """The compared losses for students of one architecture, except the KL of the trials."""

    NAMES = ("T = 2", "KL + CE", "KL + stream")

    def __init__(self, trainings: Trainings, architecture: Architecture) -> None:
        self.trainings, self.family = trainings, trainings.family
        common = trainings.common
        self.teacher, self.layers = common.teacher.model, trainings.layers(architecture)
        self.rotation = None
        if architecture.hidden < common.teacher.shape.hidden:
            self.rotation = rotation_to(self.teacher, self.family, common.streams.directions, architecture.hidden)

    def named(self, name: str) -> Loss:
        """The loss ``name``, one of `NAMES`."""
        return dict(zip(self.NAMES, (self.tempered, self.with_text, self.with_stream), strict=True))[name]

    def tempered(self, student: PreTrainedModel, places: NDArray[np.int64], tokens: Tensor) -> Tensor:
        hidden, weight = self.family.backbone(student, tokens).flatten(0, 1), self.family.output_weight(student)
        targets = self.trainings.common.targets
        own = F.log_softmax(F.linear(hidden, weight).float() / TEMPERATURE, dim=-1)
        with torch.no_grad():
            logits = F.linear(targets.hidden(places, tokens).to(targets.head().dtype), targets.head()).float()
            target = F.log_softmax(logits / TEMPERATURE, dim=-1)
        return TEMPERATURE**2 * F.kl_div(own, target, log_target=True, reduction="batchmean")

    def with_text(self, student: PreTrainedModel, places: NDArray[np.int64], tokens: Tensor) -> Tensor:
        hidden, weight = self.family.backbone(student, tokens), self.family.output_weight(student)
        divergence = self.trainings.common.targets.divergence(hidden.flatten(0, 1), weight, places, tokens)
        return (divergence + text_loss(hidden, weight, tokens)) / 2

    def with_stream(self, student: PreTrainedModel, places: NDArray[np.int64], tokens: Tensor) -> Tensor:
        """KL + stream. If the layers that followed were removed, the teacher's stream is the one after those."""
        layers = self.family.layers(self.teacher)
        wanted = states([layers[after - 1] for after in [*self.layers[1:], len(layers)]])
        own = states(self.family.layers(student))
        with torch.no_grad():
            self.family.backbone(self.teacher, tokens)
        divergence = self.trainings.exact(student, places, tokens)
        for layer in (*layers, *self.family.layers(student)):
            layer._forward_hooks.clear()
        pairs = [(one.float(), target) for one, target in zip(own, self._turned(wanted), strict=True)]
        apart = torch.stack([(one - target).square().sum() / target.square().sum() for one, target in pairs]).mean()
        return divergence + apart * (divergence.detach() / apart.detach())

    def _turned(self, streams: list[Tensor]) -> list[Tensor]:
        """The teacher's streams, rotated as the student's; the last one as its final norm should read it."""
        *before, last = (one.float() for one in streams)
        if self.rotation is None:
            return [*before, last]
        return [*map(self.rotation.turned, before), self.rotation.turned_last(last)]


def main() -> None:
    parser = flags_of(__doc__, validation=None, learning_rate=None)
    parser.add_argument("--rates", type=float, nargs="*", default=RATES)
    parser.add_argument("--losses", nargs="*", default=Objectives.NAMES, choices=Objectives.NAMES)
    parser.add_argument("--students", nargs="+", help="names of first candidates (all)")
    flags = parser.parse_args()
    trainings = Trainings(plan_of(flags))
    rate = trainings.settings.learning_rate

    def row(name: str, losses: list[float]) -> None:
        print(f"{name:<20}" + "".join(f"{one:14.4f}" for one in losses), flush=True)

    print(f"{trainings.settings.tokens:,} tokens, validation losses in nats per token; the recipe's rate is {rate:g}")
    print(" " * 20 + "".join(f"{name:>14}" for name in trainings.texts))
    row("teacher", trainings.losses(trainings.common.teacher.model))
    for name in flags.students or trainings.ideas:
        architecture = trainings.ideas[name]
        start = trainings.student(architecture)
        print(f"\n{architecture.key} ({name})")
        row("before", trainings.losses(start))
        objectives = Objectives(trainings, architecture)
        ways: dict[str, tuple[Loss, float]] = {f"KL, rate {one:g}": (trainings.exact, one) for one in flags.rates}
        ways |= {one: (objectives.named(one), rate) for one in flags.losses}
        for way, (loss, peak) in ways.items():
            student = copy.deepcopy(start)
            trainings.trained(student, loss, peak)
            row(way, trainings.losses(student))


if __name__ == "__main__":
    main()
