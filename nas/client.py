"""A trial as Ray Tune sees it: a small process that asks a worker for the real one, and reports what it hears.

It imports neither torch nor transformers, and is up in the time that Ray and Tune take.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

from ray import tune

from nas.errors import Failure
from nas.tune_results import FAILURE, MEMORY, RETRIED
from nas.workers import work
from search_spaces.errors import InputError

log = logging.getLogger(__name__)

THREAD_SECONDS = "600"


def trainable(config: dict[str, Any], pool: Any, task: bytes) -> None:
    """One trial, its rungs reported as they come; ``task`` is `nas.tasks.trial_task`, pickled."""
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
