"""From what a search chose to an exported checkpoint with its model card."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from nas.choosing.outcome import Chosen
from nas.planning.plan import Plan
from nas.running.tune_run import architecture_spec
from nas.study.study import SearchStudy
from search_spaces.errors import InputError
from trials.export.export import ModelCard, export_student, verify_manifest
from trials.trial import Preparation, load_weights


def export_chosen(
    plan: Plan, preparation: Preparation, study: SearchStudy, chosen: Chosen, name: str, command: str
) -> Path:
    """Export the student of ``chosen`` to the folder ``name`` of its budget, verified in a fresh process.

    An export of the same student, of which the same was said, is left as it is where it is whole. Raises InputError
    when the student's weights are gone, naming the folder and the way to get them back.
    """
    folder, label = plan.results / name, f"exported {name} {plan.part}".rstrip()
    content = f"{chosen.weights.relative_to(plan.folder)}; {chosen.verdict}"
    if study.recall(label) == content and _is_whole(folder):
        return folder
    try:
        student = load_weights(architecture_spec(plan, chosen.record.architecture), chosen.weights)
    except FileNotFoundError as error:
        raise InputError(f"{error}; a new --study makes it anew, or bring the folder back") from error
    tokenizer = AutoTokenizer.from_pretrained(plan.target.folder)
    exported = export_student(student, tokenizer, folder, _card(plan, preparation, chosen, command))
    study.remember(label, content)
    return exported


def _is_whole(folder: Path) -> bool:
    try:
        verify_manifest(folder)
    except InputError:
        return False
    return True


def _card(plan: Plan, preparation: Preparation, chosen: Chosen, command: str) -> ModelCard:
    shape = plan.target.shape
    return ModelCard(
        teacher=plan.settings.model,
        teacher_parameters=shape.parameters(shape.full),
        teacher_loss=preparation.teacher_loss,
        budget=str(plan.target.budget),
        architecture=chosen.record.architecture,
        parameters=chosen.record.parameters,
        tokens=chosen.tokens,
        val_loss=chosen.val_loss,
        corpus=preparation.corpus,
        command=command,
        final_tokens=chosen.final_tokens,
        comparison=chosen.verdict,
    )
