"""A search on a real cluster that grows and shrinks: it asks for nodes, uses those that join, and gives them back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bounded import run_bounded
from driving import Driver
from on_cut_network import SETTINGS as CUT_SETTINGS
from on_cut_network import STUDY
from small_search import ROOT, arguments, clean_environment, sizes, trials_in, write_text

pytestmark = pytest.mark.fault_slow
FOLDER = Path(__file__).parent
ALONE = ["unshare", "--pid", "--fork", "--mount-proc", "--net", "--mount"]
ALONE += ["--map-root-user"] if os.getuid() else []
SETTINGS = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "RAY_AUTH_MODE": "disabled"}


@pytest.fixture(scope="module", autouse=True)
def allowed() -> None:
    try:
        subprocess.run([*ALONE, "ip", "link", "set", "lo", "up"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this account may not make namespaces: {error}")


def alone(program: str, *given: object) -> dict[str, Any]:
    """The last line of what ``program`` prints, which runs with processes and a network of its own."""
    words = [sys.executable, str(FOLDER / program), *map(str, given)]
    command = [*ALONE, "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *words]
    done = run_bounded(command, env=clean_environment(**SETTINGS))
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_workers_come_from_an_autoscaler_and_go_when_nothing_is_left(tiny_teacher_folder: Path, tmp_path: Path) -> None:
    found = alone("on_growing_cluster.py", tiny_teacher_folder, tmp_path)
    assert found["known"]["nodes"] == [[0, 0]], "the head alone, without a CPU"
    assert "2 at a time, 2 CPU, 1 GPU each" in " ".join(found["planned"].split()), "on nodes that are not up yet"
    assert found["code"] == 0, found["errors"][-2000:] + found["output"][-2000:]
    assert "winner" in found["output"]
    assert found["alive"][0] == 0
    assert max(found["alive"]) == 2, "both nodes were asked for"
    assert found["alive"][-1] == 0, "and both were given back"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def quiet(tiny_teacher_folder: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The curves of a search that nothing cuts off, on this host alone."""
    folder = tmp_path_factory.mktemp("quiet")
    flags = arguments(tiny_teacher_folder, text, folder, STUDY, **{**CUT_SETTINGS, "workers": 1})
    driver = Driver(["python", "-m", "nas.search", *flags], folder)
    assert driver.finish() == 0, "".join(driver.lines)
    return curves(folder)


def curves(output: Path) -> dict[str, Any]:
    """State and losses of each architecture."""
    return {str(sizes(one)): (one.state.name, one.intermediate_values) for one in trials_in(output, STUDY)}


@pytest.mark.parametrize("seconds", [5, 60])
def test_a_host_that_is_cut_off_costs_no_result(
    tiny_teacher_folder: Path, text: Path, quiet: dict[str, Any], tmp_path: Path, seconds: int
) -> None:
    found = alone("on_cut_network.py", tiny_teacher_folder, text, tmp_path, seconds)
    assert found["code"] == 0, found["output"][-3000:]
    assert found["cut"]
    assert curves(tmp_path) == quiet, "each architecture has the losses of the undisturbed search"
    assert "Traceback" not in found["output"]
