"""The commit of a teacher of the hub: in the recipe of every worker, the study, MLflow and the card of the winner."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from made_up_search import MadeUp
from rich.console import Console

from nas.planning.machine import Machine, Node
from nas.planning.plan import Plan, make_plan, resolve_target
from nas.planning.settings import load_settings, with_commit
from nas.search import DONE, main
from nas.stages.events import SearchPrepared
from nas.study.snapshot import TEACHER
from nas.tracking import listener
from trials.export.teacher_card import about_teacher

COMMITS = {"main": "0123456789" * 4, "v1": "abcdef0123" * 4}


@pytest.fixture
def hub_cache(tiny_teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of the hub with org/name at `COMMITS`. There is no network."""
    root = tmp_path / "hub" / "models--org--name"
    (root / "refs").mkdir(parents=True)
    for name, commit in COMMITS.items():
        (root / "refs" / name).write_text(commit)
        shutil.copytree(tiny_teacher_folder, root / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return root


def plan_of(output: Path, **given: str) -> Plan:
    flags = {"model": "org/name", "output": str(output), "budget": "60%", "tolerance": "0.2", "corpus": "stdlib"}
    settings = load_settings({**flags, **given}, None, {})
    target = resolve_target(settings)
    return make_plan(with_commit(settings, target.folder), target, Machine((Node(2, 0.0, 2**34),)))


def test_workers_load_the_commit_and_another_commit_is_another_study(hub_cache: Path, tmp_path: Path) -> None:
    whatever, main_one, tag, commit = (
        plan_of(tmp_path, **given)
        for given in ({}, {"revision": "main"}, {"revision": "v1"}, {"revision": COMMITS["v1"]})
    )
    assert whatever.recipe.model == "org/name"  # as in studies from before there were revisions
    assert main_one.recipe.model == f"org/name@{COMMITS['main']}"
    assert tag.recipe.model == commit.recipe.model == f"org/name@{COMMITS['v1']}"
    assert tag.target.folder == hub_cache / "snapshots" / COMMITS["v1"]
    assert tag.study == commit.study
    assert len({whatever.study, main_one.study, tag.study}) == 3
    assert tag.identity["model"] == tag.recipe.model
    assert tag.study.startswith(f"name-{COMMITS['v1'][:7]}-60pct-")


def test_the_study_mlflow_and_the_card_name_the_commit(
    hub_cache: Path, tiny_teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "Tracker", lambda *_: messages)
    messages: Any = Messages()
    for given, commit in (({"revision": "v1"}, COMMITS["v1"]), ({}, COMMITS["main"])):
        made = MadeUp(Path("org/name"), tmp_path, study=f"made-up-{commit}", **given)
        assert made.study.recall(TEACHER)["commit"] == commit
        event = made.events[0]
        assert isinstance(event, SearchPrepared)
        listener.MlflowListener(Console(file=io.StringIO()))(event)
        assert messages[-1].settings["teacher_commit"] == commit
        about = about_teacher(made.plan.settings.model, made.plan.target.folder)
        assert (about["base_model"], about["base_model_revision"]) == ("org/name", commit)
    local = MadeUp(tiny_teacher_folder, tmp_path, study="local")
    assert local.study.recall(TEACHER)["commit"] is None
    assert "base_model_revision" not in about_teacher(str(tiny_teacher_folder), tiny_teacher_folder)
    (event,) = local.events
    assert isinstance(event, SearchPrepared)
    listener.MlflowListener(Console(file=io.StringIO()))(event)
    assert "teacher_commit" not in messages[-1].settings


class Messages(list[Any]):
    """A tracker that keeps its messages."""

    put = list.append


def test_the_plan_names_the_commit(hub_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "org/name", "--revision", "v1", "--budget", "60%", "--tolerance", "0.2", "--corpus", "stdlib"]
    assert main([*flags, "--output", str(tmp_path / "out"), "--dry-run"]) == DONE
    assert f"org/name@{COMMITS['v1']}" in capsys.readouterr().out
