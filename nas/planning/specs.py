"""What the workers of a plan are asked to do, and the folders that they write."""

from __future__ import annotations

from pathlib import Path

from nas.planning.plan import Plan
from nas.study.records import FinalRecord
from search_spaces.architecture import Architecture
from trials.distill.results import STUDENT
from trials.final import FinalSpec, read_windows
from trials.losses.window_losses import WindowLosses
from trials.trial import TrialSpec


def trial_spec(plan: Plan, architecture: Architecture) -> TrialSpec:
    """The trial of ``architecture``. Its folder has the architecture's name, so a retry finds the checkpoint."""
    return TrialSpec(
        recipe=plan.recipe,
        architecture=architecture,
        directory=str(plan.trial_folder(architecture)),
        cache=str(plan.cache),
        device=plan.resources.device,
    )


def final_spec(plan: Plan, record: FinalRecord) -> FinalSpec:
    """The final of ``record``. Its folder is named after architecture and tokens, so a retry finds the checkpoint."""
    return FinalSpec(trial_spec(plan, record.architecture), plan.final_tokens, str(plan.final_folder(record.name)))


def trial_student(plan: Plan, architecture: Architecture) -> Path:
    """The folder of the student that a trial left, for `trials.trial.load_weights`."""
    return plan.trial_folder(architecture) / STUDENT


def final_student(plan: Plan, record: FinalRecord) -> Path:
    """The folder of the student that a final left, for `trials.trial.load_weights`."""
    return plan.final_folder(record.name) / STUDENT


def final_windows(plan: Plan, record: FinalRecord) -> WindowLosses | None:
    """The loss of a COMPLETE final on every validation window, or None when its files are gone."""
    return read_windows(plan.final_folder(record.name), record.windows)
