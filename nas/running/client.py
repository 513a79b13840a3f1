"""The process of a Ray Tune trial: it drives a worker through the real trial, and reports each result to Tune.

It imports neither torch nor transformers, so it starts as fast as Ray and Tune do. The driver of the search lends it
the worker, takes it back when Tune says that the trial has ended, and decides about another try.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError

from nas.running.jobs import failure_of
from search_spaces.errors import InputError

log = logging.getLogger(__name__)

# Keys of a result. FINAL and FAILURE tell how a trial ended. Beside a FAILURE: AGAIN is True when a retry may help,
# MEMORY when memory was short.
FINAL, FAILURE = "final", "failure"
AGAIN, MEMORY = "again", "out_of_memory"
TOKENS, LOSS, WORKER = "tokens", "val_loss", "worker"

# The metrics that the study keeps of a trial.
METRICS = (
    "zero_shot_loss",
    "kl",
    "tokens",
    "seconds",
    "tokens_per_second",
    "peak_memory_bytes",
    "resumed_from",
)

THREAD_SECONDS = "600"


def trainable(config: dict[str, Any], task: bytes) -> None:
    """Run one trial and report its rungs as they come. ``task`` is `nas.running.tasks.trial_task`, pickled.

    ``config`` has the name of the worker's actor as ``worker``.
    """
    # Tune reads this when it uses the process again. A stopped trial needs time to end, or Tune gives up the next one.
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = THREAD_SECONDS
    name, spec = trial_name(config["study"], config["number"]), config["spec"]
    try:
        worker = ray.get_actor(config["worker"])
    except ValueError as error:
        tune.report({FAILURE: f"the worker died: {error}", AGAIN: True, MEMORY: False})
        return
    try:
        result = ray.get(worker.begin.options(name=name).remote(name, task, spec, spec["cache"]))
        while result is not None:
            tune.report(result)
            result = ray.get(worker.more.options(name=name).remote(name))
    except RayError as error:  # what the task raises too
        tune.report(_failed(error, name, spec["cache"]))


def _failed(error: RayError, name: str, folder: str) -> dict[str, Any]:
    try:
        failure = failure_of(error, folder)
    except InputError as wrong:
        return {FAILURE: str(wrong)}
    log.error("%s failed", name, exc_info=failure.error)
    return {FAILURE: failure.reason, AGAIN: failure.retry, MEMORY: failure.memory}


def trial_name(study: str, number: int) -> str:
    """The name of trial ``number`` of ``study``, as Ray's dashboard shows it."""
    return f"trial {number} of {study}"
