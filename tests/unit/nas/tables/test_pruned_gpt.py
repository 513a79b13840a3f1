"""The study pruned-gpt: its bands are those of the original, and its table has the original's columns and rows."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_gpt2
from rich.console import Console
from tracking_reference import final, record
from transformers import GPT2Config

from nas.choosing.comparison import Comparison, compare
from nas.choosing.outcome import Chosen, Outcome
from nas.planning.machine import Machine, Node
from nas.planning.plan import Target, make_plan, resolve_target
from nas.planning.settings import SearchSettings, load_settings
from nas.tables.pruned_gpt import PUBLISHED, pruned_gpt_table, strategy
from nas.tables.study_table import StudyTable, csv_text, markdown
from nas.tables.writer import print_table, write_table
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.shape import ModelShape
from trials.evaluate.perplexity import NON_OVERLAPPING
from trials.evaluate.reading import TOKEN_PERPLEXITY, Reading
from trials.families.shapes import shape_of
from trials.preparation import Preparation

SIZES = {266_690_560: (24, 10, 3072), 262_469_632: (20, 12, 3584), 254_104_576: (24, 12, 2560)}  # layers, heads, MLP
HEADINGS = ["parameters", "layers", "width", "heads", "MLP", "WikiText-2", "LAMBADA", "PTB", "KD val loss"]
MACHINE = Machine((Node(2, 0.0, 2**36),))


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of gpt2-medium's shape whose weights and tokenizer are never read."""
    folder = tmp_path_factory.mktemp("gpt2-medium")
    GPT2Config(n_layer=24, n_embd=1024, n_head=16, architectures=["GPT2LMHeadModel"]).save_pretrained(folder)
    (folder / "model.safetensors").touch()
    (folder / "tokenizer.json").write_text("{}")
    return folder


def settings_of(**flags: object) -> SearchSettings:
    return load_settings({"space": "pruned-gpt", **{name: str(one) for name, one in flags.items()}}, None, {})


def bands(target: Target) -> list[tuple[int, list[Architecture]]]:
    return [(one.maximum, list(target.inside(one).feasible)) for one in target.budgets]


def test_each_band_ends_at_a_size_of_the_original_and_holds_its_architecture(medium: Path) -> None:
    target = resolve_target(settings_of(model=medium))
    assert [maximum for maximum, _ in bands(target)] == list(SIZES)
    for maximum, inside in bands(target):
        depth, heads, mlp = SIZES[maximum]
        own = Architecture.uniform(depth, 1024, heads, mlp)
        assert own in inside
        assert target.shape.parameters(own) == maximum
    assert Architecture.uniform(16, 1024, 16, 4096) in bands(target)[-1][1]


