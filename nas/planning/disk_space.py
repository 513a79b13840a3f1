"""What a plan writes to the disk of its output folder, in closed form, and whether the disk has as much.

These are upper bounds. Nothing is started and nothing is measured.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from nas.planning.plan import Plan
from search_spaces.errors import InputError
from trials.storage.disk import free_bytes, mount_of

TRAINED_BYTES = 12  # of one parameter: its weight and Adam's two moments
STUDENT_BYTES, EXPORTED_BYTES = 4, 4
MODELS, COPIES = 2, 2  # the best model and the best stock one; in the output folder and in MLflow's artifacts
CHECKPOINTS = 3  # of a running trial: the two that are kept, and the one that is being written
TOKEN_BYTES = 4  # of the packed text
KEPT = 4  # trials of each budget whose students stay, at least: the best three and the best stock one
OTHER_BYTES = 64 * 2**20  # databases, reports, plots and the outbox


@dataclass(frozen=True)
class DiskSpace:
    """Bytes that a search writes, by what they are for.

    - ``cache``: text, scores, streams and targets of the teacher, which other searches share;
    - ``checkpoints`` of all trials that run at a time;
    - ``students`` of the trials that stay;
    - ``finals``: their students;
    - ``winners``: the exported models, in the output folder and in MLflow's artifacts;
    - ``other``: databases and reports.
    """

    cache: int
    checkpoints: int
    students: int
    finals: int
    winners: int
    other: int = OTHER_BYTES

    @property
    def total(self) -> int:
        """All of them together, since most of them stay."""
        return sum(asdict(self).values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size_of(count)}" for name, count in asdict(self).items() if count)
        return f"up to {size_of(self.total)} ({parts})"


def disk_space(plan: Plan) -> DiskSpace:
    """The space that ``plan`` needs if nothing of it is done."""
    largest = max(map(plan.target.shape.parameters, plan.target.feasible))
    finals = sum(_finals(part) for part in plan.parts)
    trains = bool(plan.recipe.tokens or finals)
    return DiskSpace(
        cache=_cache(plan),
        checkpoints=plan.resources.workers * CHECKPOINTS * TRAINED_BYTES * largest * trains,
        students=(sum(_students(part) for part in plan.parts) + plan.resources.workers) * STUDENT_BYTES * largest,
        finals=finals * STUDENT_BYTES * largest,
        winners=MODELS * COPIES * len(plan.parts) * EXPORTED_BYTES * largest,
    )


def check_disk_space(plan: Plan) -> None:
    """Raise InputError when the disk of the output folder has less than the plan still has to write.

    A study that was prepared before has its cache. What its folder holds is written already.
    """
    needed = disk_space(plan)
    begun = (plan.folder / "trials").is_dir()
    left = needed.total - (needed.cache + _held(plan.folder) if begun else 0)
    free = free_bytes(plan.output)
    if free < left:
        raise InputError(
            f"--output {plan.output}: the disk at {mount_of(plan.output)} has {size_of(free)} free, and this search "
            f"writes {needed}{f', of which {size_of(left)} are left' if begun else ''}; free some, or give another "
            "--output, a smaller --final-tokens or fewer --workers; --force starts all the same"
        )


def _cache(plan: Plan) -> int:
    from trials.teacher.streams import bytes_per_token, most_windows  # seconds: a plan is printed without them
    from trials.teacher.targets import target_bytes

    recipe, shape, device = plan.recipe, plan.target.shape, plan.resources.device
    more = plan.final_tokens if plan.settings.finalists else 0
    validation = recipe.validation_tokens * (1 + len(recipe.validation))
    streams = most_windows(shape, recipe.sequence_length, device) * recipe.sequence_length if recipe.refit else 0
    streams = min(streams, recipe.calibration_samples * recipe.sequence_length)
    targets = target_bytes(shape, recipe.text_tokens, device, recipe.targets_for(recipe.tokens))
    if more:  # finals read on, perhaps in another kind of targets, and measure their divergence on validation text
        targets += target_bytes(shape, recipe.text_tokens + more, device, recipe.targets_for(recipe.tokens + more))
        targets += target_bytes(shape, validation, device, "cached")
    directions = STUDENT_BYTES * shape.hidden**2 if recipe.refit else 0
    text = TOKEN_BYTES * (2 * recipe.text_tokens + more + 2 * validation)  # once for trials, once more for finals
    return targets + text + directions + streams * bytes_per_token(shape, device)


def _students(part: Plan) -> int:
    """How many trials of a budget keep their students. With several objectives any trial may be chosen in the end."""
    kept = max(KEPT, part.settings.finalists + 1) + len(set(part.baselines.values()))
    return part.trials if len(part.objectives) > 1 else min(part.trials, kept)


def _finals(part: Plan) -> int:
    return part.settings.finalists and min(part.settings.finalists, part.trials) + 1 + len(set(part.baselines.values()))


def _held(folder: Path) -> int:
    """The bytes of all files below ``folder``."""
    return sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())


def size_of(count: int) -> str:
    """``count`` bytes for a person."""
    return f"{math.ceil(count / 1e8) / 10:.1f} GB" if count >= 1e9 else f"{math.ceil(count / 1e6):,} MB"
