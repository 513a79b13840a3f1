"""The mirror holds the last complete round, whatever breaks, and an empty machine gets all of it back."""

from __future__ import annotations

import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from made_up_search import MadeUp
from object_store import BUCKET, ObjectStore, object_store
from optuna.trial import FrozenTrial

from nas.mirror import writer as writer_module
from nas.mirror.contents import hold, scores_of, superseded
from nas.mirror.manifest import MANIFEST, OBJECTS, Standing, read_manifest
from nas.mirror.restore import UNFINISHED, restore
from nas.mirror.store import Store
from nas.mirror.writer import MirrorWriter
from nas.planning.plan import Plan
from nas.search import main
from search_spaces.errors import InputError
from trials.prune.importance import SCORES_FILE, ImportanceScores
from trials.storage.cache import Cache

LARGE = 3 * 2**20  # bytes; such a file is linked, not copied, before it goes up


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with object_store() as found:
        yield found


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SHORTEST_REST", "LONGEST_REST", "FIRST_PAUSE", "LONGEST_PAUSE", "CLOSING_PAUSE"):
        monkeypatch.setattr(writer_module, name, 0.01)


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, server: ObjectStore, tmp_path: Path) -> Store:
    folder = uuid.uuid4().hex
    return Store(f"s3://{BUCKET}/{folder}" if request.param == "s3" else f"file://{tmp_path}/mirror")


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(f"file://{tmp_path}/mirror")


@pytest.fixture
def search(tiny_teacher_folder: Path, tmp_path: Path) -> MadeUp:
    """A search with two trials, of which one has left its student, and the other is at its second checkpoint."""
    made = MadeUp(tiny_teacher_folder, tmp_path / "first")
    made.trials(2)
    put(made.plan, "trials/a/student/model.safetensors", bytes(LARGE))
    put(made.plan, "trials/a/result.json", b"{}")
    put(made.plan, "trials/b/checkpoint-00000016/student.safetensors", b"older")
    put(made.plan, "trials/b/checkpoint-00000032/student.safetensors", b"newer")
    return made


def put(plan: Plan, name: str, content: bytes) -> None:
    (plan.folder / name).parent.mkdir(parents=True, exist_ok=True)
    (plan.folder / name).write_bytes(content)


def moved(plan: Plan, output: Path) -> Plan:
    """The same plan on an empty machine."""
    (output / plan.study).mkdir(parents=True)
    return replace(plan, settings=plan.settings.model_copy(update={"output": str(output)}))


def mirrored(plan: Plan, store: Store, found: Any = None, idle: float = 20.0) -> str | None:
    """Bring the mirror up to date, as the end of a search does."""
    writer = MirrorWriter(plan, store, found, None)
    missing = writer.close(idle)
    writer._thread.join()
    return missing


def trials_of(plan: Plan) -> list[FrozenTrial]:
    found = optuna.load_study(study_name=plan.study, storage=plan.storage).get_trials()
    for one in found:
        one._trial_id = 0  # a number of the database
    return found


def files_of(plan: Plan) -> dict[str, bytes]:
    return {str(one.relative_to(plan.folder)): one.read_bytes() for one in plan.folder.rglob("*") if one.is_file()}


def silent(_: str) -> None:
    pass


def test_an_empty_machine_gets_the_study_and_its_files_back(search: MadeUp, store: Store, tmp_path: Path) -> None:
    optuna.create_study(storage=search.plan.storage, study_name="somebody else's")
    assert mirrored(search.plan, store) is None
    empty = moved(search.plan, tmp_path / "second")
    lines: list[str] = []
    restore(empty, store, lines.append)
    assert trials_of(empty) == trials_of(search.plan)
    assert optuna.get_all_study_names(empty.storage) == [empty.study]
    before = files_of(search.plan)
    del before["trials/b/checkpoint-00000016/student.safetensors"]  # the newer one is enough
    assert files_of(empty) == before
    assert "bringing back 3 files of 3.1 MB" in lines[0]
    assert "brought back the study with 2 ended trials and 0 ended finals and 3 files" in lines[1]


