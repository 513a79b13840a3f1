"""Trains students from one start on the same batches with different losses, for `targets` and `objectives`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from nas.planning.candidates import informed
from nas.planning.plan import Plan
from search_spaces.architecture import Architecture
from trials.distill.distill import MAX_GRADIENT_NORM, DistillSettings, learning_rate, make_optimizer
from trials.losses.precision import autocast
from trials.losses.window_losses import validation_loss
from trials.preparation import Shared, shared
from trials.prune.prune import choose, prune
from trials.teacher.targets import Targets
from trials.text.corpus import BatchOrder, windows

PART = 1_024  # tokens in one forward pass of the two compared models

Loss = Callable[[PreTrainedModel, NDArray[np.int64], Tensor], Tensor]
"""Maps a student, window numbers (n,) and their token ids (n, T) to a loss in nats per token."""


class Trainings:
    """A teacher with its text and batches; prunes, trains and evaluates students of it."""

    def __init__(self, plan: Plan) -> None:
        self.plan, recipe = plan, plan.recipe
        self.device = plan.resources.device
        self.common: Shared = shared(recipe, str(plan.cache), self.device)
        self.family = self.common.targets.family
        self.train = windows(self.common.corpus.train, recipe.sequence_length)[: self.common.first]
        texts = self.common.corpus.texts
        self.texts = {name: windows(text, recipe.sequence_length) for name, text in texts.items()}
        self.text = windows(self.common.corpus.validation, recipe.sequence_length)
        sizes = (recipe.tokens, (recipe.tokens,), recipe.sequence_length, recipe.batch_tokens, recipe.learning_rate)
        self.settings = DistillSettings(*sizes, recipe.seed, identity="benchmark")
        self.order = BatchOrder(len(self.train), self.settings.batch_windows, recipe.seed, 0)
        self.ideas = dict(informed(plan.target.shape, plan.target.feasible))

    def layers(self, architecture: Architecture) -> list[int]:
        """The numbers of the teacher's layers that stay."""
        numbers: list[int] = choose(self.common.scores, architecture, self.common.teacher.shape.group).layers.tolist()
        return numbers

    def student(self, architecture: Architecture) -> PreTrainedModel:
        """The teacher pruned to ``architecture`` and refitted, in float32."""
        common = self.common
        return prune(common.teacher.model, common.scores, architecture, common.streams).float()

    def trained(self, student: PreTrainedModel, loss: Loss, rate: float) -> float:
        """Train ``student`` in place for all steps at the peak ``rate``. Returns steps per second."""
        settings = replace(self.settings, learning_rate=rate)
        optimizer, started = make_optimizer(student, rate), time.perf_counter()
        for step in range(settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings)
            optimizer.zero_grad(set_to_none=True)
            places = self.order.indices(step)
            tokens = torch.from_numpy(self.train[places].astype(np.int64)).to(self.device)
            with autocast(self.device):
                found = loss(student, places, tokens)
            torch.autograd.backward(found)
            torch.nn.utils.clip_grad_norm_(student.parameters(), MAX_GRADIENT_NORM)
            optimizer.step()
        return settings.steps / (time.perf_counter() - started)

    def exact(self, student: PreTrainedModel, places: NDArray[np.int64], tokens: Tensor) -> Tensor:
        """The KL to the teacher's distribution, as in trials."""
        hidden, weight = self.family.backbone(student, tokens).flatten(0, 1), self.family.output_weight(student)
        return self.common.targets.divergence(hidden, weight, places, tokens)

    def loss(self, student: PreTrainedModel) -> float:
        """The loss on the corpus's validation text, in nats per token."""
        return validation_loss(student, self.family, self.text)

    def losses(self, student: PreTrainedModel) -> list[float]:
        """The loss on each validation text, in nats per token."""
        return [validation_loss(student, self.family, text) for text in self.texts.values()]

    @torch.no_grad()
    def divergence(self, student: PreTrainedModel) -> float:
        """The mean KL to the teacher on the corpus's validation text, in nats per token."""
        found, batch, online = [], max(1, PART // self.text.shape[1]), Targets(self.common.teacher)
        for start in range(0, len(self.text), batch):
            tokens = torch.from_numpy(self.text[start : start + batch].astype(np.int64)).to(self.device)
            hidden, weight = self.family.backbone(student, tokens).flatten(0, 1), self.family.output_weight(student)
            found += [float(online.divergence(hidden, weight, np.empty(0, np.int64), tokens))] * len(tokens)
        return float(np.mean(found))
