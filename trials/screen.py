"""Measures an architecture before any retraining: its student's validation loss and its generation latency."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch

from trials.compress.compress import compressor
from trials.compress.quantized_modules import allow_repacking, with_codes
from trials.evaluate.efficiency import Workload, generation_milliseconds
from trials.families.lookup import family_of
from trials.losses.window_losses import window_losses
from trials.preparation import shared
from trials.prune.prune import prune
from trials.recipe import SCREEN_CALIBRATION, SCREEN_VALIDATION
from trials.text.corpus import windows
from trials.trial import TrialSpec


def screen(spec: TrialSpec, calibration: int = SCREEN_CALIBRATION, validation: int = SCREEN_VALIDATION) -> float:
    """The validation loss of the pruned student of ``spec`` without retraining, in nats per token.

    Its weights are compressed at once, whatever the schedule of their sparsity is.

    A trial measures the same at 0 tokens, on more text. Here a refit uses the first ``calibration`` tokens, and the
    loss is the mean over validation texts of their first ``validation`` tokens; at least one window each. Nothing is
    written to disk.
    """
    recipe, common = spec.recipe, shared(spec.recipe, spec.cache, spec.device)
    common.teacher.shape.check(spec.architecture)
    length = recipe.sequence_length
    streams = common.streams.first(max(1, calibration // length)) if recipe.refit else None
    student = prune(common.teacher.model, common.scores, spec.architecture, streams).float()
    done = compressor(student, spec.architecture.compression, windows(common.corpus.train, length))
    family, count = family_of(common.teacher.model.config), max(1, validation // length)
    texts = [windows(text, length)[:count] for text in common.corpus.texts.values()]
    with done.measured(1, 1) if done else nullcontext():
        return float(np.mean([window_losses(student, family, text).mean() for text in texts]))


def latency(spec: TrialSpec) -> float:
    """Milliseconds per generated token (`generation_milliseconds`), after a prompt of half a training window.

    Times the pruned student without a refit, because the values of weights do not change the latency, zeros included.
    Its dtype is the teacher's: float32 on a CPU, with all threads of the process, and bfloat16 on CUDA. Quantized
    matrices are those of their library (`trials.compress.quantized_modules`).
    """
    common = shared(spec.recipe, spec.cache, spec.device)
    common.teacher.shape.check(spec.architecture)
    student = prune(common.teacher.model, common.scores, spec.architecture)
    with_codes(student, spec.architecture.compression.quantization)
    allow_repacking(student)
    try:
        return generation_milliseconds(student, Workload.within(spec.recipe.sequence_length, batch=1))
    finally:
        del student
        if spec.device == "cuda":
            torch.cuda.empty_cache()
