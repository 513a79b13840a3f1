from __future__ import annotations

import csv
import io
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tracking_reference import record

from nas.report.plots import plot_importance, plot_losses, plot_pareto, plot_sizes
from nas.report.trial_report import MOST_ROWS, WIDTH, Row, compact, csv_text, markdown_table, rows, terminal_table
from nas.study.records import TrialRecord
from search_spaces.architecture import Architecture

TEACHER = 8_000_000
Plot = Callable[[list[TrialRecord], Path], Path]
PLOTS: list[Plot] = [plot_losses, plot_pareto, plot_sizes]


@pytest.fixture
def records() -> list[TrialRecord]:
    """Trials in every state, the winner neither first nor stock."""
    return [
        record(0, "PRUNED", 2),
        record(1, "FAIL", 1, reason="NonFiniteLoss: loss is nan | step 3\nat 0x1"),
        record(2),
        record(3, val_loss=2.5),
        record(4, "RUNNING", 0),
    ]


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer pixels: most of the time of a plot goes into them."""
    monkeypatch.setattr("nas.report.plots.DPI", 30)


def shown(table: Table, width: int = 300) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_complete_trials_come_first_and_only_they_have_a_rank(records: list[TrialRecord]) -> None:
    report = rows(records, TEACHER)
    assert [(row.rank, row.trial, row.state) for row in report] == [
        (1, 3, "complete"),
        (2, 2, "complete"),
        (None, 0, "stopped early"),
        (None, 1, "failed"),
        (None, 4, "running"),
    ]


def test_a_row_says_what_the_record_says(records: list[TrialRecord]) -> None:
    row = next(row for row in rows(records, TEACHER) if row.trial == 2)
    one = records[2]
    assert row.val_loss == one.val_loss
    assert row.perplexity == math.exp(one.val_loss or 0)
    assert (row.zero_shot_loss, row.tokens) == (one.curve[0][1], one.curve[-1][0])
    assert (row.seconds, row.share) == (50.0, one.parameters / TEACHER)
    stopped = next(row for row in rows(records, TEACHER) if row.trial == 0)
    assert (stopped.tokens, stopped.val_loss) == records[0].curve[-1]


def test_csv_reads_back_to_the_same_values(records: list[TrialRecord]) -> None:
    read = list(csv.DictReader(io.StringIO(csv_text(records, TEACHER))))
    for line, row in zip(read, rows(records, TEACHER), strict=True):
        known = {name: str(value) if value is not None else "" for name, value in vars(row).items()}
        assert {name: value for name, value in known.items() if name != "losses"} == line


def test_the_tables_say_where_each_trial_loads(records: list[TrialRecord]) -> None:
    table = "\n".join(shown(terminal_table(records, TEACHER)))
    assert table.count("own code") == sum(one.loads_in == "own code" for one in records) > 0
    assert "transformers, vLLM, llama.cpp" in markdown_table(records, TEACHER)


def test_every_line_of_the_markdown_has_every_column(records: list[TrialRecord]) -> None:
    lines = markdown_table(records, TEACHER).splitlines()
    assert len(lines) == 2 + len(records)
    columns = len(Row.__dataclass_fields__) - 1
    assert all(line.replace("\\|", "").count("|") == columns + 1 for line in lines)
    assert "NonFiniteLoss" in lines[-2]


@pytest.mark.parametrize("scale", [1, 10**3])
def test_the_terminal_table_fits_its_width_and_says_why_trials_failed(records: list[TrialRecord], scale: int) -> None:
    uneven = Architecture(48, 1600, tuple(range(1, 49)), tuple(range(100, 148)))
    wide = record(9, architecture=uneven, parameters=1_557_611_200, ended=10**10, val_loss=99.0)
    curve = tuple((tokens * scale, loss * scale) for tokens, loss in wide.curve)
    lines = shown(terminal_table([*records, wide, record(10, val_loss=math.inf, curve=curve)], TEACHER))
    assert max(map(len, lines)) <= WIDTH
    assert any("trial 1 failed: NonFiniteLoss" in line for line in lines)
    assert next(line for line in lines if line.strip().startswith("1 ")).endswith("best")


def test_the_best_stock_candidate_is_named(records: list[TrialRecord]) -> None:
    lines = shown(terminal_table(records, TEACHER))
    assert [line for line in lines if line.endswith("best stock")] == [line for line in lines if " 2 d8-" in line]
    both = shown(terminal_table([record(2)], TEACHER))
    assert both[-1].endswith("best, stock")


def test_each_validation_text_is_a_column_where_there_are_several(records: list[TrialRecord]) -> None:
    both = record(5, metrics={"val_loss/a": 1.5, "val_loss/b": 2.5})
    lines = list(csv.DictReader(io.StringIO(csv_text([*records, both], TEACHER))))
    assert list(lines[0])[12:15] == ["val_loss", "val_loss/a", "val_loss/b"]
    assert {line["trial"]: line["val_loss/b"] for line in lines} == {"5": "2.5", **dict.fromkeys("01234", "")}
    head, _, *rest = markdown_table([*records, both], TEACHER).splitlines()
    assert "| val loss | val loss/a | val loss/b |" in head
    assert sum("| 1.5000 | 2.5000 |" in line for line in rest) == 1


def test_after_a_final_stage_the_table_says_what_that_made_of_a_trial(records: list[TrialRecord]) -> None:
    keys = {one.number: one.architecture.key for one in records}
    lines = shown(terminal_table(records, TEACHER, final_roles={keys[2]: "winner", keys[0]: "width only"}))
    assert [line.split()[1] for line in lines if line.endswith("winner")] == ["2"]
    assert not [line for line in lines if line.endswith(("best", "best stock"))]
    assert next(line for line in lines if f" {keys[0]} " in line).endswith("stopped early")


def test_no_records_make_empty_tables() -> None:
    assert len(markdown_table([], TEACHER).splitlines()) == 2
    assert len(csv_text([], TEACHER).splitlines()) == 1
    assert shown(terminal_table([], TEACHER))


def test_compact_keeps_three_digits() -> None:
    assert [compact(number) for number in (0, 999, 65_536, 8_388_608, 2.5e9)] == ["0", "999", "65.5k", "8.39M", "2.5G"]


@pytest.mark.parametrize("plot", PLOTS)
def test_a_plot_shows_its_records(plot: Plot, records: list[TrialRecord], tmp_path: Path) -> None:
    first = imread(plot(records, tmp_path / "first.png"))
    again = imread(plot(records, tmp_path / "again.png"))
    other = imread(plot([*records[:3], record(3, val_loss=2.9, rungs=3), *records[4:]], tmp_path / "other.png"))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("plot", [plot_losses, plot_pareto, plot_sizes])
def test_the_winner_is_the_one_that_a_final_stage_chose(
    plot: Callable[..., Path], records: list[TrialRecord], tmp_path: Path
) -> None:
    best, other = (imread(plot(records, tmp_path / f"{number}.png", **_chosen(records, number))) for number in (3, 2))
    assert np.array_equal(best, imread(plot(records, tmp_path / "none.png")))
    assert not np.array_equal(best, other)


def _chosen(records: list[TrialRecord], number: int) -> dict[str, Architecture]:
    return {"winner_architecture": records[number].architecture}


def test_sizes_tell_layers_that_differ_from_equal_ones_of_the_same_mean(tmp_path: Path) -> None:
    def picture(*heads: int) -> NDArray[np.floating]:
        some = record(2, architecture=Architecture(2, 192, heads, (768, 768)))
        return imread(plot_sizes([some, record(3, val_loss=2.0)], tmp_path / "sizes.png"))

    assert np.array_equal(picture(4, 4), picture(4, 4))
    assert not np.array_equal(picture(4, 4), picture(2, 6))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize("kept", [slice(0), slice(0, 1), slice(1, 2), slice(2, 3), slice(4, 5)])
def test_a_plot_copes_with_few_records(plot: Plot, kept: slice, records: list[TrialRecord], tmp_path: Path) -> None:
    assert plot(records[kept], tmp_path / "few.png").stat().st_size > 0


@pytest.mark.filterwarnings("error")
def test_importance_of_each_kind_shows(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    scores = [generator.random(shape) for shape in ((4,), (48,), (4, 6), (4, 96))]
    scores[1] /= scores[1].sum()
    before = imread(plot_importance(*scores, tmp_path / "before.png"))
    after = imread(plot_importance(*(one**2 for one in scores), tmp_path / "after.png"))
    height, width = len(before) // 2, len(before[0]) // 2
    for rows_of_panel in (slice(height), slice(height, None)):
        for columns in (slice(width), slice(width, None)):
            assert not np.array_equal(before[rows_of_panel, columns], after[rows_of_panel, columns])
    layers, _, heads, mlp = scores
    without = imread(plot_importance(layers, None, heads, mlp, tmp_path / "without.png"))
    assert without.shape == before.shape
    assert not np.array_equal(without, before)


def test_a_screen_shows_the_best_of_many_trials_and_files_have_all() -> None:
    many = [record(number, val_loss=9 - number / 100) for number in range(MOST_ROWS + 15)]
    lines = shown(terminal_table(many, TEACHER))
    assert len(lines) == MOST_ROWS + 2
    assert lines[-1] == "15 more trials are in results.md"
    assert lines[1].split()[:2] == ["1", str(MOST_ROWS + 14)]
    assert len(markdown_table(many, TEACHER).splitlines()) == len(many) + 2
    assert "more trials" not in " ".join(shown(terminal_table(many[:MOST_ROWS], TEACHER)))


def test_plots_leave_pyplot_alone() -> None:
    code = "import nas.report.plots, sys; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
