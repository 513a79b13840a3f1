"""Searches with several budgets, with sizes by layer, with passwords, and searches that cannot succeed."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
from command import run, small_settings
from downstream_task import written
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def small(tiny_teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The settings of a search that takes seconds."""
    return small_settings(tiny_teacher_folder, tmp_path_factory.mktemp("text"))


def test_several_budgets_share_a_study_and_each_has_its_winner(small: list[object], tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("{stock_only: true, kept_layers: any, depth: [2, 3], hidden: [48], heads: [4], mlp: {min: 25%}}")
    flags = ["--budget", "60%,80%", "--trials", 2, "--finalists", 1, "--baselines", "no", "--output", tmp_path]
    flags += ["--objectives", "loss,latency", "--max-latency-ms", 10_000, "--screened", 6, "--space", space]
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
        kept, depth = (found["best"]["architecture"].get(name) for name in ("kept_layers", "depth"))
        assert depth == 3 if kept is None else depth == len(kept) == 2
        report = tmp_path / result["study"] / label / "report"
        assert {"results.md", "screening.csv", "front.png"} <= {file.name for file in report.iterdir()}
        assert all(0 < one["latency"] < 10_000 for one in found["front"])
        assert found["front"][0]["architecture"] in (report / "results.md").read_text()
        assert client.get_model_version_by_alias(f"{result['study']}-{label}", "best")
    for word in ("all budgets", "budget 80%", "budget 60%", "Pareto front", " timed] fastest", "in 10000 ms or less"):
        assert word in done.stderr
    (parent,) = client.search_runs(["1"], "tags.`mlflow.runName` = '" + result["study"] + "'")
    assert all(f"{budget} = " in parent.data.tags["mlflow.note.content"] for budget in ("80%", "60%"))
    losses = [parent.data.metrics[f"{label}/val_loss"] for label in ("80pct", "60pct")]
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
    flags = ["--budget", "80%", "--trials", 3, "--space", space, "--output", tmp_path, "--json"]
    flags += ["--finalists", 0, "--test", ""]
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
    storage = f"sqlite:///file:{tmp_path}/studies.db?uri=true&password=SECRET-WORD"  # SQLite ignores what it lacks
    flags = ["--budget", "60%", "--output", output, "--trials", 1, "--screened", 1, "--finalists", 0]
    flags += ["--storage", storage]
    kept = [one for place, one in enumerate(small) if "--test" not in small[max(0, place - 1) : place + 1]]
    done = run(*kept, *flags, MLFLOW_TRACKING_URI=server, HF_TOKEN="SECRET-WORD")
    assert done.returncode == 0, done.stderr
    assert "127.0.0.1:9" in done.stdout + done.stderr
    assert "password=***" in done.stdout + done.stderr
    written = [one for one in tmp_path.rglob("*") if one.is_file()]
    assert len(written) > 10
    for text in (done.stdout, done.stderr, *(one.read_bytes().decode("utf-8", "replace") for one in written)):
        assert "SECRET-WORD" not in text


def test_nothing_that_finishes_is_exit_code_3_with_the_reason(small: list[object], tmp_path: Path) -> None:
    (tmp_path / "doomed").mkdir()
    (tmp_path / "doomed" / "driver.json").touch()  # a study was here before
    (tmp_path / "doomed" / "trials").write_text("a file where every trial wants its folder")
    done = run(*small, "--budget", "60%", "--output", tmp_path, "--study", "doomed", "--trials", 1, "--screened", 1)
    assert done.returncode == 3, done.stderr
    assert "none of 1 trials is complete" in done.stderr
    assert "NotADirectoryError" in done.stderr


def test_what_only_a_worker_can_see_to_be_wrong_is_one_line_too(
    small: list[object], tiny_teacher_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_teacher_folder, tmp_path / "cut")
    os.truncate(tmp_path / "cut" / "model.safetensors", 100_000)
    done = run(*small, "--model", tmp_path / "cut", "--budget", "60%", "--output", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: model {tmp_path / 'cut'}: its weights cannot be loaded")


def test_a_study_of_three_sizes_ends_with_its_own_table(small: list[object], tmp_path: Path) -> None:
    unseen = str(small[small.index("--test") + 1]).split(",")[0].partition("=")[2]
    passages = str(small[small.index("--test") + 1]).partition("lambada=")[2]
    flags = ["--space", "pruned-gpt", "--tolerance", 0.015, "--test", f"wikitext-2={unseen},lambada={passages}"]
    flags += ["--test-tasks", f"quiz={written(tmp_path)}"]
    done = run(*small, *flags, "--trials", 2, "--finalists", 1, "--output", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    report = tmp_path / result["study"] / "report"
    for row in (row for one in result["budgets"] for row in one["final"]):
        assert [(one["task"], one["stderr"] > 0) for one in row["test"][-2:]] == [("quiz", True)] * 2
    rows = list(csv.DictReader((report / "pruned-gpt.csv").read_text().splitlines()))
    assert rows[0]["model"] == "teacher"
    winners = [one for one in rows if "winner" in one["model"].split(", ") and one["trained"] == "yes"]
    assert [int(one["parameters"]) for one in winners] == [one["best"]["params"] for one in result["budgets"]]
    assert [float(one["val loss"]) for one in winners] == [one["best"]["val_loss"] for one in result["budgets"]]
    for row in rows[1:]:
        assert all(float(row[name]) > 0 for name in ("WikiText-2", "LAMBADA", "val loss"))
        assert (row["KD val loss"] != "") == (row["trained"] == "yes")
        assert row["PTB"] == ""  # not asked for
    assert rows[1]["WikiText-2"] != rows[2]["WikiText-2"]  # before and after retraining
    assert "pruned-gpt: depth, width, and both" in done.stderr
    assert (report / "pruned-gpt.md").read_text().startswith("# pruned-gpt")
