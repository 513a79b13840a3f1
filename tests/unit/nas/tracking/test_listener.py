"""What the listener sends to MLflow of a search."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from nas.planning.machine import Machine, Node
from nas.planning.plan import make_plan, resolve_target
from nas.planning.settings import command_line, load_settings
from nas.running.tasks import PreparedTeacher
from nas.stages.events import SearchPrepared, SearchStopped
from nas.tracking import listener
from nas.tracking.messages import SearchFinished, SearchStarted
from trials.preparation import Preparation
from trials.storage.redact import redacted

SECRET = "SECRET-WORD"


class Recorder:
    """Takes the place of the tracker."""

    problem, rejected, experiment_id = None, 0, None

    def __init__(self, *given: Any) -> None:
        self.messages: list[Any] = []

    def put(self, message: Any) -> None:
        self.messages.append(message)

    def close(self, seconds: float) -> int:
        return 0


def test_a_search_is_announced_without_its_passwords_and_stopped_once(
    tiny_teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "Tracker", Recorder)
    storage = f"postgresql://user:{SECRET}@host/db"
    flags = {"model": str(tiny_teacher_folder), "output": str(tmp_path), "budget": "60%", "tolerance": "0.2"}
    settings = load_settings({**flags, "corpus": "stdlib", "storage": storage}, None, {})
    plan = make_plan(settings, resolve_target(settings), Machine((Node(2, 0.0, 2**34),)))
    plan = replace(plan, command=redacted(command_line(["--storage", storage], {})))
    preparation = Preparation(plan.target.shape, "f", 1.0, "text", "t", "i", False, 1.0)
    nobody: Any = None
    teacher = PreparedTeacher(preparation, nobody, np.zeros(1, np.float32), {}, None)
    mlflow = listener.MlflowListener(Console(file=io.StringIO()))
    mlflow(SearchPrepared(plan, "id", teacher))
    mlflow(SearchStopped(interrupted=True))
    tracker: Any = mlflow.tracker
    started, stopped = tracker.messages
    assert isinstance(started, SearchStarted)
    assert isinstance(stopped, SearchFinished)
    assert stopped.status == "KILLED"
    assert SECRET not in repr(tracker.messages)
    assert started.settings["storage"] == "postgresql://user:***@host/db"
    assert "postgresql://user:***@host/db" in started.tags["command"]
    assert "postgresql://user:***@host/db" in started.description


@pytest.mark.parametrize(("problem", "least"), [(None, listener.DONE_SECONDS), ("down", listener.STOPPED_SECONDS)])
def test_the_end_waits_for_a_slow_server_and_not_for_one_that_is_down(problem: str | None, least: float) -> None:
    waited: list[float] = []

    class Tracker(Recorder):
        def close(self, seconds: float) -> int:
            waited.append(seconds)
            return 3

    tracker: Any = Tracker()
    tracker.problem = problem
    told = io.StringIO()
    listener.MlflowListener(Console(file=told, width=200))._close(tracker, listener.DONE_SECONDS)
    assert waited == [least]
    assert "MLflow: 3 messages not delivered" in told.getvalue()
    assert "the next run of this study delivers them" in told.getvalue()
