"""Finals on Ray: a fixed list of tasks, as many at a time as trials, and what they say on the way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from queue import SimpleQueue
from threading import Thread
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from nas.errors import TRANSIENT, Failure, classify
from nas.plan import Resources
from nas.runner import WORKER_DEATHS, resource_options
from search_spaces.errors import InputError
from trials.checkpoint import Rung
from trials.final import FinalResult, FinalSpec, run_final

LOOK_SECONDS = 1.0  # how long Ctrl-C may have to wait

# What is heard of a final: that it was started (None), a reading, its result, or why there is none.
Heard = Rung | FinalResult | Failure | None


def run_finals(specs: Mapping[str, FinalSpec], resources: Resources, hear: Callable[[str, Heard], None]) -> None:
    """Run all ``specs``, by name, in their order; ``hear`` is called in this thread, with the name.

    A final whose worker or node dies is tried again, from its last checkpoint, and so is one whose surroundings
    failed; its readings are heard once. Raises InputError when a worker does.
    """
    options: dict[str, Any] = {"num_returns": "streaming", "max_retries": WORKER_DEATHS}
    task = ray.remote(_final).options(**options, retry_exceptions=list(TRANSIENT), **resource_options(resources))
    waiting, running = deque(specs), dict[Any, str]()
    while waiting or running:
        while waiting and len(running) < resources.workers:
            name = waiting.popleft()
            running[task.remote(specs[name].to_dict())] = name
            hear(name, None)
        ready, _ = ray.wait(list(running), num_returns=1, timeout=LOOK_SECONDS)
        for stream in ready:
            heard = _next(stream)
            if heard is None:
                running.pop(stream)
            else:
                hear(running[stream], heard)


def _next(stream: Any) -> Rung | FinalResult | Failure | None:
    """What comes next from a task; None when it has ended."""
    try:
        said: Rung | FinalResult = ray.get(next(stream))
        return said
    except StopIteration:
        return None
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        return classify(error.cause)
    except RayError as error:  # its worker or its node, each time
        return Failure(f"given up: {' '.join(str(error).split())[:300]}", retry=True)


def _final(spec: dict[str, Any]) -> Iterator[Rung | FinalResult]:
    """What runs in a worker: one final; its readings as they come, then its result.

    The training has a thread of its own, since it calls back and a stream is asked. A second attempt says the
    same again, and Ray passes on what the first did not.
    """
    said: SimpleQueue[Rung | FinalResult | Exception] = SimpleQueue()

    def work() -> None:
        try:
            said.put(run_final(FinalSpec.from_dict(spec), lambda tokens, metrics: said.put(Rung(tokens, metrics))))
        except Exception as error:  # raised below, where Ray hears it
            said.put(error)

    Thread(target=work, name="final", daemon=True).start()
    while True:
        one = said.get()
        if isinstance(one, Exception):
            raise one
        yield one
        if isinstance(one, FinalResult):
            return
