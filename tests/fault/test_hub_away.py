"""The hub is out of reach from the first trial on, and a worker dies: its successor needs no hub."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from driving import Driver
from fake_hub import FakeHub
from optuna.trial import TrialState
from small_search import arguments, trials_in, write_text

pytestmark = pytest.mark.fault_slow

STUDY = "away"


def test_a_search_whose_teacher_came_from_the_hub_goes_on_without_it(tiny_teacher_folder: Path, tmp_path: Path) -> None:
    changes = {"trials": 2, "workers": 1, "scheduler": "none", "finalists": 1, "baselines": "no", "final_tokens": 8192}
    text = write_text(tmp_path)
    flags = arguments(Path("some/model"), text, tmp_path, STUDY, **{**changes, "tokens_per_trial": 16_384})
    with FakeHub({"some/model": tiny_teacher_folder}).running() as hub:
        settings = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
        driver = Driver(["python", "-m", "nas.search", *flags], tmp_path, **settings, HF_HUB_OFFLINE="0")
        driver.wait_for(re.compile("prepared in"))
        assert hub.requests
    driver.wait_for(re.compile("after 4,096 of"))
    (worker,) = (one for one in driver.family() if "ray::Worker" in "".join(one.cmdline()[:1]))
    worker.kill()
    assert driver.finish() == 0, "".join(driver.lines)
    assert "Traceback" not in "".join(driver.lines)
    complete = [one for one in trials_in(tmp_path, STUDY) if one.state == TrialState.COMPLETE]
    assert sorted(one.user_attrs["metrics"]["resumed_from"] for one in complete) in ([0, 4096], [0, 8192])
    assert (tmp_path / STUDY / "best" / "model.safetensors").is_file()
