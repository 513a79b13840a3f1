"""The real command line, in a subprocess, on a teacher of 75,408 parameters: real Ray, Optuna and MLflow."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command import TRIALS, run, small_settings
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM

from nas.evaluate import main as evaluate
from nas.report.__main__ import main as make_page
from nas.search import main


@pytest.fixture(scope="module")
def small(tiny_teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The settings of a search that takes seconds."""
    exact = ["--export-dtype", "float32"]  # so that the export reads text as the trained student does
    return [*small_settings(tiny_teacher_folder, tmp_path_factory.mktemp("text")), *exact]


@pytest.fixture(scope="module")
def first(small: list[object], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """The output folder, the result document and the log of one search."""
    output = tmp_path_factory.mktemp("first")
    done = run(*small, "--budget", "60%", "--output", output, "--json")
    assert done.returncode == 0, done.stderr
    return output, json.loads(done.stdout), done.stderr


def what_was_found(result: dict[str, Any]) -> dict[str, Any]:
    best = {name: result["best"][name] for name in ("architecture", "params", "val_loss", "stock")}
    same = ("trials", "study", "teacher", "final", "winner_vs_runner_up", "rank_agreement")
    return {"best": best, **{name: result[name] for name in same}}


def test_result_document(first: tuple[Path, dict[str, Any], str]) -> None:
    output, result, log = first
    assert result["budget"]["minimum"] <= result["best"]["params"] <= result["budget"]["maximum"]
    assert result["trials"]["FAIL"] == result["trials"]["RUNNING"] == 0
    assert result["trials"]["COMPLETE"] >= 1
    assert sum(result["trials"].values()) == TRIALS
    assert result["screened"] > TRIALS
    assert result["rank_agreement"][0]["name"] == "screen"
    assert f"{result['screened']}/{result['screened']} screened" in log
    assert result["best"]["path"] == str(output / result["study"] / "best")
    for line in (
        "importance scores computed",
        "mlflow ui --backend-store-uri",
        "/#/experiments/1/runs?",
        "from_pretrained(",
    ):
        assert line in log


def test_it_says_what_is_being_prepared_as_it_begins(first: tuple[Path, dict[str, Any], str]) -> None:
    _, _, log = first
    steps = (
        "tokenising",
        "ranking the 4 heads of each layer",
        "ranking",
        "the teacher's targets",
        "the teacher's streams",
        "the teacher's loss",
    )
    places = [re.search(rf"^\[\d+:\d\d\] .*{step}", log, re.MULTILINE).start() for step in steps]
    assert places == sorted(places)
    assert places[-1] < log.index("importance scores computed")


def test_finalists_and_baselines_are_compared_after_as_many_tokens(first: tuple[Path, dict[str, Any], str]) -> None:
    output, result, log = first
    teacher, winner, *others = result["final"]
    assert (teacher["roles"], winner["roles"][0]) == (["teacher"], "winner")
    assert {row["tokens"] for row in (winner, *others)} == {2 * 2048}
    assert (winner["val_loss"], winner["params"]) == (result["best"]["val_loss"], result["best"]["params"])
    named = {role for row in result["final"] for role in row["roles"]}
    assert {"runner-up", "random"} <= named
    assert any("width only" in role for role in named)
    (runner_up,) = (row for row in others if "runner-up" in row["roles"])
    versus = result["winner_vs_runner_up"]
    assert {name: versus[name] for name in ("mean", "low", "high")} == {
        name: runner_up["vs_winner"][name] for name in ("mean", "low", "high")
    }
    assert versus["mean"] == pytest.approx(runner_up["val_loss"] - winner["val_loss"])
    assert (versus["verdict"] == "distinguishable") is (versus["low"] > 0)
    for row in result["final"]:
        assert set(row["val_losses"]) == {"corpus.txt", "other"}
        assert row["val_loss"] == pytest.approx(sum(row["val_losses"].values()) / 2)
    report = output / result["study"] / "report"
    text = (report / "results.md").read_text()
    assert all(row["architecture"] in text for row in (winner, *others))
    assert "How well did early rankings agree with late ones?" in text
    assert (report / "final.csv").exists()
    trials = list(csv.DictReader((report / "results.csv").open()))
    assert all(float(line["val_loss/other"]) > 0 for line in trials)
    for line in ("final comparison", "winner", "runner-up", "95 % interval"):
        assert line in log
    assert "and 2,048 more as a finalist" in (Path(result["best"]["path"]) / "README.md").read_text()


def test_what_is_lost_on_other_text_is_in_the_table_the_report_and_on_the_card(
    first: tuple[Path, dict[str, Any], str],
) -> None:
    output, result, log = first
    teacher, *students = result["final"]
    assert [one["architecture"] for one in result["above_teacher"]] == [row["architecture"] for row in students]
    for one, row in zip(result["above_teacher"], students, strict=True):
        own = row["val_losses"]["corpus.txt"] - teacher["val_losses"]["corpus.txt"]
        assert one["calibrated"] == pytest.approx(own, abs=1e-6)
        further = row["val_losses"]["other"] - teacher["val_losses"]["other"]
        assert one["other"]["other"] == pytest.approx(further, abs=1e-6)
        assert set(one["other"]) == {"other", "unseen", "python-docs"}
    own, others = result["above_teacher"][0]["calibrated"], result["above_teacher"][0]["other"]
    mean = sum(others.values()) / len(others)
    card = (Path(result["best"]["path"]) / "README.md").read_text()
    assert f"{own:+.3f} on the text it was calibrated on, {mean:+.3f} on other text (other " in card
    report = (output / result["study"] / "report" / "results.md").read_text()
    assert "## On other text" in report
    assert f"{own:+.4f} | {mean:+.4f} |" in report
    assert f"{mean:+.4f}" in log


def test_what_is_compared_is_read_on_test_text_as_the_evaluation_reads_it(
    small: list[object], first: tuple[Path, dict[str, Any], str], capsys: pytest.CaptureFixture[str]
) -> None:
    output, result, log = first
    read = result["final"]
    assert all("test" in row for row in read)
    assert f"evaluating {len(read)} models on unseen, lambada, python-docs" in log
    tests = str(small[small.index("--test") + 1])
    for row, model in ((read[0], str(small[1])), (read[1], result["best"]["path"])):
        assert evaluate([model, "--tasks", tests, "--json", "--trust-remote-code"]) == 0
        document = json.loads(capsys.readouterr().out)
        conventions = ("non-overlapping windows", "lambada_openai")
        kept = [{**one, "dtype": document["dtype"]} for one in document["readings"] if one["convention"] in conventions]
        read_alike = [one for one in row["test"] if one["task"] != "python-docs"]  # its whole text takes long here
        assert [{**one, "value": None} for one in read_alike] == [{**one, "value": None} for one in kept]
        values = [[one["value"] for one in found] for found in (read_alike, kept)]
        assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert "## On test text" in (output / result["study"] / "report" / "results.md").read_text()


def test_export_is_the_model_that_was_counted(first: tuple[Path, dict[str, Any], str]) -> None:
    _, result, _ = first
    best = result["best"]
    model = AutoModelForCausalLM.from_pretrained(best["path"], trust_remote_code=not best["stock"])
    assert sum(weight.numel() for weight in model.parameters()) == best["params"]


def test_every_trial_is_in_mlflow(first: tuple[Path, dict[str, Any], str]) -> None:
    output, result, _ = first
    client = MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'nas'")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (one for one in runs if "mlflow.parentRunId" not in one.data.tags)
    children = [one for one in runs if one.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    stages = Counter(one.data.tags["stage"] for one in children)
    assert stages == {"trial": TRIALS, "final": len(result["final"]) - 1}
    assert len(runs) == 1 + len(children)
    assert {one.info.status for one in children if one.data.tags["stage"] == "final"} == {"FINISHED"}
    assert "runner-up" in parent.data.tags["winner_vs_runner_up"]
    (winner,) = (one for one in children if one.info.run_name.startswith("★ "))
    assert "winner" in winner.data.tags["role"]
    ppl = result["final"][1]["test"][0]["value"]
    assert winner.data.metrics["test_unseen_ppl"] == pytest.approx(ppl)
    (second,) = (one for one in children if "runner-up" in one.data.tags.get("role", ""))
    assert second.data.metrics["minus_winner"] == pytest.approx(result["winner_vs_runner_up"]["mean"])
    finals = [one.data.metrics["val_loss/other"] for one in children if one.data.tags["stage"] == "final"]
    assert sorted(finals) == sorted(row["val_losses"]["other"] for row in result["final"][1:])
    assert parent.info.status == "FINISHED"
    assert {"rank_agreement_screen", "rank_agreement_final"} <= set(parent.data.tags)
    assert parent.data.metrics["val_loss"] == pytest.approx(result["best"]["val_loss"])
    assert parent.inputs.dataset_inputs
    files = {one.path for one in client.list_artifacts(parent.info.run_id, "report")}
    report = (
        "importance.png",
        "report.html",
        "final.png",
        "results.md",
        "losses.png",
        "final.csv",
        "rank_agreement.png",
        "screening.csv",
        "screening.png",
    )
    assert {f"report/{name}" for name in report} <= files
    assert client.get_model_version_by_alias(result["study"], "best").run_id == parent.info.run_id


def test_the_page_is_that_of_the_study_alone(first: tuple[Path, dict[str, Any], str], tmp_path: Path) -> None:
    output, result, _ = first
    written = (output / result["study"] / "report" / "report.html").read_text()
    assert make_page([result["study"], "--output", str(output), "--to", str(tmp_path / "again.html")]) == 0
    stamp = re.compile(r'written [\d-]+ [\d:]+ UTC|"written":[\d.]+')
    assert stamp.sub("", (tmp_path / "again.html").read_text()) == stamp.sub("", written)
    assert f"95 % interval {result['winner_vs_runner_up']['low']:+.4f}" in written


def test_the_same_command_continues_the_study(small: list[object], first: tuple[Path, dict[str, Any], str]) -> None:
    output, result, _ = first
    again = run(*small, "--budget", "60%", "--output", output, "--json")
    assert again.returncode == 0, again.stderr
    assert what_was_found(json.loads(again.stdout)) == what_was_found(result)
    assert f"{TRIALS} of {TRIALS} trials are done already" in again.stderr
    finals = len(result["final"]) - 1
    assert f"{finals} of {finals} finals are done already" in again.stderr
    assert "final d" not in again.stderr  # no line of one that runs
    assert "importance scores found in the cache" in again.stderr
    assert "ordering" not in again.stderr  # nothing is made anew


def test_the_same_seed_finds_the_same(
    small: list[object], first: tuple[Path, dict[str, Any], str], tmp_path: Path
) -> None:
    output, result, _ = first
    other = run(*small, "--budget", "60%", "--output", tmp_path, "--json")
    assert other.returncode == 0, other.stderr
    assert what_was_found(json.loads(other.stdout)) == what_was_found(result)
    tables = [(folder / result["study"] / "report" / "results.csv").read_text() for folder in (output, tmp_path)]
    kept = [[line.split(",")[:14] for line in table.splitlines()] for table in tables]
    assert kept[0] == kept[1]  # all columns but those that hold seconds


def test_dry_run_starts_nothing(small: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "nothing"
    assert main([*map(str, small), "--budget", "60%", "--output", str(output), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for part in ("band", "architectures", "tokens", "estimated time", "the best 3", "compared with"):
        assert part in printed
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--budget", "abc"], "budget 'abc'"),
        (["--budget", "10G"], "nearest feasible budget"),
        (["--budget", "60%,59%"], "overlap; leave one out"),
        (["--budget", "60%", "--space", "nowhere.yaml"], "nowhere.yaml"),
        (["--budget", "60%", "--trials", "none"], "--trials 'none'"),
        (["--budget", "60%", "--validation", "a.txt,,b.txt"], "--validation ''"),
        (["--budget", "60%", "--test", "wikitext2"], "task 'wikitext2': unknown"),
        (["--budget", "60%", "--test", "ptb=nowhere.txt"], "no such file: nowhere.txt"),
        (["--budget", "60%", "--test", "ptb,ptb"], "'ptb' occurs twice"),
        (["--budget", "60%", "--test", "efficiency"], "not a text"),
        (["--budget", "60%", "--test-tasks", "piqa:0"], "--test-tasks 'piqa:0': give a task of lm-evaluation-harness"),
        (["--budget", "60%", "--loads-in", "ollama"], "--loads-in 'ollama': not known"),
        (["--budget", "60%", "--quantises-to", "q4_k"], "--quantises-to q4_k: no value of hidden is left"),
        (["--budget", "60%", "--finalists", "0"], "--test: needs a final stage"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    small: list[object], tmp_path: Path, arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "nothing"
    assert main([*map(str, small), *arguments, "--output", str(output)]) == 2
    printed = capsys.readouterr()
    assert named in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert not printed.out
    assert not output.exists()


@pytest.mark.parametrize("what", ["--budget=260M", "--space=pruned-gpt"])
def test_hub_out_of_reach_is_one_line_that_names_the_ways_on(tmp_path: Path, what: str) -> None:
    offline = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = run(what, "--output", tmp_path / "nothing", **offline)
    assert done.returncode == 2
    assert "take mini" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
