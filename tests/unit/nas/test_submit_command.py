"""What `--submit` sends to a cluster, and what it refuses to send."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from nas import submit
from nas.planning.settings import build_parser, parse_arguments, submit_address
from nas.search import main
from nas.submit import refuse_folder_of_the_job, submit_search, without_submit
from search_spaces.errors import InputError

ADDRESS = "http://head:8265"
SUBMIT = ("--submit", ADDRESS)
DEFAULT_SPACE = Path(submit.__file__).parents[1] / "search_spaces" / "presets" / "default.yaml"


class Recorder:
    """Plays Ray's client: keeps the job that it gets, with the files in its folder."""

    def submit_job(self, entrypoint: str, runtime_env: dict[str, Any], submission_id: str) -> None:
        self.command = shlex.split(entrypoint)
        self.variables = runtime_env["env_vars"]
        folder = Path(runtime_env["working_dir"])
        self.files = {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}
        raise KeyboardInterrupt

    def stop_job(self, name: str) -> None:
        raise RuntimeError(f"Job {name} does not exist")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(submit, "connect", lambda address: recorder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return recorder


def sent(*arguments: str) -> int:
    given = ["--budget", "60%", *arguments]
    return submit_search(ADDRESS, given, parse_arguments(given)[0], as_json=False)


def test_command_is_the_same_without_submit(cluster: Recorder) -> None:
    assert sent("--model", "mini", *SUBMIT, "--study", "a_b", "--corpus", "stdlib") == 130
    program = ["python", "-m", "nas.search", "--budget", "60%"]
    assert cluster.command == [*program, "--model", "mini", "--study", "a_b", "--corpus", "stdlib"]


@pytest.mark.parametrize(
    "arguments",
    [["--submit", "URL", "--seed", "1"], ["--submit=URL", "--seed", "1"], ["--seed", "1", "--submit", "URL"]],
)
def test_submit_is_left_out_wherever_it_stands(arguments: list[str]) -> None:
    assert without_submit(arguments) == ["--seed", "1"]
    assert submit_address(["--budget", "60%", *arguments]) == "URL"


def test_settings_of_the_environment_go_along(cluster: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_TRIALS", "5")
    sent(*SUBMIT)
    assert cluster.command[-2:] == ["--trials", "5"]


def test_code_goes_along_and_nothing_else(cluster: Recorder) -> None:
    sent(*SUBMIT)
    assert {Path(one).parts[0] for one in cluster.files} == {"nas", "trials", "search_spaces"}
    assert "nas/report/html/page.css" in cluster.files
    assert not [one for one in cluster.files if "__pycache__" in one]


@pytest.mark.parametrize("form", [["--config", "mine/settings.yaml"], ["--config=mine/settings.yaml"]])
def test_yaml_files_go_along(
    cluster: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "settings.yaml").write_text("space: ./space.yaml")
    shutil.copyfile(DEFAULT_SPACE, tmp_path / "space.yaml")
    sent(*SUBMIT, *form)
    assert cluster.files["mine/settings.yaml"] == b"space: ./space.yaml"
    assert cluster.files["space.yaml"] == DEFAULT_SPACE.read_bytes()
    assert cluster.command[-len(form) :] == form


def test_yaml_file_of_another_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "settings.yaml").write_text("seed: 1")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match="only files of this folder go with a job"):
        sent(*SUBMIT, "--config", "../settings.yaml")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--output", "outputs"),
        ("--storage", "sqlite:///here.db"),
        ("--model", "./llama"),
        ("--model", "llama"),
        ("--corpus", "~/text"),
        ("--corpus", "web=org/name:0.5,mine=text.txt:0.5"),
        ("--corpus", "text.txt"),
        ("--validation", "mine=./other"),
        ("--test", "wikitext-2,mine=text.txt"),
        ("--test-tasks", "mine=./mine.yaml"),
        ("--address", "head:6379"),
    ],
)
def test_what_the_cluster_does_not_have_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama").mkdir()
    (tmp_path / "text.txt").write_text("text")
    with pytest.raises(InputError, match=flag):
        sent(*SUBMIT, flag, value)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--output", "/mnt/nas/outputs"),
        ("--storage", "sqlite:////mnt/nas/studies.db"),
        ("--storage", "postgresql://user@host/studies"),
        ("--model", "openai-community/gpt2"),
        ("--corpus", "web=org/name:0.5,mine=/mnt/nas/text:0.5"),
        ("--test", "wikitext-2,mine=/mnt/nas/text.txt"),
    ],
)
def test_what_the_cluster_may_have_is_sent(cluster: Recorder, flag: str, value: str) -> None:
    sent(*SUBMIT, flag, value)
    assert cluster.command[-2:] == [flag, value]


def test_password_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="NAS_STORAGE") as caught:
        sent(*SUBMIT, "--storage", "postgresql://user:hidden@host/studies")
    assert "hidden" not in str(caught.value)
    monkeypatch.setenv("NAS_STORAGE", "postgresql://user:hidden@host/studies")
    with pytest.raises(InputError, match=r"NAS_STORAGE: holds a password") as caught:
        sent(*SUBMIT)
    assert "hidden" not in str(caught.value)


def test_password_that_a_flag_replaces_is_no_hindrance(cluster: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_STORAGE", "postgresql://user:hidden@host/studies")
    sent(*SUBMIT, "--storage", "postgresql://user@host/studies")
    assert "hidden" not in " ".join(cluster.command)
    assert cluster.command[-2:] == ["--storage", "postgresql://user@host/studies"]


def test_command_has_no_stars(cluster: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "openai-community")
    with pytest.raises(InputError, match="holds a password"):
        sent(*SUBMIT, "--model", "openai-community/gpt2")


def test_address_of_mlflow_goes_along(cluster: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    monkeypatch.setenv("HF_TOKEN", "hidden")
    sent(*SUBMIT)
    assert cluster.variables == {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}


@pytest.mark.parametrize("server", ["sqlite:///mlflow.db", "http://user:hidden@host:5000"])
def test_address_of_mlflow_that_cannot_go_along_is_refused(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI") as caught:
        sent(*SUBMIT)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("more", [["--json"], ["--address", "auto"], ["--output", "here"], ["--submit", "head:8265"]])
def test_command_ends_with_one_line(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--budget", "60%", *SUBMIT, *more]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1


def test_folder_of_a_job_is_no_place_for_results(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_folder_of_the_job("outputs")
    monkeypatch.setenv(submit.OF_A_JOB, json.dumps({"runtime_env": {"working_dir": "gcs://package.zip"}}))
    refuse_folder_of_the_job("/mnt/nas/outputs")
    with pytest.raises(InputError, match="set NAS_OUTPUT on the cluster"):
        refuse_folder_of_the_job("outputs")


def test_sigterm_acts_like_ctrl_c() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), submit._terminated_as_interrupted():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_help_names_the_flag() -> None:
    assert "--submit URL" in build_parser().format_help()
