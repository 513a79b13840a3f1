"""A search of seconds: the teacher of conftest, a page of text, trials of a few steps, one thread each."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

ROOT = Path(__file__).resolve().parents[1]
WORDS = ("teacher", "student", "layer", "head", "neuron", "prune", "distil", "keep", "rank", "token", "text", "wide")


def write_text(folder: Path) -> Path:
    """A text file of about 60 kB in `folder`, the same each time."""
    chance = random.Random(0)
    paragraphs = (" ".join(chance.choices(WORDS, k=60)) for _ in range(160))
    file = folder / "text.txt"
    file.write_text("\n\n".join(paragraphs), "utf-8")
    return file


def arguments(teacher: Path, text: Path, output: Path, study: str, **changes: Any) -> list[str]:
    """Flags of the command; `changes` by setting name."""
    settings = {
        "model": teacher,
        "corpus": text,
        "output": output,
        "study": study,
        "budget": "60%",
        "tolerance": 0.2,
        "sampler": "screen",
        "screened": 6,
        "trials": 4,
        "tokens_per_trial": 4096,
        "sequence_length": 64,
        "batch_tokens": 256,
        "validation_tokens": 1024,
        "calibration_samples": 4,
        "workers": 2,
        "cpus_per_trial": 1,
        "finalists": 0,
        "test_tokens": 256,
    }
    return [part for name, value in {**settings, **changes}.items() for part in (_flag(name), str(value))]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def trials_in(output: Path, study: str) -> list[FrozenTrial]:
    """All trials in the study's database, as anybody with Optuna can read them."""
    loaded = optuna.load_study(storage=f"sqlite:///{output}/studies.db", study_name=study)
    return loaded.get_trials(deepcopy=False)


def sizes(trial: FrozenTrial) -> tuple[tuple[str, Any], ...]:
    """The architecture of a trial, to compare and to count."""
    return tuple(sorted(trial.params.items()))


def clean_environment(**changes: str) -> dict[str, str]:
    """The environment without what would change a search."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NAS_", "MLFLOW_", "RAY_"))}
    return {**kept, "HF_HUB_OFFLINE": "1", **changes}
