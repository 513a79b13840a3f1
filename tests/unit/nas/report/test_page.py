"""The page of a search: what is on it, that it comes from the study alone, and that nothing from outside runs in it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import optuna
import pytest
import torch
from made_up_search import MadeUp

from nas.report.__main__ import main
from nas.report.html.data import FINISHED, MOST, RUNNING, UNFINISHED, Page, page_of
from nas.report.html.listener import PageWriter
from nas.report.html.page import PAGE, REPORT, render
from nas.stages.events import Event, FilesWritten, SearchStopped
from nas.study.snapshot import open_study, snapshot
from trials.prune.prune import choose

ATTACK = "</script><img src=x onerror=alert(1)><!--"


@pytest.fixture
def search(tiny_teacher_folder: Path, tmp_path: Path) -> MadeUp:
    return MadeUp(tiny_teacher_folder, tmp_path / "out")


def read(made: MadeUp, running: bool = False) -> Page:
    return page_of([snapshot(open_study(made.plan.storage, made.plan.study))], running)


def finished(made: MadeUp) -> Page:
    made.screen()
    made.trials(6, failing=[1])
    made.conclude()
    return read(made)


class Parsed(HTMLParser):
    """The tags of a page, and its texts by the tag that they are in."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def panels(self) -> list[str | None]:
        return [attrs["data-panel"] for _, attrs in self.tags if "data-panel" in attrs]


def test_every_architecture_is_there_with_all_its_losses(search: MadeUp) -> None:
    (part,) = finished(search).parts
    models = {one.key: one for one in part.models}
    assert {one.key for one in part.models if one.screen is not None} == set(search.study.kept("screened"))
    for record in search.study.records():
        trial = models[record.architecture.key].trial
        assert trial is not None
        assert (trial.number, trial.curve) == (record.number, record.curve)
        assert trial.reason == (record.reason or "")
    shape = search.plan.target.shape
    assert all(
        one.parameters == shape.parameters(feasible)
        for feasible in search.plan.target.feasible
        if (one := models.get(feasible.key))
    )


def test_the_verdict_is_that_of_the_result(search: MadeUp) -> None:
    page = finished(search)
    (part,) = page.parts
    (outcome,) = search.conclude()
    assert page.state == FINISHED
    assert part.winner is not None
    assert part.winner.key == outcome.winner.key
    assert (
        part.winner.sizes[0].text == f"{outcome.winner.record.architecture.depth} of {search.plan.target.shape.layers}"
    )
    assert outcome.comparison is not None
    lead = outcome.comparison.difference
    assert lead is not None
    assert f"{lead.mean:.4f}" in part.sentence
    assert f"95 % interval {lead.low:+.4f} to {lead.high:+.4f}" in part.sentence
    assert str(outcome.winner_path) in part.winner.load
    assert [row.key for row in part.rows] == [row.architecture for row in outcome.comparison.rows]
    for own, row in zip(part.rows, outcome.comparison.rows, strict=True):
        assert own.difference == (
            (row.difference.mean, row.difference.low, row.difference.high) if row.difference else None
        )


def test_the_layers_that_the_winner_lost_are_those_that_pruning_cuts(search: MadeUp) -> None:
    (part,) = finished(search).parts
    (outcome,) = search.conclude()
    kept = choose(search.teacher.scores, outcome.winner.record.architecture, 1, torch.device("cpu")).layers.tolist()
    assert part.winner is not None
    assert sorted([*part.winner.removed, *kept]) == list(range(search.plan.target.shape.layers))


def test_a_search_that_goes_on_says_how_far_it_is(search: MadeUp) -> None:
    steps = [read(search, running=True)]
    search.screen()
    steps.append(read(search, running=True))
    search.trials(2)
    steps.append(read(search))
    assert [one.state for one in steps] == [RUNNING, RUNNING, UNFINISHED]
    sentences = [one.parts[0].sentence for one in steps]
    assert sentences[0] == "No winner yet: nothing is measured yet."
    assert "architectures are screened" in sentences[1]
    assert "2 of 6 trials have ended" in sentences[2]
    best = min(one.trial.loss for one in steps[2].parts[0].models if one.trial and one.trial.loss is not None)
    assert f"{best:.4f}" in sentences[2]


