"""A search whose machine is lost twice, with everything on it: an empty one goes on from the mirror each time."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import optuna
import psutil
import pytest
from driving import PATIENCE, Driver
from object_store import BUCKET, object_store
from optuna.trial import FrozenTrial, TrialState
from small_search import arguments, sizes, trials_in, write_text

from nas.mirror.manifest import Manifest, read_manifest
from nas.mirror.store import Store
from nas.study.sampler import INTERRUPTED

STUDY, TRIALS, TOKENS = "lost", 3, 32_768
FINAL_TOKENS = 4 * TOKENS  # of which the second half leaves time to lose the machine
MIRROR = f"s3://{BUCKET}/searches"


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with object_store():
        yield


class Ended(NamedTuple):
    """What a search has found: the value of every finished trial and final, and the winner with its weights."""

    trials: dict[tuple[tuple[str, object], ...], float]
    finals: dict[str, float]
    winner: dict[str, str]


@pytest.fixture(scope="module")
def search(tiny_teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Driver]:
    """Starts the search with its results in a folder."""
    folder = tmp_path_factory.mktemp("text")
    text = write_text(folder)

    def start(output: Path, **more: str) -> Driver:
        changes = {"trials": TRIALS, "tokens_per_trial": TOKENS, "workers": 1, "scheduler": "none", "space": "fine"}
        changes |= {"finalists": 2, "final_tokens": FINAL_TOKENS, "baselines": "no", **more}
        flags = arguments(tiny_teacher_folder, text, output, STUDY, **changes)
        return Driver(["python", "-m", "nas.search", *flags], folder)

    return start


@pytest.fixture(scope="module")
def undisturbed(search: Callable[..., Driver], tmp_path_factory: pytest.TempPathFactory) -> Ended:
    output = tmp_path_factory.mktemp("undisturbed")
    driver = search(output)
    assert driver.finish() == 0, "".join(driver.lines)
    return ended(output)


def ended(output: Path) -> Ended:
    study = optuna.load_study(storage=f"sqlite:///{output}/studies.db", study_name=STUDY)
    finals = {name: value["val_loss"] for name, value in study.user_attrs.items() if name.startswith("final ")}
    manifest = json.loads((output / STUDY / "best" / "manifest.json").read_text())
    weights = {name: str(one) for name, one in manifest.items() if name.endswith((".safetensors", "config.json"))}
    return Ended({sizes(one): one.values[0] for one in finished(trials_in(output, STUDY))}, finals, weights)


def finished(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return [one for one in trials if one.state.is_finished() and one.user_attrs.get("reason") != INTERRUPTED]


def lose(driver: Driver, output: Path, enough: Callable[[Manifest], bool]) -> Manifest:
    """End the search without a word when its mirror holds ``enough``, and delete all that it has on the disk."""
    limit = time.monotonic() + PATIENCE
    while not ((found := read_manifest(Store(MIRROR).inside(STUDY), STUDY)) and enough(found)):
        assert driver.process.poll() is None, driver.process.communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.2)
    family = driver.signal(signal.SIGKILL)
    assert driver.finish() == -signal.SIGKILL
    _, orphans = psutil.wait_procs(family, timeout=60)
    for process in orphans:
        process.kill()
    shutil.rmtree(output)
    last = read_manifest(Store(MIRROR).inside(STUDY), STUDY)
    assert last is not None
    return last


@pytest.mark.fault_slow
def test_an_empty_machine_goes_on_and_finds_the_same_winner(
    search: Callable[..., Driver], undisturbed: Ended, tmp_path: Path
) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    lost = lose(search(first, mirror=MIRROR), first, lambda found: found.standing.trials >= 1)
    assert lost.standing.trials < TRIALS

    driver = search(second, mirror=MIRROR)
    again = lose(driver, second, lambda found: any("/finals/" in one and "/checkpoint-" in one for one in found.files))
    text = "".join(driver.lines)
    assert f"brought back the study with {lost.standing}" in text
    assert f"{lost.standing.trials} of {TRIALS} trials are done already" in text

    driver = search(third, mirror=MIRROR)
    assert driver.finish() == 0, "".join(driver.lines)
    text = "".join(driver.lines)
    assert f"brought back the study with {again.standing}" in text
    assert f"{TRIALS} of {TRIALS} trials are done already" in text
    assert ended(third) == undisturbed
    trials = trials_in(third, STUDY)
    assert {one.state for one in finished(trials)} == {TrialState.COMPLETE}
    assert len(finished(trials)) == TRIALS == len({sizes(one) for one in finished(trials)})
    results = [json.loads(file.read_text())["result"] for file in (third / STUDY / "finals").glob("*/result.json")]
    assert max(one["resumed_from"] for one in results) == FINAL_TOKENS // 2
    assert "Traceback" not in text
    last = read_manifest(Store(MIRROR).inside(STUDY), STUDY)
    assert last is not None
    assert f"{STUDY}/best/model.safetensors" in last.files
    assert f"{STUDY}/report/report.html" in last.files
