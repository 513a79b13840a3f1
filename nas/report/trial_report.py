"""The trials of a search as tables: for the terminal, and as Markdown and CSV for files."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from rich.table import Table
from rich.text import Text

from nas.choosing.selection import best_stock, last_reading, listing, perplexity, ranking
from nas.display.console import clock
from nas.study.records import STORED, TrialRecord, text_losses
from trials.text.validation import OF_TEXT

WIDTH = 150  # of the terminal table with all its columns, in characters
MOST_ROWS = 40  # of the terminal table; files have all trials
STATES = {"COMPLETE": "complete", "PRUNED": "stopped early", "FAIL": "failed", "RUNNING": "running"}


@dataclass(frozen=True)
class Row:
    """One trial as a line of the report. Files have their columns in the order of the fields.

    Losses are on validation text, in nats per token. ``zero_shot_loss`` is the loss before retraining. ``val_loss`` is
    the last loss, after ``tokens``; a trial that was stopped early has fewer tokens. ``losses`` holds the loss on each
    validation text if there are several, and each text has a column. ``share`` is the share of the teacher's
    parameters, and ``stored_bytes`` are those of the exported weights. ``heads``, ``kv_heads`` and ``mlp`` list all
    layers if the layers differ. ``seconds`` is wall time.
    """

    rank: int | None
    trial: int
    architecture: str
    depth: int
    hidden: int
    heads: str
    kv_heads: str
    mlp: str
    parameters: int
    share: float
    stored_bytes: int | None
    zero_shot_loss: float | None
    val_loss: float | None
    perplexity: float | None
    tokens: int
    seconds: float | None
    state: str
    reason: str
    stock: bool
    loads_in: str
    origin: str
    losses: Mapping[str, float]


def rows(records: Sequence[TrialRecord], teacher_parameters: int) -> list[Row]:
    """The lines of a report: COMPLETE trials by rank, then those stopped early, failed and running."""
    ranks = {one.number: rank for rank, one in enumerate(ranking(records), start=1)}
    return [_row(one, ranks.get(one.number), teacher_parameters) for one in listing(records)]


def terminal_table(
    records: Sequence[TrialRecord],
    teacher_parameters: int,
    title: str | None = None,
    final_roles: Mapping[str, str] | None = None,
) -> Table:
    """The report for a screen of `WIDTH` characters.

    The best trial is bold. Trials that are not complete are dim. The last column marks the best trial and the best
    stock one. After a final stage it shows the ``final_roles`` instead, which are by the architecture's key and include
    "winner". The lines below the table give the reasons of failed trials.
    At most `MOST_ROWS` trials are shown, the best ones.
    """
    table = Table(title=title, header_style="bold", box=None, pad_edge=False, collapse_padding=True)
    table.title_justify = table.caption_justify = "left"
    columns = COLUMNS if any(one.architecture.compression for one in records) else PLAIN_COLUMNS
    for column in columns:
        table.add_column(
            column.heading, justify=column.justify, no_wrap=True, overflow="ellipsis", max_width=column.width
        )
    stock = best_stock(records)
    lines = rows(records, teacher_parameters)
    for row in lines[:MOST_ROWS]:
        is_stock = stock is not None and row.trial == stock.number
        result = _result(row, best_stock=is_stock) if final_roles is None else _final_result(row, final_roles)
        style = "bold green" if result.startswith(("best,", "winner")) or result == "best" else ""
        style = style if row.rank else "dim"
        cells = [column.cell(row) for column in columns[:-1]]
        table.add_row(*(Text(cell) for cell in [*cells, result]), style=style)
    failures = [f"trial {row.trial} failed: {row.reason}" for row in lines if row.state == STATES["FAIL"]]
    more = [f"{len(lines) - MOST_ROWS} more trials are in results.md"] if len(lines) > MOST_ROWS else []
    table.caption = Text("\n".join([*more, *failures[:MOST_ROWS]])) if more or failures else None
    return table


def markdown_table(records: Sequence[TrialRecord], teacher_parameters: int) -> str:
    """The report as a Markdown table with every column of `Row`, ending in a newline."""
    found = rows(records, teacher_parameters)
    names = _columns(found)
    lines = [
        f"| {' | '.join(name.replace('_', ' ') for name in names)} |",
        f"|{'|'.join(_rule(one) for one in names)}|",
    ]
    for row in found:
        values = _values(row)
        cells = (_markdown(name, values.get(name)) for name in names)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def csv_text(records: Sequence[TrialRecord], teacher_parameters: int) -> str:
    """The report as CSV with every column of `Row` and unrounded numbers. Unknown values are empty."""
    text, found = io.StringIO(), rows(records, teacher_parameters)
    writer = csv.DictWriter(text, _columns(found), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_values(row) for row in found)
    return text.getvalue()


def _columns(found: Sequence[Row]) -> list[str]:
    """The columns of a file: the fields of `Row`, and after ``val_loss`` one column for each validation text."""
    texts = dict.fromkeys(f"{OF_TEXT}{name}" for row in found for name in row.losses)
    names = [one.name for one in fields(Row) if one.name != "losses"]
    place = names.index("val_loss") + 1
    return [*names[:place], *texts, *names[place:]]


def _values(row: Row) -> dict[str, object]:
    values = {**vars(row), **{f"{OF_TEXT}{name}": loss for name, loss in row.losses.items()}}
    return {name: value for name, value in values.items() if name != "losses"}


@dataclass(frozen=True)
class Column:
    """A column of the terminal table. ``cell`` is the text of a row, cut after ``width`` characters if it is given."""

    heading: str
    justify: Literal["left", "right"]
    cell: Callable[[Row], str]
    width: int | None = None


COLUMNS = (
    Column("rank", "right", lambda row: str(row.rank or "")),
    Column("trial", "right", lambda row: str(row.trial)),
    Column("architecture", "left", lambda row: row.architecture, width=30),
    Column("parameters", "right", lambda row: f"{row.parameters:,}"),
    Column("share", "right", lambda row: f"{row.share:.1%}"),
    Column("MB", "right", lambda row: "" if row.stored_bytes is None else f"{row.stored_bytes / 1e6:,.2f}"),
    Column("zero-shot", "right", lambda row: _number(row.zero_shot_loss, 3)),
    Column("val loss", "right", lambda row: _number(row.val_loss, 4)),
    Column("ppl", "right", lambda row: _number(row.perplexity, 2)),
    Column("tokens", "right", lambda row: compact(row.tokens)),
    Column("time", "right", lambda row: clock(row.seconds)),
    Column("loads in", "left", lambda row: row.loads_in),
    Column("result", "left", lambda row: row.state),
)
# Where nothing is done to weights: names are shorter then, and bytes are twice the parameters.
PLAIN_COLUMNS = tuple(
    replace(one, width=21) if one.heading == "architecture" else one for one in COLUMNS if one.heading != "MB"
)


def compact(number: float) -> str:
    """A number with three significant digits and a unit: 65.5k, 8.39M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:g}"


