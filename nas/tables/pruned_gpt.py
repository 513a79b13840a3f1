"""The table of the study pruned-gpt: Minitron's strategies for gpt2-medium, as published, beside those of a search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nas.choosing.comparison import TEACHER, WINNER, ComparisonRow
from nas.choosing.outcome import Outcome
from nas.display.readings_table import figure
from nas.report.final_report import on_test_notes
from nas.stages.on_test_text import compared_roles
from nas.study.records import FinalRecord, TrialRecord
from nas.tables.study_table import Cell, Column, StudyTable
from search_spaces.architecture import Architecture
from search_spaces.shape import ModelShape
from trials.evaluate.reading import TOKEN_PERPLEXITY, Reading

KD_TOKENS = 256  # the original sums its distillation loss over a sequence of so many tokens
METRICS = {"wikitext-2": TOKEN_PERPLEXITY, "lambada": "last-word perplexity", "ptb": TOKEN_PERPLEXITY}  # by task
GPT2_MEDIUM = Architecture.uniform(24, 1024, 16, 4096)
GPT2_VOCABULARY, GPT2_POSITIONS = 50_257, 1_024
UNTRAINED, TRAINED = "no", "yes"  # whether the student is retrained


@dataclass(frozen=True)
class Published:
    """A student of github.com/rammalahmad/pruned_GPT, an implementation of Minitron (arXiv 2407.14679).

    ``before`` is its perplexity on WikiText-2 before retraining (saved_metrics/eval_metrics.json). ``after`` holds
    those on WikiText-2, LAMBADA and PTB after it, and ``kd`` is the KD validation loss (README.md).
    """

    architecture: Architecture
    before: float
    after: tuple[float, float | None, float | None]
    kd: float | None


PUBLISHED = (
    Published(Architecture.uniform(24, 1024, 10, 3072), 2694.69, (42.50, None, None), None),
    Published(Architecture.uniform(20, 1024, 12, 3584), 85.16, (34.35, 50.38, 52.53), 10.34),
    Published(Architecture.uniform(16, 1024, 16, 4096), 43.56, (32.29, 51.05, 54.47), 11.03),
    Published(Architecture.uniform(24, 1024, 12, 2560), 4044.11, (39.47, 58.66, 57.32), 16.25),
)
TEACHER_WIKITEXT = 21.97  # of gpt2-medium, by the original's evaluator (depth_pruning.ipynb)
ABOUT_PUBLISHED = (
    "published: github.com/rammalahmad/pruned_GPT with openai-community/gpt2-medium; it ranks layers on WikiText-2's "
    "test split; its student of 266.7M parameters is retrained on text alone",
    "of the published figures, only WikiText-2 is read as ours is: LAMBADA is the perplexity of all words, PTB is read "
    "at a stride that is not stated, and KD val loss is on other text and counts padding",
)
ABOUT_LOSSES = (
    f"KD val loss: KL(teacher || student) on validation text after retraining, in nats for {KD_TOKENS} tokens, the "
    "length of the original's sequences; no padding is read",
    "val loss: cross-entropy on validation text, in nats a token",
)


def _whole(value: Cell) -> str:
    return "" if value is None else f"{value:,}"


def _perplexity(value: Cell) -> str:
    return "" if value is None else figure(float(value), "")


def _loss(value: Cell) -> str:
    return "" if value is None else f"{value:.4f}"


COLUMNS = (
    Column("model", is_number=False),
    Column("strategy", is_number=False),
    Column("trained", is_number=False),
    Column("parameters", _whole),
    Column("val loss", _loss, needed=False),
    Column("layers", needed=False),
    Column("width", _whole, needed=False),
    Column("heads", needed=False),
    Column("MLP", _whole, needed=False),
    Column("WikiText-2", _perplexity),
    Column("LAMBADA", _perplexity),
    Column("PTB", _perplexity),
    Column("KD val loss", _perplexity, needed=False),
)
Row = tuple[Cell, ...]


def pruned_gpt_table(outcomes: Sequence[Outcome]) -> StudyTable:
    """The table for the ``outcomes`` of a search, one for each budget.

    The published rows come first, if the teacher has the sizes of gpt2-medium. Then come the teacher and, for each
    budget, the winner and the baselines, before and after retraining. What is not known stays empty.
    """
    shape = outcomes[0].plan.target.shape
    published = _is_gpt2_medium(shape)
    rows = [*(_published(shape) if published else ()), _teacher(outcomes[0])]
    rows += [row for outcome in outcomes for row in _measured(outcome)]
    comparison = outcomes[0].comparison
    on_test = on_test_notes(comparison) if comparison else []
    notes = (*(ABOUT_PUBLISHED if published else ()), *on_test, *ABOUT_LOSSES)
    return StudyTable("pruned-gpt", "pruned-gpt: depth, width, and both", COLUMNS, tuple(rows), notes)


def strategy(shape: ModelShape, one: Architecture) -> str:
    """The original's name for what was cut from a teacher of ``shape``: depth, width, or depth + width."""
    if one.depth == shape.layers:
        return "width"
    pure = one.hidden == shape.hidden and min(one.heads) == shape.heads and min(one.mlp) == shape.mlp
    return "depth" if pure else "depth + width"


