"""From the record of a finished trial to an exported checkpoint with its model card."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from nas.plan import Plan
from nas.records import TrialRecord
from nas.runner import trial_spec
from nas.study import Candidate, SearchStudy
from search_spaces.errors import InputError
from trials.export import ModelCard, export_student, verify_manifest
from trials.trial import Preparation, load_student


def export_record(
    plan: Plan, preparation: Preparation, study: SearchStudy, record: TrialRecord, name: str, command: str
) -> Path:
    """Export the student of ``record`` to the folder ``name`` of the study, verified in a fresh process.

    An export of the same trial that is still whole is left as it is. Raises InputError when the student's weights
    are gone, naming the folder and the way to get them back.
    """
    folder, label = plan.folder / name, f"exported {name}"
    if study.recall(label) == record.number and _is_whole(folder):
        return folder
    try:
        student = load_student(trial_spec(plan, Candidate(record.number, record.architecture)))
    except FileNotFoundError as error:
        raise InputError(f"{error}; a new --study makes it anew, or bring the folder back") from error
    tokenizer = AutoTokenizer.from_pretrained(plan.target.folder)
    exported = export_student(student, tokenizer, folder, _card(plan, preparation, record, command))
    study.remember(label, record.number)
    return exported


def _is_whole(folder: Path) -> bool:
    try:
        verify_manifest(folder)
    except InputError:
        return False
    return True


def _card(plan: Plan, preparation: Preparation, record: TrialRecord, command: str) -> ModelCard:
    assert record.val_loss is not None, "only complete trials are exported"
    shape = plan.target.shape
    return ModelCard(
        teacher=plan.settings.model,
        teacher_parameters=shape.parameters(shape.full),
        teacher_loss=preparation.teacher_loss,
        budget=str(plan.target.budget),
        architecture=record.architecture,
        parameters=record.parameters,
        tokens=plan.recipe.tokens,
        val_loss=record.val_loss,
        corpus=preparation.corpus,
        command=command,
    )
