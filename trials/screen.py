"""What is measured of an architecture before any retraining: the loss of its student, and how fast it generates."""

from __future__ import annotations

import numpy as np
import torch

from trials.evaluate.efficiency import Workload, generation_milliseconds
from trials.families.lookup import family_of
from trials.losses.window_losses import window_losses
from trials.preparation import shared
from trials.prune.prune import prune
from trials.recipe import SCREEN_CALIBRATION, SCREEN_VALIDATION
from trials.text.corpus import windows
from trials.trial import TrialSpec


def screen(spec: TrialSpec, calibration: int = SCREEN_CALIBRATION, validation: int = SCREEN_VALIDATION) -> float:
    """The validation loss in nats per token of the student of ``spec``, pruned and refitted, not retrained.

    As a trial measures it at 0 tokens, but on the first ``calibration`` tokens of the text for refits and the first
    ``validation`` tokens of each validation text, whose mean it is; at least a window of each. Nothing is written.
    """
    recipe, common = spec.recipe, shared(spec.recipe, spec.cache, spec.device)
    common.teacher.shape.check(spec.architecture)
    length = recipe.sequence_length
    streams = common.streams.first(max(1, calibration // length))
    student = prune(common.teacher.model, common.scores, spec.architecture, streams).float()
    family, count = family_of(common.teacher.model.config), max(1, validation // length)
    texts = (windows(text, length)[:count] for text in common.corpus.texts.values())
    return float(np.mean([window_losses(student, family, text).mean() for text in texts]))


def latency(spec: TrialSpec) -> float:
    """Median milliseconds of a generated token, one sequence, behind a prompt of half a training window.

    Of the teacher's slices in the format that it is loaded in: float32 on a CPU, with as many threads as the process
    has, bfloat16 on CUDA. Values of weights do not matter to it.
    """
    common = shared(spec.recipe, spec.cache, spec.device)
    common.teacher.shape.check(spec.architecture)
    student = prune(common.teacher.model, common.scores, spec.architecture)
    try:
        return generation_milliseconds(student, Workload.within(spec.recipe.sequence_length, batch=1))
    finally:
        del student
        if spec.device == "cuda":
            torch.cuda.empty_cache()