def _row(record: TrialRecord, rank: int | None, teacher_parameters: int) -> Row:
    architecture = record.architecture
    tokens, loss = last_reading(record) or (0, None)
    if record.val_loss is not None:
        loss = record.val_loss
    ended = record.started is not None and record.ended is not None
    return Row(
        rank=rank,
        trial=record.number,
        architecture=architecture.key,
        depth=architecture.depth,
        hidden=architecture.hidden,
        heads=_sizes(architecture.heads),
        kv_heads=_sizes(architecture.kv_heads),
        mlp=_sizes(architecture.mlp),
        parameters=record.parameters,
        share=record.parameters / teacher_parameters,
        stored_bytes=int(record.metrics[STORED]) if STORED in record.metrics else None,
        zero_shot_loss=record.curve[0][1] if record.curve and record.curve[0][0] == 0 else None,
        val_loss=loss,
        perplexity=None if loss is None else perplexity(loss),
        tokens=tokens,
        seconds=record.ended - record.started if ended else None,  # type: ignore[operator]
        state=STATES.get(record.state, record.state.lower()),
        reason=record.reason or "",
        stock=record.stock,
        loads_in=record.loads_in,
        origin=record.origin,
        losses=text_losses(record),
    )


def _sizes(sizes: tuple[int, ...]) -> str:
    return str(sizes[0]) if len(set(sizes)) == 1 else " ".join(map(str, sizes))


def _result(row: Row, *, best_stock: bool) -> str:
    if best_stock:
        return "best, stock" if row.rank == 1 else "best stock"
    if row.rank == 1:
        return "best"
    return "stock" if row.rank and row.stock else "" if row.rank else row.state


def _final_result(row: Row, roles: Mapping[str, str]) -> str:
    if not row.rank:
        return row.state
    return roles.get(row.architecture) or ("stock" if row.stock else "")


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}" if abs(value) < 10**5 else f"{value:.2g}"


def _rule(name: str) -> str:
    return (
        ":---"
        if name in ("architecture", "heads", "kv_heads", "mlp", "state", "reason", "stock", "loads_in", "origin")
        else "---:"
    )


def _markdown(name: str, value: object) -> str:
    if value is None:
        return ""
    if name in ("parameters", "tokens", "stored_bytes"):
        return f"{value:,}"
    if name == "share":
        return f"{value:.1%}"
    if name == "stock":
        return "yes" if value else "no"
    if isinstance(value, float):
        return _number(value, {"seconds": 1, "perplexity": 2}.get(name, 4))
    return " ".join(str(value).replace("|", "\\|").split())
