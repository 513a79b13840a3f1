from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from tracking_reference import RUNGS, STARTED, best_version, contents, final, record, search_events

from nas.tracking.messages import (
    Artifacts,
    Event,
    FinalChanged,
    ModelExported,
    RunJudged,
    SearchFinished,
    SearchStarted,
    TrialChanged,
    from_dict,
    to_dict,
)
from nas.tracking.mlflow_delivery import MlflowDelivery
from nas.tracking.outbox import Outbox, RejectedError
from nas.tracking.tracker import Tracker, code_version, tracking_uri, ui_lines
from search_spaces.errors import InputError

LONG = 300.0  # seconds; no test waits for it


class Store:
    """One SQLite store for all tests of this file, and an experiment of its own for each."""

    def __init__(self, folder: Path, experiment: str) -> None:
        self.uri, self.folder, self.experiment = f"sqlite:///{folder / 'mlflow.db'}", folder, experiment
        self.client = MlflowClient(self.uri, self.uri)

    def tracker(self, outbox: Path) -> Tracker:
        return Tracker(self.uri, self.experiment, outbox, self.folder / "artifacts" / self.experiment)

    def delivery(self) -> MlflowDelivery:
        return MlflowDelivery(self.uri, self.experiment, self.folder / "artifacts" / self.experiment)

    def contents(self, study: str) -> dict[str, Any]:
        return contents(self.client, study, self.experiment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture
def store(folder: Path, request: pytest.FixtureRequest) -> Store:
    store = Store(folder, request.node.name)
    for model in store.client.search_registered_models():
        store.client.delete_registered_model(model.name)
    return store


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Any]:
    """What a store holds of the search "s" when nothing goes wrong."""
    store = Store(folder, "expected")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        outbox = Outbox(folder / "expected")
        deliver_all(store.delivery(), outbox, search_events("s", folder / "files"))
    return store.contents("s")


def deliver_all(delivery: MlflowDelivery, outbox: Outbox, events: list[Event]) -> None:
    for event in events:
        name = outbox.add(event)
        delivery.deliver(event, outbox.files(name))
        outbox.remove(name)


