"""Where the time, the tokens and the FLOPs of a search went, and what failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nas.report.html.models import Model
from nas.study.snapshot import SECONDS, StudySnapshot
from trials.recipe import SCREEN_CALIBRATION, SCREEN_VALIDATION

TRAINING = 3  # a backward pass takes twice the FLOPs of a forward pass


@dataclass(frozen=True)
class Stage:
    """One stage of a search: ``what`` was done, the ``seconds`` on the clock, and the work.

    ``tokens`` are those that students were trained on. ``read`` are those that students, or in the preparation the
    teacher, read without training. ``flops`` are all these passes in matrix products. Refits are not counted.
    """

    name: str
    what: str
    seconds: float | None
    tokens: int
    read: int
    flops: float


@dataclass(frozen=True)
class Failure:
    """An architecture that failed in a stage, and why."""

    stage: str
    key: str
    reason: str


def stages_of(found: StudySnapshot, models: Sequence[Model]) -> tuple[Stage, ...]:
    """All stages in their order."""
    seconds, recipe = found.attributes.get(SECONDS, {}), found.attributes["plan"]["recipe"]
    texts = 1 + len(recipe.get("validation", ()))
    each, per_screen = recipe["validation_tokens"] * texts, SCREEN_VALIDATION * texts
    per_screen += SCREEN_CALIBRATION if recipe.get("refit", True) else 0
    screened = [(one, 0, per_screen) for one in models if one.screen is not None]
    tried, finals = [one for one in models if one.trial], [one for one in models if one.final]
    trials = [(one, _tokens(one), each * _readings(one)) for one in tried]
    finished = [(one, *_of_final(one, each)) for one in finals]
    return (
        _preparation(found, seconds.get("prepare"), each),
        _stage("screen", f"{len(screened)} architectures", seconds.get("screen"), screened),
        _stage("try", f"{len(tried)} trials", seconds.get("try"), trials),
        _stage("finish", f"{len(finals)} finals", seconds.get("finish"), finished),
        Stage("conclude", "comparison, test texts, export", seconds.get("conclude"), 0, 0, 0.0),
    )


def _preparation(found: StudySnapshot, seconds: float | None, validation: int) -> Stage:
    """The teacher reads ``validation`` tokens and the calibration text, and the training text unless it is online.

    An online teacher reads the training text once for each student; its passes are not counted.
    """
    plan, shape = found.attributes["plan"], found.shape
    recipe = plan["recipe"]
    calibration = recipe["calibration_samples"] * recipe["sequence_length"]
    stored = recipe["tokens"] + plan["final_tokens"] if recipe.get("teacher_targets") != "online" else 0
    read = validation + calibration + stored
    flops = read * shape.flops_per_token(shape.full, recipe["sequence_length"])
    return Stage("prepare", "teacher, text, importance scores, targets", seconds, 0, read, float(flops))


def largest(stages: Sequence[Stage]) -> dict[str, float]:
    """The largest seconds, tokens and FLOPs of a stage; 1 where there are none."""
    names = ("seconds", "tokens", "flops")
    return {name: max((getattr(one, name) or 0.0 for one in stages), default=0.0) or 1.0 for name in names}


def failures_of(models: Sequence[Model], found: StudySnapshot) -> tuple[Failure, ...]:
    """What failed, in the order of the stages. A trial that was stopped early did not fail."""
    screens = [Failure("screen", key, "no loss") for key, loss in found.screened.items() if loss is None]
    trials = [
        Failure(f"trial {one.number}", one.architecture.key, one.reason or "")
        for one in found.records
        if one.state == "FAIL"
    ]
    finals = [
        Failure("final", one.key, one.final.reason) for one in models if one.final and one.final.state == "failed"
    ]
    return (*screens, *trials, *finals)


def _stage(name: str, what: str, seconds: float | None, work: Sequence[tuple[Model, int, int]]) -> Stage:
    """``work`` holds for each model the tokens that it was trained on, and those that it read."""
    flops = sum(model.flops * (TRAINING * trained + read) for model, trained, read in work)
    return Stage(name, what, seconds, sum(one[1] for one in work), sum(one[2] for one in work), float(flops))


def _tokens(model: Model) -> int:
    return model.trial.tokens if model.trial else 0


def _readings(model: Model) -> int:
    return len(model.trial.curve) if model.trial else 0


def _of_final(model: Model, each: int) -> tuple[int, int]:
    """The tokens that a final trained on beyond the model's trial, and those of validation text that it read."""
    assert model.final is not None, "only models with a final are counted"
    later = [tokens for tokens, _ in model.final.curve if tokens > _tokens(model) or not model.trial]
    return max(0, model.final.tokens - _tokens(model)), each * len(later)
