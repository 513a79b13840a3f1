"""How fast an architecture generates on the device that trials run on."""

from __future__ import annotations

import torch

from trials.efficiency import Workload, generation_milliseconds
from trials.preparation import shared
from trials.prune import prune
from trials.trial import TrialSpec


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