def test_no_model_is_built_to_count_parameters(medium: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model is built")

    monkeypatch.setattr("torch.nn.Module.__init__", refuse)
    with pytest.raises(AssertionError, match="a model is built"):
        make_gpt2()
    assert all(inside for _, inside in bands(resolve_target(settings_of(model=medium))))


def test_a_wider_tolerance_is_refused_since_bands_would_overlap(medium: Path) -> None:
    with pytest.raises(InputError, match="overlap"):
        resolve_target(settings_of(model=medium, tolerance=0.016))


def test_the_plan_reads_the_texts_of_the_original_and_none_of_them_in_training(medium: Path) -> None:
    settings = settings_of(model=medium)
    plan = make_plan(settings, resolve_target(settings), MACHINE)
    assert [one.name for one in plan.tests][:3] == ["wikitext-2", "lambada", "ptb"]
    assert plan.recipe.corpus.startswith("HuggingFaceFW/fineweb-edu")
    assert settings.table == "pruned-gpt"
    assert settings_of().model == "openai-community/gpt2-medium"


@pytest.mark.parametrize("model", ["mini", "tiny"])
def test_the_shares_fit_other_teachers(model: str, tiny_teacher_folder: Path) -> None:
    target = resolve_target(settings_of(model=tiny_teacher_folder if model == "tiny" else model))
    whole = target.shape.parameters(target.shape.full)
    for (maximum, inside), original in zip(bands(target), SIZES, strict=True):
        assert maximum / whole == pytest.approx(original / 354_823_168, abs=1 / whole)
        assert inside


def test_mini_takes_no_text_of_the_hub_unless_it_is_told_to(tmp_path: Path) -> None:
    assert (settings_of(model="mini").corpus, settings_of(model="mini").test) == (None, None)
    assert settings_of(model="mini", test="ptb").test == "ptb"
    own = tmp_path / "own.yaml"
    own.write_text("study: {budget: 70%, test: ptb}\n")
    assert load_settings({"space": str(own), "model": "mini"}, None, {}).test == "ptb"  # its author knows


DEPTH, WIDTH, BOTH = (Architecture.uniform(*sizes) for sizes in ((2, 48, 4, 96), (3, 48, 2, 60), (2, 48, 3, 96)))


KINDS = (
    ("wikitext-2", TOKEN_PERPLEXITY),
    ("lambada", "last-word accuracy"),
    ("lambada", "last-word perplexity"),
    ("ptb", TOKEN_PERPLEXITY),
)


def readings(value: float) -> tuple[Reading, ...]:
    return tuple(
        Reading(task, NON_OVERLAPPING, metric, value + place, "", tokens=9, length=64)
        for place, (task, metric) in enumerate(KINDS)
    )


def comparison_of() -> Comparison:
    """The winner cuts both, a runner-up is no baseline, and depth only has no KL because an older version made it."""
    made = [
        final(0, architecture=BOTH, roles=("finalist",), metrics={"val_kl": 0.25}, val_loss=1.0),
        final(1, architecture=replace(BOTH, mlp=(84, 84)), roles=("finalist",), val_loss=1.2),
        final(2, architecture=DEPTH, roles=("depth only",), val_loss=1.5),
        final(3, architecture=WIDTH, roles=("width only",), state="FAIL"),
    ]
    windows = {one.name: {"text": np.full(4, one.val_loss)} for one in made if one.val_loss is not None}
    found = compare(made, windows, {"text": np.full(4, 0.5)}, 75_408)
    read = [
        replace(row, test=readings(10.0 * place), before=readings(90.0) if place == 1 else ())
        for place, row in enumerate(found.rows)
        if row.is_read
    ]
    return replace(found, rows=(*read, *(row for row in found.rows if not row.is_read)))


@pytest.fixture
def outcome(tiny_teacher_folder: Path, tmp_path: Path) -> Outcome:
    settings = settings_of(model=tiny_teacher_folder, output=tmp_path)
    (plan, *_) = make_plan(settings, resolve_target(settings), MACHINE).parts
    plan.__dict__["baselines"] = {"depth only": DEPTH, "width only": WIDTH}
    chosen = Chosen(record(0, architecture=BOTH, val_loss=2.0), 1_000, 0, tmp_path)
    preparation = Preparation(plan.target.shape, "", 0.5, "a corpus", "", "", False, 1.0)
    paths = tmp_path / "best", chosen, tmp_path / "best"
    return Outcome(plan, preparation, [], chosen, *paths, comparison_of(), [], {}, 1.0)


def cells(table: StudyTable) -> list[dict[str, object]]:
    names = [one.name for one in table.columns]
    return [dict(zip(names, row, strict=True)) for row in table.rows]


def test_a_measured_row_holds_what_was_measured_and_nothing_else(outcome: Outcome) -> None:
    teacher, before, after, *rest = cells(pruned_gpt_table([outcome]))
    assert [teacher[name] for name in ("model", "strategy", "val loss", "WikiText-2")] == ["teacher", "", 0.5, 0.0]
    assert [before[name] for name in ("model", "strategy", "trained")] == ["winner", "depth + width", "no"]
    assert before["val loss"] == dict(final(0).curve)[0]
    assert [before[name] for name in HEADINGS[5:]] == [90.0, 92.0, 93.0, None]
    assert [after[name] for name in HEADINGS[1:5]] == [2, 48, 3, 96]
    assert [after[name] for name in HEADINGS[5:]] == [10.0, 12.0, 13.0, 64.0]  # a KL of 0.25 over 256 tokens
    assert after["val loss"] == 1.0
    assert [(one["model"], one["strategy"], one["trained"]) for one in rest] == [
        ("depth only", "depth", "no"),
        ("depth only", "depth", "yes"),
        ("width only", "width", "no"),
        ("width only", "width", "yes"),
    ]
    assert rest[1]["KD val loss"] is None
    assert [rest[3][name] for name in (*HEADINGS[5:], "val loss")] == [None] * 5  # it failed


def of_shape(outcome: Outcome, shape: ModelShape) -> Outcome:
    return replace(outcome, plan=replace(outcome.plan, target=replace(outcome.plan.target, shape=shape)))


def test_each_budget_has_its_winner_and_its_baselines(outcome: Outcome) -> None:
    models = [one["model"] for one in cells(pruned_gpt_table([outcome, outcome]))]
    assert Counter(models) == {"teacher": 1, "winner": 4, "depth only": 4, "width only": 4}


@pytest.mark.parametrize("change", [{"layers": 12}, {"vocab": 50_304}, {"positions": 2_048}, {"family": "opt"}])
def test_other_teachers_than_gpt2_medium_have_no_published_rows(
    outcome: Outcome, medium: Path, change: dict[str, Any]
) -> None:
    shape = resolve_target(settings_of(model=medium)).shape
    assert "published" in markdown(pruned_gpt_table([of_shape(outcome, shape)]))
    assert "published" not in markdown(pruned_gpt_table([of_shape(outcome, replace(shape, **change))]))


def test_beside_gpt2_medium_stand_the_published_figures_marked_as_such(outcome: Outcome, medium: Path) -> None:
    table = pruned_gpt_table([of_shape(outcome, resolve_target(settings_of(model=medium)).shape)])
    published = [one for one in cells(table) if "published" in str(one["model"])]
    assert len(published) == 1 + 2 * len(PUBLISHED)
    assert published[0]["WikiText-2"] == 21.97
    figures = {(one["parameters"], one["strategy"], one["trained"]): one["WikiText-2"] for one in published[1:]}
    assert figures[254_053_376, "depth", "no"] == 43.56
    assert figures[254_053_376, "depth", "yes"] == 32.29
    assert figures[262_469_632, "depth + width", "yes"] == 34.35
    assert figures[254_104_576, "width", "yes"] == 39.47
    assert sorted({size for size, *_ in figures} - {254_053_376}) == sorted(SIZES)
    assert all(one["val loss"] is None for one in published)
    assert any(note.startswith("published: ") for note in table.notes)


def test_without_a_final_stage_the_best_trial_has_its_losses(outcome: Outcome) -> None:
    _, before, after = cells(pruned_gpt_table([replace(outcome, comparison=None)]))
    assert (before["val loss"], after["val loss"], after["WikiText-2"]) == (4.0, 2.0, None)


def test_a_narrower_stream_is_width_whatever_else_was_cut() -> None:
    shape = shape_of(make_gpt2().config)
    assert strategy(shape, Architecture.uniform(3, 24, 4, 96)) == "width"
    assert strategy(shape, Architecture.uniform(2, 24, 4, 96)) == "depth + width"
    assert strategy(shape, Architecture(2, 48, (4, 4), (96, 84))) == "depth + width"


def test_it_is_written_and_printed(outcome: Outcome, tmp_path: Path) -> None:
    table = pruned_gpt_table([outcome])
    files = write_table([outcome], tmp_path)
    assert [one.name for one in files] == ["pruned-gpt.md", "pruned-gpt.csv"]
    assert files[1].read_text() == csv_text(table)
    shown = printed(outcome, 120)
    assert all(heading in shown for heading in HEADINGS)
    assert "depth + width" in shown


@pytest.mark.parametrize("width", [80, 100, 120])
def test_no_figure_is_cut_off_beside_published_ones(outcome: Outcome, medium: Path, width: int) -> None:
    shown = printed(of_shape(outcome, resolve_target(settings_of(model=medium)).shape), width)
    assert "…" not in shown
    assert all(figure in shown for figure in ("254,104,576", "2,694.69", "58.66", "57.32"))


def printed(outcome: Outcome, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_table([outcome], console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]
