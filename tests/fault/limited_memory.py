"""Distillations in a process whose memory is limited. A program for test_out_of_memory.

    python limited_memory.py MEGABYTES...

Trains a student on 4 windows, in micro-batches of 1, 2 and 4. Then the process may grow by so many MB at most, and
trains it anew; at last without a limit again. Prints one JSON object with the outcomes.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch
from conftest import VOCAB, make_gpt2

from search_spaces.architecture import Architecture
from trials.distill import distill as distillation
from trials.distill.distill import DistillSettings, OutOfMemory, distill
from trials.families.lookup import FAMILIES
from trials.families.shapes import shape_of
from trials.prune.importance import compute_importance
from trials.prune.prune import prune
from trials.teacher.targets import Targets
from trials.teacher.teacher import Teacher
from trials.text.corpus import Corpus

LENGTH, WINDOWS = 4096, 4  # the activations of one window have many times the size of the student
BATCH = WINDOWS * LENGTH
MODEL = make_gpt2(n_embd=128, n_inner=512, n_positions=LENGTH)
TOKENS = np.random.default_rng(0).integers(0, VOCAB, 2 * BATCH, dtype=np.uint16)
CORPUS = Corpus(TOKENS[:BATCH], TOKENS[-2 * LENGTH :], "random", "fingerprint", "random tokens")
SETTINGS = DistillSettings(BATCH, (BATCH,), LENGTH, BATCH, 3e-4, 0, "this trial")


def trained() -> dict[str, Any]:
    """Train the student: the sizes of its micro-batches, and its losses or why there are none."""
    scores = compute_importance(MODEL, FAMILIES["gpt2"], torch.arange(64).reshape(4, 16))
    student = prune(MODEL, scores, Architecture(2, 96, (3, 3), (384, 384)))
    teacher = Teacher(Path(), MODEL, None, shape_of(MODEL.config), "fingerprint")
    sizes: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: sizes.append(record.getMessage())  # type: ignore[method-assign]
    distillation.log.addHandler(handler)
    try:
        with TemporaryDirectory() as folder:
            done = distill(student, Targets(teacher), CORPUS, SETTINGS, Path(folder), lambda tokens, metrics: None)
    except OutOfMemory as error:
        return {"halved": sizes, "error": str(error)}
    finally:
        distillation.log.removeHandler(handler)
    return {
        "halved": sizes,
        "losses": [one.metrics["val_loss"] for one in done.rungs],
        "kl": done.rungs[-1].metrics["kl"],
    }


def main(limits: list[int]) -> dict[str, Any]:
    """See the head of this file."""
    for windows in (1, 2, WINDOWS):  # code is made for each size here, because oneDNN may crash where it cannot
        distillation.MICRO_TOKENS["cpu"] = windows * LENGTH
        free = trained()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limited = {}
    for megabytes in limits:
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + megabytes * 2**20, hard))
        limited[megabytes] = trained()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    return {"free": free, "limited": limited, "again": trained()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(main([int(one) for one in sys.argv[1:]])))