def test_the_scores_that_students_are_cut_by_come_back(search: MadeUp, local: Store, tmp_path: Path) -> None:
    cache, scores = Cache(search.plan.cache), search.teacher.scores
    other = replace(scores, layers=scores.layers + 1)
    cache.build("importance", "other", lambda folder: other.save(folder / SCORES_FILE))
    own = cache.build("importance", "own", lambda folder: scores.save(folder / SCORES_FILE))
    put(search.plan, "../cache/importance/damaged/scores.npz", b"damaged")
    assert scores_of(search.plan.cache, scores.key) == own
    assert scores_of(search.plan.cache, "another") is None
    assert scores_of(tmp_path / "nowhere", scores.key) is None
    MirrorWriter(search.plan, local, None, own).close(20.0)
    empty = moved(search.plan, tmp_path / "second")
    restore(empty, local, silent)
    assert [one.name for one in (empty.cache / "importance").iterdir()] == ["own"]
    assert Cache(empty.cache).has("importance", "own")
    assert ImportanceScores.load(empty.cache / "importance" / "own" / SCORES_FILE).key == scores.key


def test_a_study_comes_back_beside_others(search: MadeUp, local: Store, tmp_path: Path) -> None:
    mirrored(search.plan, local)
    other = moved(search.plan, tmp_path / "second")
    optuna.create_study(storage=other.storage, study_name="other").add_trial(optuna.create_trial(value=1.0))
    put(other, UNFINISHED, b"")  # an earlier try was cut off in the middle of the study
    optuna.create_study(storage=other.storage, study_name=other.study).add_trial(optuna.create_trial(value=1.0))
    restore(other, local, silent)
    assert trials_of(other) == trials_of(search.plan)
    assert len(optuna.load_study(study_name="other", storage=other.storage).trials) == 1
    assert not (other.folder / UNFINISHED).exists()


