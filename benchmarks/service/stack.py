"""Measures a stack of compressions, each on and off: distillation, adapters, NF4, fused attention.

    python -m benchmarks.service.stack --model mini

It is the table of `python -m nas.search --space stack` for a student that is named instead of searched. Each row is
trained and measured in processes of its own. The table is also written to OUTPUT/stack/stack.md and stack.csv. Run it
again and it reads the rows that it has measured.
"""

from __future__ import annotations

import sys

from benchmarks.flags import flags_of, parsed, plan_of
from nas.display.console import console_for, fitted
from nas.tables.stack import STACK, measured, stack_table
from nas.tables.study_table import csv_text, markdown, terminal


def main() -> None:
    parser = flags_of(__doc__, student="d7-h256-a6-m512")
    flags, console = parser.parse_args(), console_for(stderr=False)
    plan = plan_of(flags)
    student = parsed(flags.student)
    plan.target.shape.check(student)
    table = stack_table(measured(plan, student, plan.output / STACK, lambda line: print(line, file=sys.stderr)), plan)
    for name, text in {"stack.md": markdown(table), "stack.csv": csv_text(table)}.items():
        (plan.output / STACK / name).write_text(text, "utf-8")
    console.print(fitted(terminal(table), console, [one.name for one in table.columns if not one.needed]))
    for note in table.notes:
        console.print(note, style="dim")


if __name__ == "__main__":
    main()
