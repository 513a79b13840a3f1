"""The real command line, in a subprocess, on a teacher of 75,408 parameters: real Ray, Optuna and MLflow."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM

from nas.evaluate import main as evaluate
from nas.search import main

ROOT = Path(__file__).parents[2]
TRIALS = 4
SENTENCE = "prune the teacher keep a head drop a layer train the student on tokens search again"
WORDS = SENTENCE.split()


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """``python -m nas.search`` with the arguments, from the project's folder."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("NAS_", "MLFLOW_", "RAY_"))}
    return subprocess.run(
        [sys.executable, "-m", "nas.search", *map(str, arguments)],
        cwd=ROOT,
        env={**clean, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.fixture(scope="module")
def small(tiny_teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The settings of a search that takes seconds."""
    folder = tmp_path_factory.mktemp("text")
    text, other, unseen = (folder / f"{name}.txt" for name in ("corpus", "other", "unseen"))
    passages = folder / "passages.jsonl"
    text.write_text("\n\n".join(" ".join(WORDS[i % 7 :] + WORDS[: i % 11]) for i in range(400)))
    other.write_text("\n\n".join(" ".join(WORDS[i % 5 :] + WORDS[: i % 13]) for i in range(200)))
    unseen.write_text(" ".join(WORDS[i % 3 :][i % 16 % 14] for i in range(300)))
    passages.write_text("".join(json.dumps({"text": " ".join(WORDS[i:])}) + "\n" for i in range(9)))
    tests = ["--test", f"unseen={unseen},lambada={passages}"]
    sizes = ["--tokens-per-trial", 2048, "--sequence-length", 64, "--batch-tokens", 256, "--validation-tokens", 1024]
    model = ["--model", tiny_teacher_folder, "--corpus", text, "--calibration-samples", 8, "--tolerance", 0.1]
    rest = ["--validation", other, "--sampler", "screen", "--trials", TRIALS, "--workers", 1, "--cpus-per-trial", 1]
    return [*model, *sizes, *tests, *rest]


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
        "scoring heads",
        "ranking",
        "the teacher's streams",
        "the teacher's targets",
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


def test_what_is_exported_or_compared_with_is_read_on_test_text_as_the_evaluation_reads_it(
    small: list[object], first: tuple[Path, dict[str, Any], str], capsys: pytest.CaptureFixture[str]
) -> None:
    output, result, log = first
    others = {"runner-up", "finalist", "stock finalist"}
    read = [row for row in result["final"] if not set(row["roles"]) <= others]
    assert [row for row in result["final"] if "test" in row] == read
    assert f"evaluating {len(read)} models on unseen, lambada" in log
    tests = str(small[small.index("--test") + 1])
    for row, model in ((read[0], str(small[1])), (read[1], result["best"]["path"])):
        assert evaluate([model, "--tasks", tests, "--json", "--trust-remote-code"]) == 0
        document = json.loads(capsys.readouterr().out)
        conventions = ("non-overlapping windows", "lambada_openai")
        kept = [{**one, "dtype": document["dtype"]} for one in document["readings"] if one["convention"] in conventions]
        assert [{**one, "value": None} for one in row["test"]] == [{**one, "value": None} for one in kept]
        values = [[one["value"] for one in found] for found in (row["test"], kept)]
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
    ppl = result["final"][1]["test"][0]["value"]
    assert parent.data.metrics["test/unseen_ppl/winner"] == pytest.approx(ppl)
    assert parent.data.metrics["lead"] == pytest.approx(result["winner_vs_runner_up"]["mean"])
    finals = [one.data.metrics["val_loss/other"] for one in children if one.data.tags["stage"] == "final"]
    assert sorted(finals) == sorted(row["val_losses"]["other"] for row in result["final"][1:])
    assert parent.info.status == "FINISHED"
    for one in result["rank_agreement"]:
        for name, key in (("kendall_tau", "tau"), ("kendall_tau_low", "low"), ("kendall_tau_high", "high")):
            expected = one[key] if one[key] is None else pytest.approx(one[key])
            assert parent.data.metrics.get(f"{name}/{one['name']}") == expected
    assert parent.data.metrics["best_val_loss"] == pytest.approx(result["best"]["val_loss"])
    files = {one.path for one in client.list_artifacts(parent.info.run_id, "report")}
    report = (
        "importance.png",
        "results.md",
        "losses.png",
        "final.csv",
        "rank_agreement.png",
        "screening.csv",
        "screening.png",
    )
    assert {f"report/{name}" for name in report} <= files
    assert client.get_model_version_by_alias(result["study"], "best").run_id == parent.info.run_id


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


def test_several_budgets_share_a_study_and_each_has_its_winner(small: list[object], tmp_path: Path) -> None:
    flags = ["--budget", "60%,80%", "--trials", 2, "--finalists", 1, "--baselines", "no", "--output", tmp_path]
    flags += ["--objectives", "loss,latency", "--max-latency-ms", 10_000, "--screened", 6]
    done = run(*small, *flags, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    large, small_one = result["budgets"]
    assert large["budget"]["minimum"] > small_one["budget"]["maximum"]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for found, label in ((large, "80pct"), (small_one, "60pct")):
        assert found["budget"]["minimum"] <= found["best"]["params"] <= found["budget"]["maximum"]
        assert found["best"]["path"] == str(tmp_path / result["study"] / label / "best")
        assert sum(found["trials"].values()) == 2
        report = tmp_path / result["study"] / label / "report"
        assert {"results.md", "screening.csv", "front.png"} <= {file.name for file in report.iterdir()}
        assert all(0 < one["latency"] < 10_000 for one in found["front"])
        assert found["front"][0]["architecture"] in (report / "results.md").read_text()
        assert client.get_model_version_by_alias(f"{result['study']}-{label}", "best")
    for word in ("all budgets", "budget 80%", "budget 60%", "Pareto front", " timed] fastest", "in 10000 ms or less"):
        assert word in done.stderr
    (parent,) = client.search_runs(["1"], "tags.`mlflow.runName` = '" + result["study"] + "'")
    assert all(f"{budget} = " in parent.data.tags["plan.band"] for budget in ("80%", "60%"))
    losses = [parent.data.metrics[f"{label}/best_val_loss"] for label in ("80pct", "60pct")]
    assert losses == pytest.approx([found["best"]["val_loss"] for found in result["budgets"]])
    assert (tmp_path / result["study"] / "report" / "budgets.md").exists()
    again = run(*small, *flags, "--json")
    assert "4 of 4 trials are done already" in again.stderr
    assert [one["best"] for one in json.loads(again.stdout)["budgets"]] == [one["best"] for one in result["budgets"]]


def test_sizes_by_layer_are_an_axis_of_a_space(small: list[object], tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(
        "allocated: [true]\ndepth: [100%]\nhidden: [100%]\nheads: [50%, 75%]\nmlp: {min: 25%, step: 12.5%}\n"
    )
    flags = ["--budget", "80%", "--trials", 3, "--finalists", 1, "--baselines", "no", "--space", space, "--json"]
    flags += ["--output", tmp_path]
    done = run(*small, *flags)
    assert done.returncode == 0, done.stderr
    assert "architectures with sizes by layer" in done.stderr
    best = json.loads(done.stdout)["best"]
    assert not best["stock"]
    assert len(set(best["architecture"]["mlp"])) > 1
    model = AutoModelForCausalLM.from_pretrained(best["path"], trust_remote_code=True)
    assert sum(weight.numel() for weight in model.parameters()) == best["params"]
    again = run(*small, *flags)
    assert again.returncode == 0, again.stderr
    assert "3 of 3 trials are done already" in again.stderr
    assert json.loads(again.stdout)["best"] == best


def test_no_password_is_in_anything_that_a_run_writes(small: list[object], tmp_path: Path) -> None:
    """The server is down, so that its address is in messages about it too."""
    output, server = tmp_path / "out", "http://user:SECRET-WORD@127.0.0.1:9"
    flags = ["--budget", "60%", "--output", output, "--trials", 1, "--screened", 1, "--finalists", 0]
    kept = [one for place, one in enumerate(small) if "--test" not in small[max(0, place - 1) : place + 1]]
    done = run(*kept, *flags, MLFLOW_TRACKING_URI=server)
    assert done.returncode == 0, done.stderr
    assert "127.0.0.1:9" in done.stdout + done.stderr
    written = [one for one in output.rglob("*") if one.is_file()]
    assert len(written) > 10
    for text in (done.stdout, done.stderr, *(one.read_bytes().decode("utf-8", "replace") for one in written)):
        assert "SECRET-WORD" not in text


def test_nothing_that_finishes_is_exit_code_3_with_the_reason(small: list[object], tmp_path: Path) -> None:
    flags = ["--budget", "60%", "--output", tmp_path, "--trials", 1, "--screened", 1, "--learning-rate", 1e38]
    done = run(*small, *flags)
    assert done.returncode == 3, done.stderr
    assert "none of 1 trials is complete" in done.stderr
    assert "NonFiniteLoss: step" in done.stderr


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


def test_what_only_a_worker_can_see_to_be_wrong_is_one_line_too(
    small: list[object], tiny_teacher_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_teacher_folder, tmp_path / "cut")
    os.truncate(tmp_path / "cut" / "model.safetensors", 100_000)
    done = run(*small, "--model", tmp_path / "cut", "--budget", "60%", "--output", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: model {tmp_path / 'cut'}: its weights cannot be loaded")


def test_hub_out_of_reach_is_one_line_that_names_the_ways_on(tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = run("--budget", "260M", "--output", tmp_path / "nothing", **offline)
    assert done.returncode == 2
    assert "take mini" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
