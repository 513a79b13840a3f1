"""A search with all its stages that takes half a minute, and what must be the same whatever happens to it."""

from __future__ import annotations

import csv
import hashlib
import os
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from driving import Driver
from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState
from small_search import arguments, sizes, trials_in

STUDY, TOKENS, TRIALS = "struck", 16_384, 3
OF_TIME = ("seconds", "tokens_per_second", "peak_memory_bytes", "resumed_from")


def whole_search(teacher: Path, text: Path, **changes: Any) -> list[str]:
    """The command. Its output is the folder in which it runs."""
    settings = {"trials": TRIALS, "screened": 8, "tokens_per_trial": TOKENS, "workers": 1, "scheduler": "none"}
    settings |= {"finalists": 2, "baselines": "no", "test": f"unseen={text}"}
    return ["python", "-m", "nas.search", *arguments(teacher, text, Path(), STUDY, **{**settings, **changes})]


def undisturbed(teacher: Path, text: Path, temporary: pytest.TempPathFactory) -> Path:
    """The output of a search that nothing disturbs. The first test that asks runs it, for all processes of pytest."""
    shared = temporary.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else temporary.getbasetemp()
    folder = shared / "undisturbed"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            folder.mkdir(exist_ok=True)
            driver = Driver(whole_search(teacher, text), folder)
            assert driver.finish() == 0, "".join(driver.lines)
            (folder / "done").touch()
    return folder


def results(output: Path) -> tuple[str, list[dict[str, str]]]:
    """The digest of the winner's weights, and the final table without times."""
    weights = (output / STUDY / "best" / "model.safetensors").read_bytes()
    with (output / STUDY / "report" / "final.csv").open() as file:
        rows = [{name: value for name, value in row.items() if name not in OF_TIME} for row in csv.DictReader(file)]
    return hashlib.sha256(weights).hexdigest(), rows


def finished_trials(output: Path) -> dict[Any, Any]:
    """The losses of the complete trials at all their rungs, by architecture."""
    trials = _trials(output)
    complete = [one for one in trials if one.state == TrialState.COMPLETE]
    found = {sizes(one): (one.value, one.intermediate_values) for one in complete}
    assert len(found) == len(complete), "an architecture is finished once"
    return found


def running_in_study(output: Path) -> int:
    """How many trials the study believes to be running."""
    return sum(one.state == TrialState.RUNNING for one in _trials(output))


def _trials(output: Path) -> list[FrozenTrial]:
    """All trials; none while there is no study. To look must not create its database."""
    try:
        return trials_in(output, STUDY) if (output / "studies.db").exists() else []
    except KeyError:
        return []


def running_in_mlflow(output: Path) -> int:
    """How many runs MLflow believes to be running. Messages that wait for the next run of the command say otherwise."""
    if not (output / "mlflow.db").exists() or any((output / STUDY / "outbox").glob("*.json")):
        return 0
    with closing(sqlite3.connect(output / "mlflow.db")) as store:
        return int(store.execute("select count(*) from runs where status = 'RUNNING'").fetchone()[0])


def places_in_mlflow(output: Path) -> Counter[str]:
    """The trials, finals and parents of all runs in MLflow, counted."""
    asked = "select value from tags join runs using (run_uuid) where key = 'nas.trial' and lifecycle_stage = 'active'"
    with closing(sqlite3.connect(output / "mlflow.db")) as store:
        return Counter(value for (value,) in store.execute(asked))
