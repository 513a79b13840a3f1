"""The points of many architectures, each with the number of others that dominate it, kept up to date point by point."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

from nas.study.objectives import Point

FIRST_ROOM = 64  # rows; the arrays double when they are full


class Standings:
    """Points by key. To add a point costs time in proportion to the points that are there, not to their square.

    One point dominates another when it is no worse in every objective and better in at least one.
    """

    def __init__(self) -> None:
        self._rows: dict[Hashable, int] = {}
        self._points = np.empty((0, 0))
        self._dominated = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, key: Hashable, point: Point) -> None:
        """Add the ``point`` of ``key``, or replace the one that it had."""
        new = np.array(point, dtype=float)
        row = self._rows.get(key)
        if row is None:
            row = self._new_row(key, len(new))
        elif np.array_equal(self._points[row], new):
            return
        else:
            self._dominated[: len(self)] -= self._worse_than(self._points[row])
        self._points[row] = new
        self._dominated[: len(self)] += self._worse_than(new)
        self._dominated[row] = int(self._better_than(new).sum())

    def dominated_by(self, key: Hashable) -> int:
        """How many points dominate that of ``key``. Raises KeyError when it has none."""
        return int(self._dominated[self._rows[key]])

    def better(self, key: Hashable) -> int:
        """How many points are dominated by fewer others than that of ``key``. Raises KeyError when it has none."""
        return int((self._dominated[: len(self)] < self.dominated_by(key)).sum())

    def _new_row(self, key: Hashable, width: int) -> int:
        row = len(self._rows)
        if row == len(self._points):
            room = max(FIRST_ROOM, 2 * row)
            points, dominated = np.full((room, width), np.nan), np.zeros(room, np.int64)
            points[:row], dominated[:row] = self._points[:row] if row else points[:0], self._dominated[:row]
            self._points, self._dominated = points, dominated
        self._rows[key] = row
        return row

    def _worse_than(self, point: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which points ``point`` dominates; none that has no value yet."""
        points = self._points[: len(self)]
        return np.logical_and((points >= point).all(axis=1), (points > point).any(axis=1))

    def _better_than(self, point: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which points dominate ``point``."""
        points = self._points[: len(self)]
        return np.logical_and((points <= point).all(axis=1), (points < point).any(axis=1))