@pytest.mark.parametrize("broken", range(8))
def test_wherever_it_breaks_the_mirror_holds_the_last_complete_round(
    broken: int, search: MadeUp, local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrored(search.plan, local)
    found, before, old = read_manifest(local, "made-up"), trials_of(search.plan), files_of(search.plan)
    search.trials(1)
    put(search.plan, "trials/c/result.json", b"{1}")
    shutil.rmtree(search.plan.folder / "trials/a")
    new = (trials_of(search.plan), files_of(search.plan))
    broken_at(local, broken, monkeypatch)
    missing = mirrored(search.plan, local, found, idle=0.1)
    monkeypatch.undo()
    empty = moved(search.plan, tmp_path / "second")
    restore(empty, local, silent)
    for files in (old, new[1]):
        files.pop("trials/b/checkpoint-00000016/student.safetensors", None)
    assert (trials_of(empty), files_of(empty)) in ((before, old), new)
    if missing is None:
        assert (trials_of(empty), files_of(empty)) == new


def broken_at(store: Store, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the call number ``count`` on that changes the store, each leaves half a file and fails."""
    left = [count]

    def breaking(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(name: Any, content: Any = b"") -> Any:
            left[0] -= 1
            if left[0] >= 0:
                return method(name, content) if content else method(name)
            if isinstance(name, str):
                whole = content.read_bytes() if isinstance(content, Path) else content
                put_raw(store, f"{name}.part", whole[: len(whole) // 2])
            raise ConnectionError("cut off")

        return call

    for name in ("write", "upload", "remove"):
        monkeypatch.setattr(store, name, breaking(getattr(store, name)))


def put_raw(store: Store, name: str, content: bytes) -> None:
    path = Path(store.url.removeprefix("file://")) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_a_torn_object_is_not_taken_for_a_whole_one(
    search: MadeUp, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mirrored(search.plan, store)
    manifest = read_manifest(store, "made-up")
    assert manifest is not None
    assert manifest.database is not None
    name = "made-up/trials/a/student/model.safetensors"
    store.write(f"{OBJECTS}/{manifest.files[name].sha256}", bytes(LARGE - 1))
    empty = moved(search.plan, tmp_path / "second")
    with caplog.at_level(logging.WARNING):
        restore(empty, store, silent)
    assert f"{name} is missing or damaged" in caplog.text
    assert not (empty.output / name).exists()
    assert (empty.folder / "trials/a/result.json").exists()

    store.write(f"{OBJECTS}/{manifest.database.sha256}", b"torn")
    with pytest.raises(InputError, match="copy of the study 'made-up' is missing or damaged"):
        restore(moved(search.plan, tmp_path / "third"), store, silent)
    assert mirrored(search.plan, store, manifest) is None  # whose sizes are wrong are sent again
    fourth = moved(search.plan, tmp_path / "fourth")
    restore(fourth, store, silent)
    assert trials_of(fourth) == trials_of(search.plan)
    assert (fourth.output / name).stat().st_size == LARGE


def test_what_is_no_longer_needed_is_removed(search: MadeUp, store: Store) -> None:
    mirrored(search.plan, store)
    found = read_manifest(store, "made-up")
    shutil.rmtree(search.plan.folder / "trials/a")
    mirrored(search.plan, store, found)
    manifest = read_manifest(store, "made-up")
    assert manifest is not None
    assert set(store.sizes(OBJECTS)) == manifest.objects
    assert len(manifest.objects) == 2


def test_a_study_that_is_ahead_of_its_mirror_goes_on(search: MadeUp, local: Store) -> None:
    mirrored(search.plan, local)
    search.trials(1)
    before = trials_of(search.plan)
    restore(search.plan, local, silent)
    assert trials_of(search.plan) == before


def test_an_older_study_is_never_overwritten_nor_overwrites(search: MadeUp, local: Store, tmp_path: Path) -> None:
    mirrored(search.plan, local)
    old = moved(search.plan, tmp_path / "second")
    restore(old, local, silent)
    search.trials(2)
    mirrored(search.plan, local, read_manifest(local, "made-up"))
    before = trials_of(old)
    with pytest.raises(InputError, match=r"here it has 2 ended trials and 0 ended finals, its mirror .* has 4 ended"):
        restore(old, local, silent)
    assert trials_of(old) == before


def test_another_study_of_the_same_name_is_refused(search: MadeUp, local: Store, tmp_path: Path) -> None:
    mirrored(search.plan, local)
    other = MadeUp(Path(search.plan.settings.model), tmp_path / "second")
    other.trials(4)
    with pytest.raises(InputError, match="holds another study of the name 'made-up'"):
        restore(other.plan, local, silent)


def test_only_missing_files_are_written(search: MadeUp, local: Store) -> None:
    mirrored(search.plan, local)
    put(search.plan, "trials/a/result.json", b"mine")
    (search.plan.folder / "trials/a/student/model.safetensors").unlink()
    shutil.rmtree(search.plan.folder / "trials/b")
    put(search.plan, "trials/b/checkpoint-00000064/student.safetensors", b"newest")
    restore(search.plan, local, silent)
    files = files_of(search.plan)
    assert files["trials/a/result.json"] == b"mine"
    assert len(files["trials/a/student/model.safetensors"]) == LARGE
    assert [one for one in files if one.startswith("trials/b")] == ["trials/b/checkpoint-00000064/student.safetensors"]


@pytest.mark.parametrize("name", ["../x", "/etc/x", "made-up/../../x", "studies.db", "other/x", "cache/targets/x"])
def test_a_manifest_names_no_file_outside_its_study(name: str, search: MadeUp, local: Store, tmp_path: Path) -> None:
    mirrored(search.plan, local)
    content = json.loads(local.read(MANIFEST) or b"")
    content["files"][name] = next(iter(content["files"].values()))
    local.write(MANIFEST, json.dumps(content).encode())
    with pytest.raises(InputError, match=r"its manifest\.json cannot be used"):
        restore(moved(search.plan, tmp_path / "second"), local, silent)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"format": 0}', b'{"format": 1}', b"\xff"])
def test_what_is_no_manifest_is_refused_in_one_line(content: bytes, search: MadeUp, local: Store) -> None:
    local.write(MANIFEST, content)
    with pytest.raises(InputError, match=r"its manifest\.json cannot be used"):
        restore(search.plan, local, silent)


def test_a_second_search_takes_the_mirror_over_and_the_first_notices(
    search: MadeUp, local: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = MirrorWriter(search.plan, local, None, None)
    wait_for(lambda: read_manifest(local, "made-up") is not None)
    second = moved(search.plan, tmp_path / "second")
    found = restore(second, local, silent)
    put(second, "trials/c/result.json", b"{}")
    assert mirrored(second, local, found) is None
    taken = local.read(MANIFEST)
    search.trials(1)
    with caplog.at_level(logging.WARNING):
        missing = first.close(20.0)
    assert missing is not None
    assert "writes it now and has 2 ended trials" in missing
    assert local.read(MANIFEST) == taken


def wait_for(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_a_server_that_is_away_is_one_warning_and_everything_arrives(
    search: MadeUp, server: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(f"s3://{BUCKET}/{uuid.uuid4().hex}")
    writer = MirrorWriter(search.plan, store, None, None)
    wait_for(lambda: store.read(MANIFEST) is not None)
    server.stop()
    try:
        with caplog.at_level(logging.WARNING):
            search.trials(1)
            writer.wake()
            wait_for(lambda: writer.problem is not None)
    finally:
        server.start()
    assert writer.close(30.0) is None
    assert len(caplog.records) == 1
    assert "the search goes on, and it is tried again" in caplog.text
    manifest = read_manifest(store, "made-up")
    assert manifest is not None
    assert manifest.standing == Standing(3, 0)


def test_what_is_missing_in_the_end_is_one_line(search: MadeUp, server: ObjectStore) -> None:
    store = Store(f"s3://{BUCKET}/{uuid.uuid4().hex}")
    server.stop()
    try:
        missing = mirrored(search.plan, store, idle=8.0)
    finally:
        server.start()
    assert missing is not None
    assert missing.startswith("4 files of 3.")  # two small ones of the trials, the student and the study
    assert missing.count("\n") == 0
    assert "EndpointConnectionError" in missing


def test_held_are_finished_files_alone(search: MadeUp, tmp_path: Path) -> None:
    for name in (
        ".x.1.tmp/f",
        "tune/f",
        "outbox/f",
        "driver.lock",
        "driver.json",
        "x.lease",
        ".x.1.tmp.lock",
        "trials/a/.s.tmp/f",
    ):
        put(search.plan, name, b"x")
    put(search.plan, "report/outbox/f", b"x")
    held = hold(search.plan, None, tmp_path / "held")
    own = {name.removeprefix("made-up/") for name in held}
    assert own == {
        "trials/a/student/model.safetensors",
        "trials/a/result.json",
        "trials/b/checkpoint-00000032/student.safetensors",
        "report/outbox/f",
    }
    shutil.rmtree(search.plan.folder / "trials")
    assert len(held["made-up/trials/a/student/model.safetensors"].read_bytes()) == LARGE


def test_a_checkpoint_is_superseded_by_a_newer_one_and_by_the_result(tmp_path: Path) -> None:
    (tmp_path / "t" / "checkpoint-2").mkdir(parents=True)
    assert superseded(tmp_path / "t" / "checkpoint-1" / "f")
    assert not superseded(tmp_path / "t" / "checkpoint-3" / "f")
    (tmp_path / "t" / "result.json").touch()
    assert superseded(tmp_path / "t" / "checkpoint-3" / "f")
    assert not superseded(tmp_path / "t" / "student" / "f")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://no-such-bucket/x", "FileNotFoundError"),
        ("mirrors", "no URL"),
        ("zz://a/b", "Protocol not known: zz"),
        ("s3://me:secret@bucket/x", "holds a password"),
        ("file:///proc/nowhere", "cannot be written"),
    ],
)
def test_a_mirror_that_cannot_be_used_is_one_line_and_exit_2(
    url: str,
    said: str,
    server: ObjectStore,
    tiny_teacher_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--model", str(tiny_teacher_folder), "--budget", "60%", "--tolerance", "0.2", "--corpus", "stdlib"]
    assert main([*flags, "--output", str(tmp_path / "out"), "--mirror", url]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --mirror")
    assert error.count("\n") == 1
    assert said in error
    assert "secret" not in error
