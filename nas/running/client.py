"""The process of a Ray Tune trial: it asks a worker to run the real trial, and reports each result to Tune.

It imports neither torch nor transformers, so it starts as fast as Ray and Tune do.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

from ray import tune

from nas.planning.errors import Failure, NoWorkerError
from nas.running.workers import work
from search_spaces.errors import InputError

log = logging.getLogger(__name__)

# Keys of a result. FINAL and FAILURE tell how a trial ended, and RETRIED why it was tried again. Beside a FAILURE:
# AGAIN is True when a retry may help, MEMORY when memory was short, NO_WORKER when no worker is left for any trial.
FINAL, FAILURE, RETRIED = "final", "failure", "retried"
AGAIN, MEMORY, NO_WORKER = "again", "out_of_memory", "no_worker"
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


def trainable(config: dict[str, Any], pool: Any, task: bytes) -> None:
    """Run one trial and report its rungs as they come. ``task`` is `nas.running.tasks.trial_task`, pickled."""
    # Tune reads this when it uses the process again. A stopped trial needs time to end, or Tune gives up the next one.
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = THREAD_SECONDS
    asyncio.run(_report(config, pool, task))


def trial_name(study: str, number: int) -> str:
    """The name of trial ``number`` of ``study`` among the tasks of a pool."""
    return f"trial {number} of {study}"


async def _report(config: dict[str, Any], pool: Any, task: bytes) -> None:
    number, spec = config["number"], config["spec"]
    name = trial_name(config["study"], number)
    results = work(pool, name, task, spec, lambda why: tune.report({RETRIED: why}), spec["cache"])
    try:
        async for result in results:
            if isinstance(result, Failure):
                log.error("trial %s failed", number, exc_info=result.error)
                tune.report({FAILURE: result.reason, AGAIN: result.retry, MEMORY: result.memory})
            else:
                tune.report(result)
    except NoWorkerError as error:
        tune.report({FAILURE: str(error), NO_WORKER: True})
    except InputError as error:
        tune.report({FAILURE: str(error)})
