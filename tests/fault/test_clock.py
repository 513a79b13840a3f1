"""A wall clock that is set back or forth by an hour while a search runs confuses neither durations nor order."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bounded import run_bounded

SHIFTS = (-3600, 3600)

RUN = """
import json, os, sys, time
from pathlib import Path
from test_identity import opened
from tracking_reference import final, record

from nas.planning.errors import Failure
from nas.stages import finish
from nas.study.trial_records import ELAPSED
from nas.tracking.messages import TrialChanged
from nas.tracking.outbox import Outbox

folder, shift = Path(sys.argv[1]), Path(os.environ["WALL_CLOCK_SHIFT"])
study, outbox, wall = opened(folder), Outbox(folder / "outbox"), time.time()
running = finish.updated(final(0, "WAITING"), None)

def trial(seconds=0.0):
    candidate = study.ask()
    outbox.add(TrialChanged("s", record(2 * candidate.number)))
    time.sleep(seconds)
    return candidate.number

def end(number):
    study.complete(number, 1.0, {})
    outbox.add(TrialChanged("s", record(2 * number + 1)))

end(trial())
across = trial(0.5)
shift.write_text(sys.argv[2])
jumped = time.time() - wall
end(across)
end(trial(0.5))

print(json.dumps({
    "jumped": jumped,
    "seconds": [one.ended - one.started for one in study.records()],
    "kept": [ELAPSED in one.user_attrs for one in study._trials()],
    "order": [outbox.read(name).record.number for name in outbox.waiting()],
    "final": finish.updated(running, Failure("x", False)).ended - running.started,
}))
"""


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no clock that jumps: it needs a C compiler on Linux")
    library = tmp_path_factory.mktemp("clock") / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, Path(__file__).with_name("clock.c")], check=True)
    return library


@pytest.mark.parametrize("shift", SHIFTS)
def test_durations_and_order_are_those_of_the_monotonic_clock(clock: Path, tmp_path: Path, shift: int) -> None:
    tests = Path(__file__).resolve().parents[1]
    paths = [tests.parent, tests, tests / "unit" / "nas" / "study"]
    own = {
        "LD_PRELOAD": str(clock),
        "WALL_CLOCK_SHIFT": str(tmp_path / "shift"),
        "PYTHONPATH": ":".join(map(str, paths)),
    }
    command = [sys.executable, "-c", RUN, str(tmp_path), str(shift)]
    done = run_bounded(command, env={**os.environ, **own})
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert abs(found["jumped"] - shift) < 600
    assert all(0 <= one < 600 for one in [*found["seconds"], found["final"]])
    assert found["kept"] == [False, True, False]
    assert found["order"] == sorted(found["order"])