def test_trials_after_a_result_are_told_of(search: MadeUp) -> None:
    finished(search)
    search.trials(2)
    assert any("2 more have ended since" in one for one in read(search).parts[0].remarks)


@pytest.mark.parametrize("steps", [(), ("screen",), ("trials",), ("screen", "trials"), ("trials", "conclude")])
def test_each_panel_is_there_and_is_never_empty(search: MadeUp, steps: tuple[str, ...]) -> None:
    for step in steps:
        getattr(search, step)(*([4] if step == "trials" else []))
    text = render(read(search))
    wanted = [
        "final",
        "curves",
        "sizes",
        "parallel",
        "screening",
        "trials",
        "loads",
        "importance",
        "stages",
        "settings",
    ]
    assert Parsed(text).panels() == ["verdict", *wanted]
    for section in re.findall(r"<section.*?</section>", text, re.DOTALL):
        assert re.search(r"data-chart|<table|class=\"missing\"|class=\"sentence\"", section)


def test_without_a_final_stage_the_best_trial_wins(tiny_teacher_folder: Path, tmp_path: Path) -> None:
    made = MadeUp(tiny_teacher_folder, tmp_path, finalists=0)
    made.trials(4)
    made.conclude()
    (part,) = read(made).parts
    assert part.rows == ()
    assert "without a final stage there is no interval" in part.sentence
    assert "the best trial won" in render(read(made))


def test_several_budgets_are_on_one_page(tiny_teacher_folder: Path, tmp_path: Path) -> None:
    made = MadeUp(tiny_teacher_folder, tmp_path, budget="80%,50%", tolerance="0.1")
    made.trials(8)
    made.conclude()
    page = read(made)
    assert [one.name for one in page.parts] == ["80%", "50%"]
    keys = [{model.key for model in one.models} for one in page.parts]
    assert all(keys)
    assert not keys[0] & keys[1]
    assert all(part.winner and part.winner.key in own for part, own in zip(page.parts, keys, strict=True))
    assert Parsed(render(page)).panels().count("verdict") == 2


def test_two_studies_are_set_beside_each_other(search: MadeUp, tiny_teacher_folder: Path, tmp_path: Path) -> None:
    finished(search)
    other = MadeUp(tiny_teacher_folder, tmp_path / "elsewhere", study="other", budget="50%")
    finished(other)
    assert main([str(search.plan.folder), str(other.plan.folder)]) == 0
    text = (search.plan.folder / REPORT / "beside-other.html").read_text("utf-8")
    parsed = Parsed(text)
    assert parsed.panels() == ["verdict", "verdict", "overview", "final"]
    page = page_of([snapshot(open_study(one.plan.storage, one.plan.study)) for one in (search, other)])
    losses = [row.loss for _, row in page.together]
    assert losses == sorted(losses, key=lambda one: one or 0.0)
    assert {name for name, _ in page.together} == {"made-up, 60%", "other, 50%"}
    assert "can be compared" in page.comparison


def test_nothing_from_outside_becomes_code(tiny_teacher_folder: Path, tmp_path: Path) -> None:
    made = MadeUp(tiny_teacher_folder, tmp_path)
    made.plan = replace(made.plan, command=f"python -m nas.search --model '{ATTACK}'")
    known = made.study.recall("plan")
    made.study.remember("plan", {**known, "command": made.plan.command, "settings": {"model": ATTACK, ATTACK: ATTACK}})
    made.trials(3, failing=[0], reason=f"RuntimeError: {ATTACK} \u2028")
    made.conclude()
    text = render(read(made))
    parsed = Parsed(text)
    assert "<img" not in text
    assert [attrs.get("type") for tag, attrs in parsed.tags if tag == "script"] == ["application/json", None]
    assert any(ATTACK in words for words in parsed.words)  # it is there, as text
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert data
    (study,) = json.loads(data.group(1))["studies"]
    assert study["failures"][0]["reason"] == f"RuntimeError: {ATTACK} \u2028"


