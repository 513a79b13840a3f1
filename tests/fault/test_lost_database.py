"""A search whose database server is killed in the middle and comes back: it goes on, and nothing is lost."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from database_server import PASSWORD, Postgres, database_server
from driving import Driver
from optuna.trial import TrialState
from small_search import arguments, sizes, write_text

from nas.mirror.study_copy import found_study
from nas.report.__main__ import main as report
from nas.study.storage import AWAY_SECONDS

STUDY, TRIALS, TOKENS = "on-a-server", 4, 32_768
AWAY = 5.0  # seconds


@pytest.mark.fault_slow
def test_a_search_goes_on_when_its_database_server_is_back(tiny_teacher_folder: Path, tmp_path: Path) -> None:
    with database_server(Postgres) as server:
        changes = {"trials": TRIALS, "tokens_per_trial": TOKENS, "scheduler": "none", "storage": server.url()}
        flags = arguments(tiny_teacher_folder, write_text(tmp_path), tmp_path, STUDY, **changes)
        driver = Driver(["python", "-m", "nas.search", *flags], tmp_path)
        driver.wait_for(re.compile(r"of 32,768 tokens, complete"))
        server.kill()
        time.sleep(AWAY)
        server.start()
        code = driver.finish()
        text = "".join(driver.lines)
        assert code == 0, text
        assert f"waiting for it, at most {AWAY_SECONDS:.0f} s" in text
        assert "the server is back after" in text
        assert PASSWORD not in text
        assert "Traceback" not in text

        study = found_study(server.url(), STUDY)
        assert study is not None
        assert [one.state for one in study.trials] == [TrialState.COMPLETE] * TRIALS
        assert len({sizes(one) for one in study.trials}) == TRIALS
        assert all(one.user_attrs["metrics"]["resumed_from"] == 0 for one in study.trials)
        assert not (tmp_path / "studies.db").exists()
        assert report([STUDY, "--output", str(tmp_path), "--storage", server.url()]) == 0
        kept = (tmp_path / STUDY).rglob("*")
        assert not [one for one in kept if one.is_file() and PASSWORD.encode() in one.read_bytes()]
