"""A trial as Ray Tune sees it: a small process that asks a worker for the real one, and reports what it hears.

It imports neither torch nor transformers, and is up in the time that Ray and Tune take.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

from ray import tune

from nas.planning.errors import Failure
from nas.running.workers import work
from search_spaces.errors import InputError

log = logging.getLogger(__name__)

# Beside the metrics of a rung. The first four tell how a trial ended, or why it was tried again.
FINAL, FAILURE, MEMORY, RETRIED = "final", "failure", "out_of_memory", "retried"
TOKENS, LOSS, WORKER = "tokens", "val_loss", "worker"

# Of what a trial measures, what is kept of a whole one.
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
    """One trial, its rungs reported as they come; ``task`` is `nas.running.tasks.trial_task`, pickled."""
    # Read when the process is used again: a stopped trial must get the time to let go, or Tune gives the next one up.
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = THREAD_SECONDS
    asyncio.run(_report(config, pool, task))


def trial_name(number: int) -> str:
    """What trial ``number`` is called among the tasks of a search."""
    return f"trial {number}"


async def _report(config: dict[str, Any], pool: Any, task: bytes) -> None:
    number = config["number"]
    said = work(pool, trial_name(number), task, config["spec"], lambda why: tune.report({RETRIED: why}))
    try:
        async for heard in said:
            if isinstance(heard, Failure):
                log.error("trial %s failed", number, exc_info=heard.error)
                tune.report({FAILURE: heard.reason, MEMORY: heard.memory})
            else:
                tune.report(heard)
    except InputError as error:
        tune.report({FAILURE: str(error)})
