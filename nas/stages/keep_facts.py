"""What a study keeps beside its trials, so that a report can be made from the study alone: `nas.study.snapshot`."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.choosing.document import document
from nas.choosing.outcome import Outcome
from nas.planning.forecast import plan_lines
from nas.planning.plan import Plan
from nas.running.tasks import PreparedTeacher
from nas.study.snapshot import FORMAT, IMPORTANCE, PLAN, RESULT, SECONDS, SIZES, TEACHER, sizes_of
from nas.study.study import SearchStudy
from search_spaces.architecture import Architecture
from search_spaces.shape import ModelShape
from trials.storage.redact import redacted
from trials.teacher.revision import commit_of

PACKAGES = ("llm-nas", "torch", "transformers", "ray", "optuna", "mlflow")
AT_ONCE = 200  # architectures in one attribute: some databases hold at most 64 KB in each
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the scores of a layer's neurons
SHARES = 128  # most points of the curve of the residual stream


def keep_facts(plan: Plan, study: SearchStudy, teacher: PreparedTeacher) -> None:
    """Keep the plan, the teacher and its importance scores."""
    preparation, shape = teacher.preparation, plan.target.shape
    settings = {name: _shown(value) for name, value in plan.settings.model_dump(exclude_none=True).items()}
    limits = [(part.part, part.target.budget, part) for part in plan.parts]
    study.remember(
        PLAN,
        {
            "format": FORMAT,
            "command": plan.command,
            "settings": settings,
            "lines": plan_lines(plan),
            "recipe": plan.recipe.to_dict(),
            "final_tokens": plan.final_tokens if plan.settings.finalists else 0,
            "objectives": list(plan.objectives),
            "budgets": [
                {**asdict(budget), "part": name, "feasible": len(part.target.feasible), "trials": part.trials}
                | {"screenings": part.screenings, "baselines": {key: one.key for key, one in part.baselines.items()}}
                for name, budget, part in limits
            ],
            "folder": str(plan.folder),
            "versions": _versions(),
        },
    )
    study.remember(
        TEACHER,
        {
            "shape": asdict(shape),
            "parameters": shape.parameters(shape.full),
            "val_loss": preparation.teacher_loss,
            "val_losses": dict(preparation.teacher_losses),
            "corpus": preparation.corpus,
            "fingerprint": preparation.fingerprint,
            "commit": commit_of(plan.target.folder),
        },
    )
    study.remember(IMPORTANCE, _importance(teacher))


def keep_sizes(study: SearchStudy, shape: ModelShape, architectures: Iterable[Architecture], sequence: int) -> None:
    """Keep the sizes and costs of ``architectures``; FLOPs are those of a token in a ``sequence`` of this length."""
    rows = [(one.key, sizes_of(one, shape, sequence)) for one in architectures]
    for place in range(0, len(rows), AT_ONCE):
        study.remember(f"{SIZES} {place}", dict(rows[place : place + AT_ONCE]))


def keep_result(study: SearchStudy, outcome: Outcome) -> None:
    """Keep the result of one budget."""
    study.remember(f"{RESULT} {outcome.plan.part}".strip(), {**document([outcome]), "concluded": time.time()})


@contextmanager
def timed(study: SearchStudy, stage: str) -> Iterator[None]:
    """Keep how many seconds the block took, as `add_seconds` does."""
    began = time.monotonic()
    try:
        yield
    finally:
        add_seconds(study, stage, began)


def add_seconds(study: SearchStudy, stage: str, began: float) -> None:
    """Add the seconds since ``began``, by the monotonic clock, to those of the ``stage`` in all runs of the command."""
    known = study.recall(SECONDS) or {}
    study.remember(SECONDS, {**known, stage: known.get(stage, 0.0) + time.monotonic() - began})


def _shown(value: Any) -> Any:
    return redacted(value) if isinstance(value, str) else value


def _versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide what is computed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a folder, such as the working directory of a Ray job
            continue
    return found


def _importance(teacher: PreparedTeacher) -> dict[str, Any]:
    """The scores, few enough for a picture.

    ``layers`` (L,); ``heads`` (L, A), each layer's scores as shares of its largest; ``mlp`` (L, 5), `QUANTILES` of each
    layer's scores; ``shares``, pairs (width, share of the square of the stream that so many components keep).
    """
    scores, shares = teacher.scores, teacher.shares
    heads = scores.heads / scores.heads.max(axis=1, keepdims=True)
    kept: list[tuple[int, float]] = []
    if shares is not None:
        widths = np.unique(np.linspace(1, len(shares), SHARES).astype(int))
        kept = [(int(width), float(f"{shares[:width].sum():.4g}")) for width in widths]
    return {
        "layers": _rounded(scores.layers),
        "heads": _rounded(heads),
        "mlp": _rounded(np.quantile(scores.mlp, QUANTILES, axis=1).T),
        "shares": kept,
    }


def _rounded(values: NDArray[np.floating]) -> Any:
    """The ``values`` as lists, with four significant digits."""
    return np.vectorize(lambda one: float(f"{one:.4g}"), otypes=[float])(values).tolist()
