"""What MLflow is told of a result: the parent run answers, and each final has its own figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from made_outcome import made_outcome, made_plan

from nas.choosing.outcome import Chosen, Outcome
from nas.tracking.mlflow_view import METRICS, runs_page, view_tag
from nas.tracking.outcome_contents import concluded_text, judgements, metrics, registered_name, tags, verdict_text
from trials.evaluate.perplexity import NON_OVERLAPPING
from trials.evaluate.reading import TOKEN_PERPLEXITY, Reading


@pytest.fixture
def outcome(tiny_teacher_folder: Path, tmp_path: Path) -> Outcome:
    return made_outcome(replace(made_plan(tiny_teacher_folder, tmp_path), command="python -m nas.search --budget 60%"))


def test_the_parent_run_has_the_winner_beside_the_teacher(outcome: Outcome) -> None:
    found = metrics(outcome)
    assert set(METRICS) <= set(found)
    assert (found["val_loss"], tags(outcome)["teacher_val_loss"]) == (outcome.winner.val_loss, "2.5000")
    assert not [name for name in found if "kendall" in name or "/" in name]
    named = tags(outcome)
    assert named["winner"] == named["architecture"] == outcome.winner.key
    assert named["rank_agreement_final"] == str(outcome.agreements[-1])


def test_every_final_is_judged_once_and_one_wins(outcome: Outcome) -> None:
    found = list(judgements("s", outcome))
    assert {one.place for one in found} == {f"final {one.name}" for one in outcome.finals}
    assert [one.tags["role"] for one in found if one.wins] == ["winner, best stock"]
    assert all(one.wins or one.metrics["minus_winner_low"] <= one.metrics["minus_winner"] for one in found)


def test_a_final_has_its_readings_on_other_text(outcome: Outcome) -> None:
    assert outcome.comparison is not None
    readings = [
        replace(row, test=(Reading("ptb", NON_OVERLAPPING, TOKEN_PERPLEXITY, 10.0 + place, "", length=64),))
        for place, row in enumerate(outcome.comparison.rows)
    ]
    outcome = replace(outcome, comparison=replace(outcome.comparison, rows=tuple(readings)))
    assert [one.metrics["test_ptb_ppl"] for one in judgements("s", outcome)] == [11.0, 12.0, 13.0, 14.0, 15.0]
    assert all(one.metrics["above_teacher_other"] > 0 for one in judgements("s", outcome))
    assert tags(outcome)["teacher_test_ptb_ppl"] == "10.0000"


def test_without_finals_the_trial_that_won_is_marked(outcome: Outcome, tmp_path: Path) -> None:
    alone = replace(outcome, comparison=None, winner=Chosen(outcome.records[2], 1, 0, tmp_path))
    [judged] = judgements("s", alone)
    assert (judged.place, judged.wins, judged.tags["role"]) == ("2", True, "winner")


def test_the_description_begins_with_the_answer_and_ends_with_the_plan(outcome: Outcome) -> None:
    text = concluded_text(outcome.plan, [outcome])
    first = text.splitlines()[0]
    assert outcome.winner.key in first
    assert f"{outcome.winner.val_loss:.4f}" in first
    assert "the runner-up" in text
    assert "`python -m nas.search --budget 60%`" in text
    assert text.index("| winner") < text.index("- command:") < text.index("- teacher:")
    assert f"models:/{registered_name(outcome)}@best" in verdict_text(outcome)
    custom = replace(outcome, winner=replace(outcome.winner, record=replace(outcome.winner.record, stock=False)))
    assert "modelling file" in verdict_text(custom)
    assert "modelling file" not in verdict_text(outcome)


def test_the_address_and_the_tag_of_a_view_have_one_name() -> None:
    name, _ = view_tag("study-1")
    assert runs_page("3", "study-1").endswith(f"viewStateShareKey={name.removeprefix('mlflow.sharedViewState.')}")
