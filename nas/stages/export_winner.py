"""From a chosen student to an exported checkpoint with its model card."""

from __future__ import annotations

from pathlib import Path

import torch

from nas.choosing.outcome import Chosen
from nas.planning.plan import Plan
from nas.planning.specs import trial_spec
from nas.study.study import SearchStudy
from search_spaces.errors import InputError
from trials.export.export import ModelCard, export_student, verify_manifest
from trials.export.loads_in import loads_in
from trials.export.teacher_card import about_teacher
from trials.preparation import Preparation
from trials.teacher.teacher import load_tokenizer
from trials.trial import load_weights


def export_chosen(plan: Plan, preparation: Preparation, study: SearchStudy, chosen: Chosen, name: str) -> Path:
    """Export the student of ``chosen`` to the folder ``name`` of its budget. A fresh process verifies the checkpoint.

    An undamaged export of the same student with the same verdict stays as it is. Raises InputError when the student's
    weights are gone; the message names the folder and the way to get them back.
    """
    folder, label = plan.results / name, f"exported {name} {plan.part}".rstrip()
    numbers = plan.settings.export_dtype
    content = "; ".join([str(chosen.weights.relative_to(plan.folder)), chosen.verdict, chosen.other_text, numbers])
    if study.recall(label) == content and _is_undamaged(folder):
        return folder
    try:
        student = load_weights(trial_spec(plan, chosen.record.architecture), chosen.weights)
    except FileNotFoundError as error:
        raise InputError(f"{error}; restore the folder, or search again with a new --study") from error
    card = _card(plan, preparation, chosen)
    source = plan.target.folder
    exported = export_student(student, load_tokenizer(source), folder, card, getattr(torch, numbers), source)
    study.remember(label, content)
    return exported


def _is_undamaged(folder: Path) -> bool:
    try:
        verify_manifest(folder)
    except InputError:
        return False
    return True


def _card(plan: Plan, preparation: Preparation, chosen: Chosen) -> ModelCard:
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
        command=plan.command,
        final_tokens=chosen.final_tokens,
        comparison=chosen.verdict,
        other_text=chosen.other_text,
        metadata=about_teacher(plan.settings.model, plan.target.folder),
        loads_in=loads_in(shape, chosen.record.architecture),
    )
