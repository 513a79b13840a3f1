"""Ctrl-C in the middle of a call of the storage."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.study import StudyDirection

from nas.study.interruption import postponed, uncut


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
