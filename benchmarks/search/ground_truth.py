"""Trains every architecture of a band in full and screens it at several costs. Strategies are replayed from the table.

    python -m benchmarks.search.ground_truth --model mini --budget 60%

Runs `python -m nas.search --sampler exhaustive --scheduler none --finalists 0` with the given settings. An interrupted
run can be continued like any search. Then it screens all architectures (`trials.screen.screen`) and writes
``benchmarks/search/truth_NAME.json``, which `python -m benchmarks.search.strategies` reads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from nas.planning.machine import Machine
from nas.planning.plan import Plan, make_plan, resolve_target
from nas.planning.settings import parse_arguments
from nas.planning.specs import trial_spec
from nas.search import main as search
from nas.stages.prepare import open_study
from nas.study.records import TrialRecord
from trials.preparation import prepare
from trials.screen import screen
from trials.trial import Preparation

SIZES = (2_048, 4_096, 8_192)  # tokens of a screening: as many for calibration as for validation
FLAGS = ("--sampler", "exhaustive", "--scheduler", "none", "--finalists", "0")


def screened(plan: Plan, record: TrialRecord) -> dict[str, dict[str, float]]:
    """Loss and seconds of screening the architecture of ``record``, by tokens of the screening."""
    found = {}
    for tokens in SIZES:
        started = time.perf_counter()
        loss = screen(trial_spec(plan, record.architecture), tokens, tokens)
        found[str(tokens)] = {"loss": round(loss, 5), "seconds": round(time.perf_counter() - started, 3)}
    print(record.architecture.key, found, flush=True)
    return found


def table(plan: Plan, preparation: Preparation, records: list[TrialRecord]) -> dict[str, Any]:
    """The table in JSON form. Losses are in nats per token on validation text."""
    return {
        "model": plan.settings.model,
        "budget": plan.settings.budget,
        "space": {axis: list(sizes) for axis, sizes in plan.target.space.axes.items()},
        "recipe": {name: value for name, value in plan.recipe.to_dict().items() if name not in ("model", "corpus")},
        "teacher_loss": preparation.teacher_loss,
        "seconds_per_trial": round(statistics.median(one.metrics["seconds"] for one in records), 2),
        "architectures": [
            {
                "key": one.architecture.key,
                "params": one.parameters,
                "stock": one.stock,
                "curve": [[tokens, round(loss, 5)] for tokens, loss in one.curve],
                "screens": screened(plan, one),
            }
            for one in records
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="mini", help="name of the table")
    known, further = parser.parse_known_args()
    arguments = [*further, *FLAGS]
    if search(arguments):
        raise SystemExit("the search failed")
    settings, _, _ = parse_arguments(arguments)
    plan = make_plan(settings, resolve_target(settings), Machine.local())
    preparation = prepare(plan.recipe, str(plan.cache), plan.resources.device)
    records = [one for one in open_study(plan, preparation).records() if one.state == "COMPLETE"]
    file = Path(__file__).parent / f"truth_{known.name}.json"
    file.write_text(json.dumps(table(plan, preparation, records), indent=1) + "\n", "utf-8")
    print(f"{len(records)} architectures in {file}")


if __name__ == "__main__":
    main()