def test_what_is_put_while_a_look_finds_nothing_is_delivered_before_the_end(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, looked, go_on = Tracker._deliver_waiting, threading.Event(), threading.Event()

    def slow_look(tracker: Tracker) -> None:
        look(tracker)
        looked.set()
        assert go_on.wait(LONG)

    monkeypatch.setattr(Tracker, "_deliver_waiting", slow_look)
    tracker = store.tracker(tmp_path / "outbox")
    assert looked.wait(LONG)  # and found nothing
    for event in search_events("late", tmp_path):
        tracker.put(event)
    threading.Thread(target=lambda: (tracker._closing.wait(LONG), go_on.set()), daemon=True).start()
    assert tracker.close(LONG) == 0


def test_a_search_is_in_the_store_as_it_was(expected: dict[str, Any]) -> None:
    parent, *trials, winner = sorted(expected["runs"], key=lambda one: one["name"].removeprefix("★ "))
    trials.append(winner)
    assert (parent["name"], parent["status"]) == ("s shown", "FINISHED")
    assert parent["times"] == (round(STARTED * 1000), round(STARTED * 1000) + 500_000)
    assert parent["params"] == {"budget": "60%", "trials": "4"}
    assert (parent["tags"]["teacher"], parent["tags"]["winner"], parent["tags"]["state"]) == ("tiny", "d6", "COMPLETE")
    assert (parent["tags"]["mlflow.note.content"], parent["datasets"]) == ("d6 wins", ["stdlib"])
    assert {one.split(":")[0].split("/")[0] for one in parent["files"]} == {"model", "report"}
    assert [one["status"] for one in trials] == ["FINISHED", "FINISHED", "FAILED", "FINISHED"]
    assert [one["tags"]["state"] for one in trials] == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE"]
    assert all(one["is_child"] for one in trials)
    last = record(3)
    assert trials[3]["name"] == f"★ trial-003 {last.architecture.key}"
    assert trials[3]["tags"]["role"] == "winner"
    assert ("test_ptb_ppl", 7.0, round(STARTED * 1000) + 230_000, 0) in trials[3]["metrics"]
    assert trials[3]["params"] == {key: str(value) for key, value in last.architecture.to_dict().items()}
    assert [(step, value) for key, value, _, step in trials[3]["metrics"] if key == "val_loss"] == sorted(
        last.curve, key=lambda point: point[1]
    )
    assert {step for key, _, _, step in trials[3]["metrics"] if key != "val_loss"} == {0}
    assert trials[2]["tags"]["reason"] == "NonFiniteLoss: nan"
    [(_, _, description, is_of_parent)] = expected["versions"]
    assert (description, is_of_parent, expected["best"]) == ("the winner", True, ["1"])


def test_the_view_of_a_study_lists_its_runs_alone_and_the_best_first(expected: dict[str, Any]) -> None:
    view = json.loads(expected["view"])
    assert view["searchFilter"] == "tags.`nas.study` = 's'"
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`val_loss`", True)
    runs = expected["runs"]
    known = {f"tags.`{key}`" for run in runs for key in run["tags"]}
    known |= {f"metrics.`{key}`" for run in runs for key, *_ in run["metrics"]}
    assert set(view["selectedColumns"]) <= known


class Cut:
    """A client whose calls fail, every one of them once: before it does its work, or after, when the answer is lost."""

    def __init__(self, client: MlflowClient, after: bool) -> None:
        self.client, self.after, self.seen, self.cut = client, after, set[str](), set[str]()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            signature = f"{name}{arguments}{named}"
            first = signature not in self.seen
            self.seen.add(signature)
            result = None if first and not self.after else getattr(self.client, name)(*arguments, **named)
            if first:
                self.cut.add(name)
                raise MlflowException("the connection broke")
            return result

        return call


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_cut_at_every_call_and_delivered_again_makes_the_same_store(
    store: Store, expected: dict[str, Any], after: bool, tmp_path: Path
) -> None:
    """Each attempt is a fresh delivery, as in a new process: nothing is remembered from the attempt that was cut."""
    outbox, client, delivery = Outbox(tmp_path), Cut(store.client, after), store.delivery()
    for event in search_events("s", tmp_path / "files"):
        name = outbox.add(event)
        for attempt in range(50):
            delivery._runs.clear()
            delivery.client = client  # type: ignore[assignment]
            try:
                delivery.deliver(event, outbox.files(name))
                break
            except MlflowException:
                assert attempt < 40, "every attempt makes calls that none made before"
    creating = {"create_run", "create_registered_model", "create_model_version", "set_registered_model_alias"}
    assert client.cut >= creating | {"search_runs", "log_batch", "log_artifacts", "update_run", "set_terminated"}
    assert store.contents("s") == expected


def test_a_run_made_by_a_request_that_was_given_up_is_removed(
    store: Store, expected: dict[str, Any], tmp_path: Path
) -> None:
    """A slow server may carry out a request after the client has given up and asked again."""
    outbox, events = Outbox(tmp_path), search_events("s", tmp_path / "files")
    deliver_all(store.delivery(), outbox, events[:-1])
    experiment = store.client.get_experiment_by_name(store.experiment).experiment_id
    for place in ("parent", "3", "3"):
        store.client.create_run(experiment, tags={"nas.study": "s", "nas.trial": place})
    deliver_all(store.delivery(), outbox, events[-1:])
    assert store.contents("s")["runs"] == expected["runs"]


def test_a_continued_study_continues_its_run(store: Store, tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    first = [
        SearchStarted("s", {"trials": 4}, {}),
        TrialChanged("s", record(0)),
        TrialChanged("s", record(1, "RUNNING", 2)),
    ]
    deliver_all(store.delivery(), outbox, first)
    again = store.delivery()
    deliver_all(again, outbox, [SearchStarted("s", {"trials": 9, "seed": 0}, {})])
    parent, done, left = store.contents("s")["runs"]
    assert (parent["status"], done["status"], left["status"]) == ("RUNNING", "FINISHED", "KILLED")
    assert left["tags"]["state"] == "INTERRUPTED"
    assert (parent["params"], parent["tags"]["changed.trials"]) == ({"trials": "4", "seed": "0"}, "9")
    deliver_all(again, outbox, [SearchStarted("s", {"trials": 4}, {})])
    assert store.contents("s")["runs"][0]["tags"]["changed.trials"] == "4"
    deliver_all(again, outbox, [TrialChanged("s", record(2)), SearchFinished("s")])
    runs = store.contents("s")["runs"]
    assert [one["status"] for one in runs] == ["FINISHED", "FINISHED", "KILLED", "FINISHED"]


def test_finals_have_runs_of_their_own_which_go_on(store: Store, tmp_path: Path) -> None:
    outbox, first = Outbox(tmp_path), [SearchStarted("s", {}, {}, started=STARTED), TrialChanged("s", record(0))]
    deliver_all(store.delivery(), outbox, [*first, FinalChanged("s", final(0, "RUNNING"))])
    deliver_all(store.delivery(), outbox, [SearchStarted("s", {}, {}, started=STARTED)])  # the first run was cut off
    (left,) = (one for one in store.contents("s")["runs"] if one["name"].startswith("final"))
    assert (left["status"], left["tags"]["state"]) == ("KILLED", "INTERRUPTED")
    assert "the same command continues it" in left["tags"]["reason"]
    again = store.delivery()
    deliver_all(again, outbox, [FinalChanged("s", final(0, "RUNNING"))])
    assert [one["status"] for one in store.contents("s")["runs"]] == ["RUNNING", "RUNNING", "FINISHED"]
    ended = [FinalChanged("s", final(0)), FinalChanged("s", final(1, "FAIL")), FinalChanged("s", final(0, tokens=99))]
    deliver_all(again, outbox, [*ended, SearchFinished("s", {"lead": 0.5}, {"winner_vs_runner_up": "clear"})])
    done, longer, failed, parent, trial = store.contents("s")["runs"]
    assert parent["tags"]["winner_vs_runner_up"] == "clear"
    assert (trial["tags"]["stage"], trial["tags"]["nas.trial"]) == ("trial", "0")
    assert {one["tags"]["stage"] for one in (done, longer, failed)} == {"final"}
    assert all(one["is_child"] for one in (done, longer, failed, trial))
    assert [one["status"] for one in (done, longer, failed)] == ["FINISHED", "FINISHED", "FAILED"]
    assert (done["tags"]["state"], done["tags"]["reason"]) == ("COMPLETE", "")
    losses = [(step, value) for key, value, _, step in done["metrics"] if key == "val_loss"]
    assert sorted(losses) == sorted(final(0).curve)
    assert [value for key, value, *_ in done["metrics"] if key == "tokens"] == [2 * RUNGS[-1]]
    assert failed["tags"]["reason"] == "NonFiniteLoss: nan"


def test_the_mark_of_the_winner_moves_to_another(store: Store, tmp_path: Path) -> None:
    outbox, delivery = Outbox(tmp_path), store.delivery()
    trials = [TrialChanged("s", record(0)), TrialChanged("s", record(1))]
    for winner in (0, 1):
        judged = RunJudged("s", str(winner), {}, {"role": "winner"}, True, STARTED)
        deliver_all(delivery, outbox, [SearchStarted("s", {}, {}, "shown"), *trials, judged, SearchFinished("s")])
        runs = [one for one in store.contents("s")["runs"] if one["is_child"]]
        marked = [one["name"].startswith("★ ") for one in sorted(runs, key=lambda one: one["tags"]["nas.trial"])]
        assert marked == [place == winner for place in (0, 1)]
        assert [one["tags"].get("role") for one in runs].count("winner") == 1


def test_versions_follow_the_weights_and_keep_their_files(store: Store, tmp_path: Path) -> None:
    outbox, delivery, model = Outbox(tmp_path / "outbox"), store.delivery(), tmp_path / "best"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    event = ModelExported("s", "hub/name:one", str(model))
    for weights in (b"first", b"first", b"second", b"first"):
        (model / "model.safetensors").unlink(missing_ok=True)
        (model / "model.safetensors").write_bytes(weights)
        deliver_all(delivery, outbox, [event])
    versions = store.client.search_model_versions("name = 'hub-name-one'")
    assert sorted(str(one.version) for one in versions) == ["1", "2"]
    assert best_version(store.client, "hub-name-one") == "1"
    mlflow.set_tracking_uri(store.uri)
    for uri, weights in (("models:/hub-name-one@best", b"first"), ("models:/hub-name-one/2", b"second")):
        loaded = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path / weights.decode())))
        assert (loaded / "model.safetensors").read_bytes() == weights


