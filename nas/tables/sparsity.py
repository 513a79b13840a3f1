"""The table of the studies "sparsity" and "pdp": sparsity, how it was made, and perplexity before and after."""

from __future__ import annotations

from collections.abc import Sequence

from nas.choosing.outcome import Outcome
from nas.choosing.selection import perplexity
from nas.study.records import TrialRecord
from nas.tables.study_table import Cell, Column, StudyTable
from search_spaces.compression import MATRICES, Compression, Sparsity
from trials.recipe import Recipe

SPARSITY = "sparsity"


def sparsity_table(outcomes: Sequence[Outcome]) -> StudyTable:
    """The teacher and every complete trial of the search, by sparsity; of equal ones, the smallest loss first."""
    plan, teacher = outcomes[0].plan, outcomes[0].preparation.teacher_loss
    records = [one for outcome in outcomes for one in outcome.records if one.val_loss is not None]
    ordered = sorted(records, key=lambda one: (one.architecture.compression.sparsity.level, one.val_loss))
    trained = plan.recipe.tokens > 0
    rows = [("teacher", 0.0, "", "", None, perplexity(teacher), ""), *(_row(one, plan.recipe) for one in ordered)]
    title = f"sparsity of {plan.recipe.model}, {plan.recipe.tokens:,} tokens"
    return StudyTable(SPARSITY, title, COLUMNS, tuple(rows), NOTES if trained else NOTES[1:])


def _taught_by(recipe: Recipe, sparsity: Sparsity) -> str:
    """Whether a student was distilled, in a word."""
    share = recipe.text_share if sparsity.distilled else 1.0
    return "no" if not recipe.tokens or share == 1 else "partly" if share else "yes"


def _row(record: TrialRecord, recipe: Recipe) -> tuple[Cell, ...]:
    compression = record.architecture.compression
    before = perplexity(record.curve[0][1]) if record.curve and record.curve[0][0] == 0 else None
    assert record.val_loss is not None, "only complete trials have a row"
    bits = "" if compression.quantization.scheme == "none" else compression.quantization.key
    loss, level = perplexity(record.val_loss), compression.sparsity.level
    distilled = _taught_by(recipe, compression.sparsity)
    return record.architecture.plain.key, level, how(compression), bits, before, loss, distilled


def how(compression: Compression) -> str:
    """How the zeros were chosen, in words."""
    sparsity = compression.sparsity
    if not sparsity.level:
        return ""
    parts = [sparsity.method, *(["2:4"] if sparsity.kind == "2:4" else [])]
    if sparsity.end:
        parts.append(f"from {sparsity.start:.0%} to {sparsity.end:.0%} of the steps")
    changed = ("tau", "warmup", "beta", "rate") if sparsity.method == "pdp" else ()
    parts += [f"{name} {getattr(sparsity, name):g}" for name in changed if _shown(sparsity, name)]
    parts += ["mask-aware"] if sparsity.mask_aware else []
    return ", ".join(parts + ([] if sparsity.matrices == MATRICES else [f"{' and '.join(sparsity.matrices)} only"]))


def _shown(sparsity: Sparsity, name: str) -> bool:
    return name == "tau" or getattr(sparsity, name) != getattr(Sparsity, name)


def _figure(value: Cell) -> str:
    return "" if value is None else f"{value:,.2f}"


COLUMNS = (
    Column("model", is_number=False, needed=False),
    Column("sparsity", lambda value: f"{value:.1%}"),
    Column("how", is_number=False),
    Column("bits", is_number=False, needed=False),
    Column("perplexity before", _figure, needed=False),
    Column("perplexity", _figure),
    Column("distilled", is_number=False),
)
NOTES = (
    "Before: without retraining. Where the level rises while the student trains, nothing is 0 yet.",
    "Sparsity is that of the matrices of all layers, counted in the weights. Perplexity is that of one token.",
)