def test_the_page_needs_nothing_but_itself(search: MadeUp) -> None:
    text = render(finished(search))
    addresses = [value for _, attrs in Parsed(text).tags for name in ("src", "href") if (value := attrs.get(name))]
    assert addresses == ["data:,"]
    assert "default-src 'none'" in text
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest", text)
    assert len(text) < 2_000_000


def test_a_search_of_thousands_of_trials_has_a_page_of_less_than_two_megabytes(search: MadeUp) -> None:
    page = finished(search)
    (part,) = page.parts
    tried = next(one for one in part.models if one.trial and one.final)
    many = tuple(replace(tried, key=f"{number:0>64}") for number in range(MOST))
    text = render(replace(page, parts=(replace(part, models=many, left_out=4_000),)))
    assert len(text) < 2_000_000
    assert "4,000 more are in the tables" in text


def test_the_listener_writes_after_every_rung_and_announces_after_each_stage(search: MadeUp) -> None:
    heard: list[Event] = []
    pages = PageWriter(heard.append)
    path = search.plan.folder / REPORT / PAGE
    pages(search.events[0])
    assert ">running<" in path.read_text()
    search.screen()
    search.trials(1)
    pages._rests_until = 0.0
    pages(search.events[-1])
    assert "1 of 6 trials" in path.read_text()
    assert not heard
    search.trials(5)
    search.conclude()
    pages(search.events[1])
    pages(search.events[-1])
    assert heard == [FilesWritten([path], REPORT)] * 2
    assert ">finished<" in path.read_text()
    pages(SearchStopped(interrupted=True))
    assert [one.name for one in path.parent.iterdir()] == [PAGE]


def test_a_search_that_stops_before_it_is_prepared_has_no_page(tmp_path: Path) -> None:
    heard: list[Event] = []
    PageWriter(heard.append)(SearchStopped(interrupted=True))
    assert not heard


def test_the_command_makes_the_same_page_from_the_study_alone(
    search: MadeUp, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = PageWriter(lambda event: None)
    pages(search.events[0])
    finished(search)
    pages(search.events[-1])
    written = (search.plan.folder / REPORT / PAGE).read_text()
    monkeypatch.chdir(tmp_path)
    assert main(["made-up", "--output", "out", "--to", "again.html"]) == 0
    assert capsys.readouterr().out == "again.html\n"
    stamp = re.compile(r'written [\d-]+ [\d:]+ UTC|"written":[\d.]+')
    assert stamp.sub("", (tmp_path / "again.html").read_text()) == stamp.sub("", written)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere", "--output", "{out}"], "study 'nowhere': not in sqlite:///"),
        (["made-up", "--output", "{out}/none"], "no studies in"),
        (["made-up", "--output", "{out}", "--to", "{out}"], "Is a directory"),
        (["made-up", "other", "third"], "third: one argument too many"),
        ([], "STUDY"),
    ],
)
def test_wrong_input_is_one_line(
    search: MadeUp, arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [one.replace("{out}", str(search.plan.output)) for one in arguments]
    assert main(given) == 2
    error = capsys.readouterr().err
    assert named in error
    assert len(error.strip().splitlines()) == 1


def test_a_study_of_another_version_is_refused_by_name(search: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    optuna.create_study(storage=search.plan.storage, study_name="old")
    assert main(["old", "--output", str(search.plan.output)]) == 2
    assert "study 'old': it was made by another version" in capsys.readouterr().err


def test_the_command_imports_no_torch() -> None:
    code = (
        "import sys, nas.report.__main__; sys.exit(any(one in sys.modules for one in ('torch', 'transformers', 'ray')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