def test_files_are_delivered_as_they_were(store: Store, tmp_path: Path) -> None:
    table, model = tmp_path / "table.md", tmp_path / "best"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"old")
    table.write_text("old")
    outbox = Outbox(tmp_path / "outbox")
    for event in (Artifacts("s", (str(table),)), ModelExported("s", "m", str(model))):
        outbox.add(event)
    table.write_text("newer")
    (model / "model.safetensors").unlink()
    model.rmdir()
    assert [path.read_text() for name in outbox.waiting() for path in sorted(outbox.files(name).iterdir())] == [
        "old"
    ] * 2


def test_what_is_refused_for_good_does_not_hold_up_the_rest(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = store.tracker(tmp_path)
    tracker.put(SearchStarted("s", {}, {}))
    tracker.put(SearchFinished("s", {"no/such?name": 1.0}))
    (tmp_path / f"{9:020d}-torn.json").write_text('{"event": "Trial')
    tracker.put(TrialChanged("s", record(0)))
    assert tracker.close(LONG) == 0
    assert tracker.rejected == 2
    assert [one["status"] for one in store.contents("s")["runs"]] == ["RUNNING", "FINISHED"]
    reasons = " ".join(path.read_text() for path in (tmp_path / "rejected").glob("*.error.txt"))
    assert "no/such?name" in reasons
    assert "damaged" in reasons
    assert caplog.text.count("MLflow refused") == 2


def test_two_searches_share_an_outbox(store: Store, expected: dict[str, Any], tmp_path: Path) -> None:
    trackers = store.tracker(tmp_path / "o"), store.tracker(tmp_path / "o")
    for place, event in enumerate(search_events("s", tmp_path / "files")):
        trackers[place % 2].put(event)
    assert [tracker.close(LONG) for tracker in trackers] == [0, 0]
    assert store.contents("s") == expected


def test_a_long_value_is_cut_not_refused(store: Store, tmp_path: Path) -> None:
    event = SearchStarted("s", {"axes": "9" * 20_000}, {"command": "x" * 20_000})
    deliver_all(store.delivery(), Outbox(tmp_path), [event, event])
    parent = store.contents("s")["runs"][0]
    assert parent["params"]["axes"].startswith("999")
    assert "changed.axes" not in parent["tags"]


@pytest.mark.parametrize("loss", [1e6, float("inf")])
def test_an_absurd_loss_is_told_as_far_as_a_chart_can_show_it(store: Store, loss: float, tmp_path: Path) -> None:
    absurd = record(0, val_loss=loss, curve=((0, float("nan")), (1024, loss)))
    deliver_all(store.delivery(), Outbox(tmp_path), [SearchStarted("s", {}, {}), TrialChanged("s", absurd)])
    trial = store.contents("s")["runs"][1]
    assert trial["status"] == "FINISHED"
    assert [value for key, value, *_ in trial["metrics"] if key == "val_loss"] == [loss] * (loss < float("inf"))


def test_a_later_snapshot_of_a_trial_replaces_those_that_wait(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    for state, rungs in (("RUNNING", 0), ("RUNNING", 2), ("COMPLETE", 4)):
        for number in (0, 1):
            outbox.add(TrialChanged("s", record(number, state, rungs)))
    for state in ("RUNNING", "COMPLETE"):
        for place in (0, 1):
            outbox.add(FinalChanged("s", final(place, state)))
    events = [outbox.read(name) for name in outbox.waiting()]
    assert events == [
        TrialChanged("s", record(0)),
        TrialChanged("s", record(1)),
        FinalChanged("s", final(0)),
        FinalChanged("s", final(1)),
    ]


def test_events_wait_in_the_order_they_were_put_in_whoever_put_them(tmp_path: Path) -> None:
    events: list[Event] = [SearchFinished(f"s{number}") for number in range(40)]
    for event in events:
        Outbox(tmp_path).add(event)
    outbox = Outbox(tmp_path)
    assert [outbox.read(name) for name in outbox.waiting()] == events


def test_every_event_survives_json(tmp_path: Path) -> None:
    for event in [*search_events("s", tmp_path), FinalChanged("s", final(0)), FinalChanged("s", final(1, "FAIL"))]:
        assert from_dict(json.loads(json.dumps(to_dict(event)))) == event


def test_a_damaged_event_is_told_from_one_that_is_gone(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    name = outbox.add(SearchFinished("s"))
    (tmp_path / f"{name}.json").write_text('{"event": "Unheard", "value": {}}')
    with pytest.raises(RejectedError, match="damaged"):
        outbox.read(name)
    outbox.remove(name)
    assert outbox.read(name) is None


def test_files_of_nobody_are_swept_and_those_of_an_event_stay(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    (tmp_path / "table.md").write_text("kept")
    name = outbox.add(Artifacts("s", (str(tmp_path / "table.md"),)))
    torn = outbox.files("00000000000000000001-Artifacts-1")
    torn.mkdir()
    for old in (torn, outbox.files(name)):
        os.utime(old, (0, 0))
    Outbox(tmp_path / "outbox")
    assert (torn.exists(), outbox.files(name).exists()) == (False, True)


@pytest.fixture
def unreachable(tmp_path: Path) -> Iterator[Tracker]:
    tracker = Tracker("http://127.0.0.1:9", "nas", tmp_path / "outbox")
    yield tracker
    tracker.close(0)


def test_a_missing_file_is_no_reason_to_stop(unreachable: Tracker, caplog: pytest.LogCaptureFixture) -> None:
    unreachable.put(Artifacts("s", ("/nowhere/table.md",)))
    assert unreachable.lost == 1
    assert "not tracked" in caplog.text
    assert unreachable.close(0) == 0


@pytest.mark.parametrize("uri", ["mlruns", "/data/mlruns", "file:///data/mlruns"])
def test_a_plain_folder_is_refused_with_the_way_out(uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sqlite:////folder/mlflow\.db"):
        Tracker(uri, "nas", tmp_path)


def test_the_environment_chooses_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri(tmp_path) == "http://tracking:5000"


def test_the_lines_that_open_the_pages_show_no_password() -> None:
    runs = "/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=s"
    assert ui_lines("http://me:secret@host:5000/x/", "7", "s") == (f"http://host:5000/x{runs}",)
    assert ui_lines("http://host:5000", None, "s") == ("http://host:5000",)
    assert "secret" not in " ".join(ui_lines("postgresql://me:secret@host/db", "7", "s"))
    command, address = ui_lines("sqlite:////a b/mlflow.db", "7", "s")
    assert command.endswith("mlflow ui --backend-store-uri 'sqlite:////a b/mlflow.db'")
    assert address == f"http://127.0.0.1:5000{runs}"


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os; from nas.tracking.mlflow_environment import patient_uploads, set_defaults; set_defaults()\n"
        "with patient_uploads(): print(os.environ['MLFLOW_HTTP_REQUEST_TIMEOUT'])\n"
        "print(os.environ['MLFLOW_HTTP_REQUEST_TIMEOUT'], os.environ['MLFLOW_HTTP_REQUEST_MAX_RETRIES'])"
    )
    command = [sys.executable, "-c", code]
    bare = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    ours = subprocess.run(command, env=bare, capture_output=True, text=True, check=True).stdout.split()
    theirs = subprocess.run(
        command, env={**bare, "MLFLOW_HTTP_REQUEST_TIMEOUT": "77"}, capture_output=True, text=True, check=True
    ).stdout.split()
    assert (ours, theirs) == (["300", "10", "0"], ["77", "77", "0"])


def test_a_search_does_not_wait_for_the_import_of_mlflow() -> None:
    code = "import nas.tracking.tracker, sys; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_code_version_names_the_package() -> None:
    tags = code_version()
    assert tags["code"].startswith("llm-nas ")
    commit = tags.get("mlflow.source.git.commit")
    assert commit is None or commit[:12] in tags["code"]
