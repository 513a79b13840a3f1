r"""Measures the time of a refit by part: closed form, sums over tokens, and the rest.

    python -m benchmarks.pruning.refit_time
    python -m benchmarks.pruning.refit_time --model teachers/SmolLM2-135M-Instruct.Q4_1.gguf \
      --corpus ./wikitext-2 --budget 100M

The balanced candidate of the informed first candidates is pruned and refitted as in a search (`trials.prune.refit`).
Printed are seconds per layer, medians over repetitions. The closed form is the Cholesky factor in float64 and its
solution, for both projections. The sums are the moments over tokens. The rest is the student's forward pass and loading
its targets.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.flags import flags_of, plan_of
from nas.planning.candidates import informed
from search_spaces.architecture import Architecture
from trials.preparation import Shared, shared
from trials.prune import refit
from trials.prune.prune import prune

CLOSED, FITTED, WHOLE = "closed form", "fitted", "whole"


def seconds_of(common: Shared, architecture: Architecture) -> dict[str, float]:
    """Seconds per layer, by part."""
    spent = defaultdict[str, float](float)

    def now() -> float:
        if common.teacher.model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            started = now()
            found = function(*args)
            spent[name] += now() - started
            return found

        return call

    with (
        patch.object(torch.linalg, "cholesky", timed(CLOSED, torch.linalg.cholesky)),
        patch.object(torch, "cholesky_solve", timed(CLOSED, torch.cholesky_solve)),
        patch.object(refit, "fitted", timed(FITTED, refit.fitted)),
        patch("trials.prune.prune.refit", timed(WHOLE, refit.refit)),
    ):
        prune(common.teacher.model, common.scores, architecture, common.streams)
    parts = {CLOSED: spent[CLOSED], "sums": spent[FITTED] - spent[CLOSED], "rest": spent[WHOLE] - spent[FITTED]}
    return {name: value / architecture.depth for name, value in parts.items()}


def main() -> None:
    parser = flags_of(__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    flags = parser.parse_args()
    plan = plan_of(flags)
    common = shared(plan.recipe, str(plan.cache), plan.resources.device)
    architecture = dict(informed(plan.target.shape, plan.target.feasible))["balanced"]
    print(f"{architecture.key}, refitted on {common.streams.windows.numel():,} tokens; seconds a layer")
    found = [seconds_of(common, architecture) for _ in range(flags.repetitions)]
    for name in found[0]:
        print(f"{name:<12}{statistics.median(one[name] for one in found):8.3f}", flush=True)


if __name__ == "__main__":
    main()
