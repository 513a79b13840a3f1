"""Makes the table that a study asks for (``--table``): writes its files, and prints it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from nas.choosing.outcome import Outcome
from nas.display.console import show
from nas.stages.events import Event, FilesWritten, Listener, SearchConcluded
from nas.tables.layers import layers_table, plot_layers
from nas.tables.pruned_gpt import pruned_gpt_table
from nas.tables.sparsity import SPARSITY, sparsity_table
from nas.tables.stack import STACK, stack
from nas.tables.study_table import StudyTable, csv_text, markdown, terminal

Maker = Callable[[Sequence[Outcome]], StudyTable]
Plotter = Callable[[Sequence[Outcome], Path], Sequence[Path]]

# By the value of --table. A study may have no figures.
MAKERS: dict[str, Maker] = {
    "layers": layers_table,
    "pruned-gpt": pruned_gpt_table,
    SPARSITY: sparsity_table,
    STACK: stack,
}
PLOTTERS: dict[str, Plotter] = {"layers": plot_layers}
REPORT = "report"


class TableWriter:
    """Writes the table of a search as Markdown and CSV, with its figures, when the search is concluded."""

    def __init__(self, announce: Listener) -> None:
        self.announce = announce

    def __call__(self, event: Event) -> None:
        if isinstance(event, SearchConcluded) and event.plan.settings.table:
            folder = event.plan.folder / REPORT
            folder.mkdir(parents=True, exist_ok=True)
            self.announce(FilesWritten(write_table(event.outcomes, folder), REPORT))


def write_table(outcomes: Sequence[Outcome], folder: Path) -> list[Path]:
    """Write the table of the ``outcomes`` of a search, and its figures. Returns the files."""
    name = outcomes[0].plan.settings.table
    assert name is not None, "a search without a table has none to write"
    table = MAKERS[name](outcomes)
    files = {f"{table.name}.md": markdown(table), f"{table.name}.csv": csv_text(table)}
    for file, text in files.items():
        (folder / file).write_text(text, "utf-8")
    figures = PLOTTERS[name](outcomes, folder) if name in PLOTTERS else ()
    return [*(folder / file for file in files), *figures]


def print_table(outcomes: Sequence[Outcome], console: Console) -> None:
    """Print the table of the ``outcomes`` of a search, if it asks for one."""
    name = outcomes[0].plan.settings.table
    if not name:
        return
    table = MAKERS[name](outcomes)
    console.print()
    show(terminal(table), console, [one.name for one in table.columns if not one.needed])
    for note in table.notes:
        console.print(note, style="dim", soft_wrap=not console.is_terminal)
    console.print()
