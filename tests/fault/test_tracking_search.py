"""A whole search whose MLflow server never answers: same results, and the store gets everything once, afterwards."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from driving import Driver
from mute_server import mute_server
from small_search import write_text
from whole_search import STUDY, places_in_mlflow, results, running_in_mlflow, undisturbed, whole_search

pytestmark = pytest.mark.fault_slow


@pytest.fixture
def mute() -> Iterator[str]:
    with mute_server() as address:
        yield address


def points(output: Path) -> list[tuple[str, str, int]]:
    """How many points each curve has, by the trial or final and the name of the metric."""
    asked = """
        select tags.value, metrics.key, count(*) from metrics join tags using (run_uuid)
        where tags.key = 'nas.trial' and tags.value != 'parent' group by tags.value, metrics.key
    """
    with closing(sqlite3.connect(output / "mlflow.db")) as store:
        return sorted(store.execute(asked))


def run(command: list[str], output: Path, **environment: str) -> str:
    driver = Driver(command, output, **environment)
    assert driver.finish() == 0, "".join(driver.lines)
    return "".join(driver.lines)


def test_a_search_beside_a_mute_server_has_the_same_results_and_loses_no_message(
    tiny_teacher_folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, mute: str
) -> None:
    deaf, text = tmp_path / "deaf", write_text(tmp_path)
    deaf.mkdir()
    command = whole_search(tiny_teacher_folder, text)
    said = run(command, deaf, MLFLOW_TRACKING_URI=mute)
    assert said.count("the search continues, events wait in") == 1
    assert "messages not delivered" in said
    quiet = undisturbed(tiny_teacher_folder, text, tmp_path_factory)
    assert results(deaf) == results(quiet)
    shutil.copytree(deaf / STUDY / "outbox", tmp_path / "kept")

    for _ in range(2):  # the second time what was delivered is there again, as from a backup
        run(command, deaf)
        assert not list((deaf / STUDY / "outbox").glob("*.json"))
        assert set(places_in_mlflow(deaf).values()) == {1}
        assert places_in_mlflow(deaf) == places_in_mlflow(quiet)
        assert points(deaf) == points(quiet)
        assert running_in_mlflow(deaf) == 0
        shutil.copytree(tmp_path / "kept", deaf / STUDY / "outbox", dirs_exist_ok=True)
