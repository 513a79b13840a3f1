"""What a student is worth before any retraining, at a small part of what a trial costs."""

from __future__ import annotations

import numpy as np

from trials.corpus import windows
from trials.evaluate import window_losses
from trials.families import family_of
from trials.preparation import shared
from trials.prune import prune
from trials.recipe import SCREEN_CALIBRATION, SCREEN_VALIDATION
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
