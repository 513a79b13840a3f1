"""Distils a pruned student briefly from its teacher before it is compared with others."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from search_spaces.errors import lacks_memory, one_line
from trials.compress.compress import Compressor
from trials.distill.checkpoint import CheckpointWriter, Rung, load_checkpoint
from trials.families.base import Family, fused_gelu
from trials.losses.kl import chunked_cross_entropy, gradient_chunk_tokens
from trials.losses.precision import autocast
from trials.losses.window_losses import WindowLosses, mean_loss, text_losses, window_losses
from trials.storage.activation_files import to_device
from trials.teacher.targets import Targets
from trials.text.corpus import BatchOrder, Corpus, windows
from trials.text.validation import OF_TEXT

BETAS, WEIGHT_DECAY, MAX_GRADIENT_NORM = (0.9, 0.95), 0.1, 1.0
WARMUP_SHARE, FINAL_SHARE = 0.05, 0.1  # share of the steps; share of the peak learning rate
DIVERGED = 3.0  # times the loss of a uniform guess, and times the loss before retraining
MICRO_TOKENS = {"cpu": 2048, "cuda": 32768}  # tokens in one forward pass; halved when memory runs out

Report = Callable[[int, dict[str, float]], None]

log = logging.getLogger(__name__)


class NonFiniteLoss(RuntimeError):  # noqa: N818 - the name describes the symptom, as it appears in the log
    """A loss or gradient became infinite or NaN. The trial has failed, and another try would fail in the same way."""


class Diverged(RuntimeError):  # noqa: N818 - as above
    """A validation loss is finite and far worse than a guess. Another try would end in the same way."""


class OutOfMemory(RuntimeError):  # noqa: N818 - as above
    """There is too little memory to train on one window at a time. Another try would fail in the same way."""


@dataclass(frozen=True)
class DistillSettings:
    """The settings of one distillation.

    - It trains on ``tokens`` tokens, ``batch_tokens`` in every optimizer step, in windows of ``sequence_length``.
      ``learning_rate`` is the peak.
    - Validation loss is measured at the ``rungs`` (tokens, ascending; the last is ``tokens``).
    - ``identity`` is a digest of everything that the result depends on. Checkpoints of another identity are not used.
    - A checkpoint is written at every rung but the last, and whenever the last one is ``checkpoint_seconds`` old.
    - ``text_share`` of the loss is cross-entropy with the text; the rest is the KL divergence from the teacher.
    - A distillation that continues an earlier one skips the batches of its ``steps_before``. The earlier one's text was
      the ``first_windows`` windows of this one's.
    """

    tokens: int
    rungs: tuple[int, ...]
    sequence_length: int
    batch_tokens: int
    learning_rate: float
    seed: int
    identity: str
    checkpoint_seconds: float = 300.0
    steps_before: int = 0
    first_windows: int = 0
    text_share: float = 0.0

    @property
    def steps(self) -> int:
        """Optimizer steps in the whole distillation."""
        return self.steps_for(self.tokens)

    @property
    def batch_windows(self) -> int:
        """Windows in one optimizer step."""
        return max(1, self.batch_tokens // self.sequence_length)

    def steps_for(self, tokens: int) -> int:
        """The number of steps after which at least ``tokens`` have been distilled."""
        return math.ceil(tokens / (self.batch_windows * self.sequence_length))


@dataclass(frozen=True)
class DistillResult:
    """The result of a distillation.

    ``rungs`` holds the metrics at 0 tokens and at every rung. ``seconds`` is the time of training and evaluation,
    without work lost to interruptions. ``resumed_from`` is the number of tokens in the checkpoint that was loaded.
    ``window_losses`` holds the final validation loss of every window.
    """

    rungs: tuple[Rung, ...]
    seconds: float
    resumed_from: int
    window_losses: WindowLosses = field(compare=False)


def distill(
    student: PreTrainedModel,
    targets: Targets,
    corpus: Corpus,
    settings: DistillSettings,
    directory: Path,
    report: Report,
    compressor: Compressor | None = None,
    before: WindowLosses | None = None,
) -> DistillResult:
    """Train ``student`` (float32, in place) to predict the teacher's next-token distributions, ``targets``.

    The loss is forward KL on logits at temperature 1 on packed text (Minitron, arXiv 2407.14679), mixed with
    cross-entropy if ``settings.text_share`` is positive. The optimizer is AdamW with linear warm-up and a cosine decay
    to a tenth of the peak rate. Batches depend on the seed and the step alone, so every trial sees the same ones.

    Validation losses are means over ``corpus.texts``, each text with the same weight. ``before`` are those at 0 tokens,
    if they are known. ``report(tokens, metrics)`` is called at 0 tokens and at every rung. Checkpoints are written
    while training goes on, and a rung is reported once its checkpoint is on disk. The last rung has no checkpoint: the
    caller saves the student. If ``directory`` holds a checkpoint, its rungs are reported again and training continues
    from it. On a CPU with the same number of threads, the result is then bit for bit that of an uninterrupted run.

    With a ``compressor``, the forward passes see compressed weights, and so do the validation losses. It stays on the
    student.

    When memory runs out, the windows of a step go through the student in smaller groups. The gradients are the same, up
    to the order of summation.

    Raises NonFiniteLoss when a loss or gradient becomes infinite or NaN, Diverged when the validation loss is more than
    `DIVERGED` times what it was and what a guess has, OutOfMemory when one window at a time is too much, and OSError
    when a checkpoint cannot be written.
    """
    with CheckpointWriter(directory) as checkpoints:
        progress = _Distillation(student, targets, corpus, settings, directory, checkpoints, report, compressor, before)
        return progress.finish()


def learning_rate(step: int, settings: DistillSettings) -> float:
    """The learning rate of ``step`` (from 0): linear warm-up, then a cosine decay to `FINAL_SHARE` of the peak."""
    warmup = max(1, round(WARMUP_SHARE * settings.steps))
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, settings.steps - 1 - warmup)
    return settings.learning_rate * (FINAL_SHARE + (1 - FINAL_SHARE) * (1 + math.cos(math.pi * done)) / 2)


def text_loss(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    """The mean cross-entropy in nats of the windows ``tokens`` (n, T) without their first tokens; differentiable.

    ``hidden`` (n, T, H) are the student's final states for these tokens; ``weight`` (V, H) is its output projection.
    """
    chunk = gradient_chunk_tokens(weight.shape[0], weight.device.type)
    return chunked_cross_entropy(hidden[:, :-1].flatten(0, 1), weight, tokens[:, 1:].flatten(), chunk)


def make_optimizer(student: PreTrainedModel, rate: float) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only, not on biases and norms."""
    parameters = list(student.parameters())
    groups = [
        {"params": [one for one in parameters if one.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [one for one in parameters if one.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=BETAS, fused=True)


class _Distillation:
    """One call of `distill`: its constants and its progress."""

    def __init__(
        self,
        student: PreTrainedModel,
        targets: Targets,
        corpus: Corpus,
        settings: DistillSettings,
        directory: Path,
        checkpoints: CheckpointWriter,
        report: Report,
        compressor: Compressor | None,
        before: WindowLosses | None,
    ) -> None:
        self.student, self.targets, self.settings = student, targets, settings
        self.checkpoints, self.report, self.compressor, self.before = checkpoints, report, compressor, before
        self.train = windows(corpus.train, settings.sequence_length)
        self.validation = {name: windows(one, settings.sequence_length) for name, one in corpus.texts.items()}
        self.order = BatchOrder(len(self.train), settings.batch_windows, settings.seed, settings.first_windows)
        self.optimizer = make_optimizer(student, settings.learning_rate)
        self.progress = load_checkpoint(directory, student, self.optimizer, settings.identity)
        self.micro_windows = max(1, MICRO_TOKENS[self.device] // settings.sequence_length)
        self.saved_at = time.monotonic()
        self.unreported: list[Rung] = []  # rungs whose checkpoint is not yet on disk
        self.last_losses: WindowLosses | None = None

    @property
    def device(self) -> str:
        device: str = self.student.device.type
        return device

    @property
    def family(self) -> Family:
        return self.targets.family

    def finish(self) -> DistillResult:
        """Train from the loaded checkpoint, or from the start, to the last rung."""
        self.student.eval()  # disables dropout: a hub config's 0.1 would make trials differ by chance
        resumed_from = self.progress.step * self.settings.batch_windows * self.settings.sequence_length
        for rung in self.progress.rungs:
            self.report(rung.tokens, dict(rung.metrics))
        for tokens in (0, *self.settings.rungs)[len(self.progress.rungs) :]:
            while self.progress.step < self.settings.steps_for(tokens):
                self._timed_step()
                if self.unreported and self.checkpoints.durable:
                    self._report()
            self._close_rung(tokens)
        return DistillResult(
            self.progress.rungs, self.progress.seconds, resumed_from, self.last_losses or self._measured()
        )

    def _timed_step(self) -> None:
        if time.monotonic() - self.saved_at >= self.settings.checkpoint_seconds:
            self._save()
        started, progress = time.perf_counter(), self.progress
        kl = self._step(progress.step)
        self.progress = replace(
            progress,
            step=progress.step + 1,
            seconds=progress.seconds + time.perf_counter() - started,
            kl_sum=progress.kl_sum + kl,
            kl_steps=progress.kl_steps + 1,
        )

    def _step(self, step: int) -> float:
        """One optimizer step; returns the mean KL of its tokens in nats."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.settings)
        if self.compressor:
            self.compressor.before_step(step, self.settings.steps)
        with fused_gelu(self.student, self.targets.teacher.model):
            kl = self._gradients(step)
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        if self.compressor:
            self.compressor.after_step(self.optimizer)
        found = torch.stack([kl, norm.double()]).tolist()  # the only synchronisation with a GPU in a step
        if not all(map(math.isfinite, found)):
            raise NonFiniteLoss(f"step {step + 1}: training KL {found[0]}, gradient norm {found[1]}")
        return float(found[0])

    def _places(self, step: int) -> list[NDArray[np.int64]]:
        """The window numbers of ``step``, split into micro-batches; empty after the last step."""
        if step == self.settings.steps:
            return []
        places, size = self.order.indices(self.settings.steps_before + step), self.micro_windows
        return [places[at : at + size] for at in range(0, len(places), size)]

    def _gradients(self, step: int) -> Tensor:
        """Set the gradients of the mean KL over the windows of ``step``, and return it."""
        while True:
            try:
                self.optimizer.zero_grad(set_to_none=True)
                shares, parts = [], self._places(step)
                coming = iter([*parts[1:], *self._places(step + 1)[:1]])
                for part in parts:
                    shares.append(self._micro_step(part))
                    if (following := next(coming, None)) is not None:
                        self.targets.read_ahead(following)
                return torch.stack(shares).sum()
            except (RuntimeError, MemoryError) as error:
                if not lacks_memory(error):
                    raise
                self._halve(error)

    def _halve(self, error: Exception) -> None:
        """Halve the micro-batches from now on. A step has as many tokens as before."""
        if self.micro_windows == 1:
            length = self.settings.sequence_length
            raise OutOfMemory(f"a training step on one window of {length} tokens: {one_line(error)}") from error
        self.micro_windows //= 2
        log.warning("out of memory: micro-batches are reduced to %d windows", self.micro_windows)

    def _micro_step(self, places: NDArray[np.int64]) -> Tensor:
        """Add the gradients of the windows number ``places``, weighted by their share of the batch; return their KL.

        The KL has the same weight. It stays on the device, because reading it would make a GPU wait.
        """
        tokens = to_device(torch.from_numpy(self.train[places].astype(np.int64)), self.student.device)
        with autocast(self.device):
            own, weight = self.family.backbone(self.student, tokens), self.family.output_weight(self.student)
            kl = self.targets.divergence(own.flatten(0, 1), weight, places, tokens)
            loss, text = kl, self.settings.text_share
            if text:
                loss = (1 - text) * kl + text * text_loss(own, weight, tokens)
        share = len(places) / self.settings.batch_windows
        torch.autograd.backward(share * loss)
        return share * kl.detach().double()

    def _close_rung(self, tokens: int) -> None:
        """Measure validation loss, and save a checkpoint. The rung is reported when that is on disk."""
        started, progress = time.perf_counter(), self.progress
        self.last_losses = self._measured() if tokens or self.before is None else self.before
        loss = mean_loss(self.last_losses)
        if not math.isfinite(loss):
            raise NonFiniteLoss(f"step {progress.step}: validation loss {loss}")
        if tokens:
            self._check(loss)
        seconds = progress.seconds + time.perf_counter() - started
        each = {f"{OF_TEXT}{name}": one for name, one in text_losses(self.last_losses).items()}
        metrics = {"val_loss": loss, "seconds": seconds, **each}
        if progress.kl_steps:
            metrics["kl"] = progress.kl_sum / progress.kl_steps
        rung = Rung(tokens, metrics)
        self.progress = replace(progress, seconds=seconds, kl_sum=0.0, kl_steps=0, rungs=(*progress.rungs, rung))
        if 0 < tokens < self.settings.tokens:  # at 0 tokens, pruning again gives the same student
            self._save()
            self.unreported.append(rung)
        else:
            self.checkpoints.wait()
            self._report()
            self.report(tokens, dict(metrics))

    def _check(self, loss: float) -> None:
        """Raise Diverged when no retraining at all would have been far better than this one."""
        before, guess = self.progress.rungs[0].metrics["val_loss"], math.log(self.student.config.vocab_size)
        if loss > DIVERGED * max(before, guess):
            raise Diverged(
                f"step {self.progress.step}: validation loss {loss:.1f}, {before:.1f} before retraining; "
                "a lower --learning-rate may help"
            )

    def _report(self) -> None:
        while self.unreported:
            rung = self.unreported.pop(0)
            self.report(rung.tokens, dict(rung.metrics))

    def _measured(self) -> WindowLosses:
        step, steps = self.progress.step, self.settings.steps
        with self.compressor.measured(step, steps) if self.compressor else nullcontext():
            return self._window_losses()

    def _window_losses(self) -> WindowLosses:
        return {name: window_losses(self.student, self.family, one) for name, one in self.validation.items()}

    def _save(self) -> None:
        self.checkpoints.save(self.student, self.optimizer, self.progress)
        self.saved_at = time.monotonic()