def _is_gpt2_medium(shape: ModelShape) -> bool:
    vocabulary = shape.family == "gpt2" and (shape.vocab, shape.positions) == (GPT2_VOCABULARY, GPT2_POSITIONS)
    return vocabulary and shape.full == GPT2_MEDIUM


def _published(shape: ModelShape) -> Iterator[Row]:
    yield _row(("teacher, published", "", ""), shape, GPT2_MEDIUM, (TEACHER_WIKITEXT, None, None))
    for one in PUBLISHED:
        name = strategy(shape, one.architecture)
        yield _row(("published", name, UNTRAINED), shape, one.architecture, (one.before, None, None))
        yield _row(("published", name, TRAINED), shape, one.architecture, one.after, one.kd)


def _teacher(outcome: Outcome) -> Row:
    shape, rows = outcome.plan.target.shape, outcome.comparison.rows if outcome.comparison else ()
    read = next((one.test for one in rows if TEACHER in one.roles), ())
    return _row((TEACHER, "", ""), shape, shape.full, _perplexities(read), loss=outcome.preparation.teacher_loss)


def _measured(outcome: Outcome) -> Iterator[Row]:
    """The rows of the winner and of the baselines of one budget; without a final stage, of the best trial."""
    comparison = outcome.comparison
    if comparison is None:
        yield from _before_and_after(outcome, WINNER, outcome.winner.record, None)
        return
    finals = {one.architecture.key: one for one in comparison.finals}
    for row in comparison.rows:
        if names := compared_roles(outcome.plan, row):
            yield from _before_and_after(outcome, ", ".join(names), finals[row.architecture], row)


def _before_and_after(
    outcome: Outcome, name: str, record: TrialRecord | FinalRecord, row: ComparisonRow | None
) -> Iterator[Row]:
    shape, one = outcome.plan.target.shape, record.architecture
    before, after = (row.before, row.test) if row else ((), ())
    first, kl = dict(record.curve).get(0), record.metrics.get("val_kl")
    kd = None if kl is None else KD_TOKENS * kl
    same = name, strategy(shape, one)
    yield _row((*same, UNTRAINED), shape, one, _perplexities(before), loss=first)
    yield _row((*same, TRAINED), shape, one, _perplexities(after), kd, record.val_loss)


def _row(
    words: Row, shape: ModelShape, one: Architecture, read: Row, kd: float | None = None, loss: float | None = None
) -> Row:
    """The cells of the architecture ``one``. Heads and MLP neurons are those of an average layer."""
    heads, neurons = (round(sum(sizes) / one.depth) for sizes in (one.heads, one.mlp))
    return *words, shape.parameters(one), loss, one.depth, one.hidden, heads, neurons, *read, kd


def _perplexities(readings: Sequence[Reading]) -> Row:
    found = {(one.task, one.metric): one.value for one in readings}
    return tuple(found.get(kind) for kind in METRICS.items())
