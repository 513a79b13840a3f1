"""Compares students of one size in bytes: made smaller in one way only, and by ways mixed.

    python -m benchmarks.search.one_way --budget 35%B

For each kind, all architectures of its space inside the band are candidates. At most ``--screened`` of them, drawn by
the seed, are measured before training, as a search does. The best ``--trials`` are distilled on the same tokens. Even
windows of the validation text choose the best one of a kind. Odd windows, which nothing was chosen by, give the printed
losses and their 95 % intervals.

A kind without a candidate in the band is shown by its candidate nearest to it, with the bytes that this one takes.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from benchmarks.flags import flags_of, plan_of
from nas.choosing.bootstrap import paired_difference
from nas.planning.plan import Plan
from nas.planning.specs import trial_spec
from search_spaces.architecture import Architecture
from search_spaces.files import load_space
from search_spaces.stored_size import fits, stored_bytes
from trials.compress.compress import round_weights
from trials.families.lookup import family_of
from trials.losses.window_losses import window_losses
from trials.preparation import shared
from trials.screen import screen
from trials.text.corpus import windows
from trials.trial import load_student, run_trial

WHOLE: dict[str, Any] = {"depth": ["100%"], "hidden": ["100%"], "heads": ["100%"], "mlp": ["100%"]}
LEVELS = [{"level": round(0.05 * count, 2), "method": "sparsegpt"} for count in range(6, 20)]
KINDS: dict[str, dict[str, Any]] = {
    "structure only": {
        "depth": {"min": "25%", "step": 1},
        "hidden": {"min": "37.5%", "step": "12.5%"},
        "heads": {"min": "25%", "step": "12.5%"},
        "mlp": {"min": "25%", "step": "12.5%"},
    },
    "sparsity only": {**WHOLE, "sparsity": LEVELS},
    "quantization only": {**WHOLE, "quantization": ["int8", "nf4"]},
    "mixture": {
        "depth": {"min": "75%", "step": 1},
        "hidden": {"min": "75%", "step": "12.5%"},
        "heads": {"min": "75%", "step": "12.5%"},
        "mlp": {"min": "50%", "step": "12.5%"},
        "sparsity": [
            0,
            {"level": 0.5, "method": "sparsegpt"},
        ],  # a quarter would save no byte beside NF4
        "quantization": ["none", "int8", "nf4"],
    },
}


@dataclass(frozen=True)
class Student:
    """A distilled student of a ``kind``, with its losses on the windows that choose and on those that are shown."""

    kind: str
    architecture: Architecture
    size: int
    before: float
    chosen_by: NDArray[np.float64]
    shown: NDArray[np.float64]


def candidates(plan: Plan, kind: str, count: int) -> list[Architecture]:
    """At most ``count`` candidates of ``kind`` in the band, or the one nearest to it."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(KINDS[kind], file)
        file.flush()
        space = load_space(file.name, plan.target.shape)
    shape, budget = plan.target.shape, plan.target.budget
    whole = [one for one in space if one.heads[0] == one.kv_heads[0] * shape.group]  # groups of heads as the teacher's
    inside = [one for one in whole if fits(budget, shape, one)]
    if not inside:
        return [min(whole, key=lambda one: abs(stored_bytes(shape, one) - budget.maximum))]
    return random.Random(plan.settings.seed).sample(inside, min(count, len(inside)))


def students(plan: Plan, kind: str, screened: int, trials: int) -> list[Student]:
    """The best ``trials`` candidates of ``kind`` by their loss before training, after it."""
    found = candidates(plan, kind, screened)
    losses = {one: screen(trial_spec(plan, one)) for one in found}
    return [_trained(plan, kind, one, losses[one]) for one in sorted(found, key=lambda one: losses[one])[:trials]]


def _trained(plan: Plan, kind: str, one: Architecture, before: float) -> Student:
    spec = trial_spec(plan, one)
    run_trial(spec, lambda *_: None)
    student, common = load_student(spec), shared(spec.recipe, spec.cache, spec.device)
    round_weights(student, one.compression)
    text = windows(common.corpus.validation, spec.recipe.sequence_length)
    losses = window_losses(student, family_of(common.teacher.model.config), text)
    return Student(kind, one, stored_bytes(plan.target.shape, one), before, losses[::2], losses[1::2])


def main() -> None:
    """Print the table, and write it as JSON."""
    parser = flags_of(__doc__, budget="35%B", tokens_per_trial=32_768, validation_tokens=32_768, space="mixed")
    parser.add_argument("--screened", type=int, default=48)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    plan = plan_of(argparse.Namespace(**{**vars(flags), "trials": 1}))
    shape = plan.target.shape
    print(f"budget {plan.target.budget}; teacher {stored_bytes(shape, shape.full):,} bytes in bfloat16", flush=True)
    best: list[Student] = []
    for kind in flags.kinds:
        found = students(plan, kind, flags.screened, flags.trials)
        for one in found:
            print(f"  {kind:18} {one.architecture.key:40} {one.before:.4f} {one.chosen_by.mean():.4f}", flush=True)
        best.append(min(found, key=lambda one: one.chosen_by.mean()))
    _print(plan, best, flags.json)


def _print(plan: Plan, best: list[Student], file: Path | None) -> None:
    winner = next((one for one in best if one.kind == "mixture"), best[-1])
    print(f"{'kind':18} {'architecture':40} {'MB':>8} {'before':>8} {'loss':>8}  minus mixture [95 %]")
    rows = []
    for one in best:
        difference = paired_difference({"text": one.shown}, {"text": winner.shown})
        inside = "" if fits(plan.target.budget, plan.target.shape, one.architecture) else "  above the budget"
        compared = "" if one is winner else str(difference)
        size, loss = f"{one.size / 1e6:8.2f}", one.shown.mean()
        print(f"{one.kind:18} {one.architecture.key:40} {size} {one.before:8.4f} {loss:8.4f}  {compared}{inside}")
        row = {"kind": one.kind, "architecture": one.architecture.to_dict(), "bytes": one.size, "loss": loss}
        rows.append({**row, "before": one.before, "minus mixture": difference.to_dict()})
    if file:
        file.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
