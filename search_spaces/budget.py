"""Budgets as a user writes them ("260M", "70%", "90MB", "40%B"), and the band of sizes that each allows."""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import ceil

from search_spaces.errors import InputError

DEFAULT_TOLERANCE = 0.05
UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9}
LONGEST = 40  # characters of a budget
MOST = 10**15  # parameters or bytes, before the unit
PATTERN = re.compile(r"(?P<number>\d[\d_]*(\.\d+)?)\s*(?P<unit>[KMG%]B|[KMBG%]?)", re.IGNORECASE)
PARAMETERS, BYTES = "parameters", "bytes"


@dataclass(frozen=True)
class Budget:
    """A closed band of sizes, ``[minimum, maximum]``. ``text`` is what the user wrote.

    ``unit`` is "parameters", or "bytes" of the exported weights (`search_spaces.stored_size`).
    """

    minimum: int
    maximum: int
    text: str
    unit: str = PARAMETERS

    def __contains__(self, size: int) -> bool:
        return self.minimum <= size <= self.maximum

    @property
    def label(self) -> str:
        """What the user wrote, made safe for names: letters, digits and points."""
        return re.sub(r"[_\s]", "", self.text).replace("%", "pct")

    def __str__(self) -> str:
        return f"{self.text} = {self.minimum:,} to {self.maximum:,} {self.unit}"


def unit_of(text: str) -> str:
    """The unit of comma-separated budgets: "bytes" for 90MB, 1.2GB or 40%B, otherwise "parameters".

    Raises InputError for a wrong budget, and when the budgets have different units.
    """
    units = [BYTES if len(_parsed(one)[1]) == 2 else PARAMETERS for one in text.split(",")]
    if len(set(units)) > 1:
        raise InputError(f"budget {_short(text)}: some are in parameters and some in bytes; give all in one unit")
    return units[0]


def parse_budgets(text: str, teacher: int, counts: Sequence[int], tolerance: float) -> tuple[Budget, ...]:
    """The bands of one or several comma-separated budgets, largest first; see `parse_budget`.

    Raises InputError when two bands overlap, because an architecture must belong to one budget only.
    """
    found = [parse_budget(one, teacher, counts, tolerance) for one in text.split(",")]
    found.sort(key=lambda one: -one.maximum)
    for larger, smaller in itertools.pairwise(found):
        if smaller.maximum >= larger.minimum:
            raise InputError(
                f"budget {_short(text)}: the bands {larger} and {smaller} overlap; "
                f"leave one out, or give a --tolerance below {tolerance}"
            )
    return tuple(found)


def check_budgets(text: str) -> None:
    """Check the syntax of comma-separated budgets, without a teacher. Raises InputError for the first wrong one."""
    unit_of(text)


def parse_budget(text: str, teacher: int, counts: Sequence[int], tolerance: float = DEFAULT_TOLERANCE) -> Budget:
    """The band ``[(1 - tolerance) * budget, budget]`` of the budget ``text``.

    ``text`` is a number of parameters with an optional unit (``260M``, ``0.26B``, ``260_000_000``), a share of the
    teacher's parameters (``70%``), a number of bytes (``90MB``, ``1.2GB``; 1 MB is 10**6 bytes) or a share of the
    teacher's bytes in bfloat16 (``40%B``). ``teacher`` is its size in that unit. ``counts`` are the sizes in the search
    space in that unit, ascending.

    Raises InputError when no architecture lies in the band. The message gives the range of the space and the nearest
    feasible budget.
    """
    if not 0 <= tolerance < 1:
        raise InputError(f"tolerance {tolerance}: must be at least 0 and below 1; the default is {DEFAULT_TOLERANCE}")
    span = f"the architectures of this space have {counts[0]:,} to {counts[-1]:,}"
    maximum, unit = _size(text, teacher), unit_of(text)
    budget = Budget(ceil(maximum * (1 - Decimal(str(tolerance)))), int(maximum), text.strip(), unit)
    if bisect_left(counts, budget.minimum) < bisect_right(counts, budget.maximum):
        return budget
    nearest = nearest_feasible(budget.maximum, counts, tolerance)
    raise InputError(
        f"budget {_short(text)}: no architecture has {budget.minimum:,} to {budget.maximum:,} {unit}; {span}; "
        f"the nearest feasible budget is {nearest} ({100 * nearest / teacher:.1f}% of the teacher)"
    )


def nearest_feasible(budget: int, counts: Sequence[int], tolerance: float) -> int:
    """The budget nearest to ``budget`` whose band contains at least one of ``counts`` (ascending)."""
    above = bisect_left(counts, budget)
    options = list(counts[above : above + 1])
    if above > 0:  # the largest budget whose band still reaches down to the next smaller count
        options.append(min(int(counts[above - 1] / (1 - tolerance)), counts[-1]))
    return min(options, key=lambda option: abs(option - budget))


def _parsed(text: str) -> tuple[Decimal, str]:
    """The number in ``text`` and its unit in upper case."""
    match = PATTERN.fullmatch(text.strip()) if len(text) <= LONGEST else None
    number = Decimal(match["number"].replace("_", "")) if match else Decimal(0)
    if match is None or not 0 < number <= MOST:
        raise InputError(
            f"budget {_short(text)}: not a positive number; write 260M, 0.26B or 260_000_000 parameters, a share of "
            "the teacher's such as 70%, or bytes such as 90MB, 1.2GB or 40%B"
        )
    unit = match["unit"].upper()
    if unit in UNITS and number * UNITS[unit] < 1:
        share = f"{(number * 100).normalize():f}%"
        raise InputError(
            f"budget {_short(text)}: less than one parameter; a share of the teacher is written as {share}"
        )
    return number, unit


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _size(text: str, teacher: int) -> Decimal:
    number, unit = _parsed(text)
    return number * teacher / 100 if unit.startswith("%") else number * UNITS[unit.removesuffix("B") or unit]
