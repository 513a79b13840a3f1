"""Ctrl-C in the middle of a call of the storage."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.study import StudyDirection
from sqlalchemy import event

from nas.study.interruption import postponed, uncut
from nas.study.snapshot import open_study
from nas.study.study import SearchStudy
from search_spaces.space import SearchSpace
from trials.teacher.source import MINI, read_shape

SPACE = SearchSpace(read_shape(MINI), depth=(4, 8), hidden=(128, 256), heads=(4,), kv_heads=(), mlp=(512,))


def test_a_call_is_done_before_the_interruption_is_heard(tmp_path: Path) -> None:
    storage: Any = optuna.storages.get_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    study = storage.create_new_study([StudyDirection.MINIMIZE], "one")
    written = storage._backend.set_study_user_attr

    def interrupted(*given: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        written(*given)

    storage._backend.set_study_user_attr = interrupted
    with pytest.raises(KeyboardInterrupt):
        uncut(storage).set_study_user_attr(study, "kept", 1)
    assert storage.get_study_user_attrs(study) == {"kept": 1}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_comes_at_the_end_of_the_block_and_answers_are_as_before(number: signal.Signals) -> None:
    heard: list[str] = []
    before = signal.signal(number, lambda number, frame: heard.append("signal"))
    try:
        with postponed():
            os.kill(os.getpid(), number)
            heard.append("end of the block")
        assert heard == ["end of the block", "signal"]
        os.kill(os.getpid(), number)
        assert heard == ["end of the block", "signal", "signal"]
    finally:
        signal.signal(number, before)


STEPS: dict[str, Callable[[SearchStudy], Any]] = {
    "ask": lambda study: study.ask(),
    "report": lambda study: study.report(0, 1024, 1.0),
    "record": lambda study: study.record(0),
    "complete": lambda study: study.complete(0, 1.0, {}),
    "tries_again": lambda study: study.tries_again(0),
    "records": lambda study: study.records(),
    "remember": lambda study: study.remember("key", "value"),
    "requeue": lambda study: study.requeue(),
}


@pytest.fixture
def study(tmp_path: Path) -> SearchStudy:
    url = f"sqlite:///{tmp_path / 's.db'}"
    return SearchStudy(url, "s", SPACE, tuple(SPACE), sampler="tpe", seed=0, identity={})


def struck(study: optuna.Study, call: Callable[[], Any]) -> list[str]:
    """The statements of ``study`` in ``call`` that Ctrl-C cuts when it comes during each of them."""
    cut: list[str] = []

    def strike(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        cut.append(statement)
        signal.raise_signal(signal.SIGINT)  # its answer raises here, unless it is postponed
        cut.pop()

    engine = study._storage._backend.engine
    event.listen(engine, "after_cursor_execute", strike)
    with pytest.raises(KeyboardInterrupt):
        call()
    event.remove(engine, "after_cursor_execute", strike)
    return cut


@pytest.mark.parametrize("step", STEPS)
def test_no_statement_of_a_search_is_cut(study: SearchStudy, step: str) -> None:
    assert study.ask() is not None
    study._study._storage.forget()  # what the driver has in memory, it does not ask the database for
    assert struck(study._study, lambda: STEPS[step](study)) == []


def test_no_statement_of_a_reader_is_cut(study: SearchStudy, tmp_path: Path) -> None:
    assert study.ask() is not None
    reader = open_study(f"sqlite:///{tmp_path / 's.db'}", "s")
    assert struck(reader, lambda: reader.get_trials(deepcopy=False)) == []
    assert struck(reader, lambda: reader._storage.get_n_trials(reader._study_id)) == []
