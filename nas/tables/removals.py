"""What removing layers costs: the values behind the table `nas.tables.layers`, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

from nas.choosing.selection import perplexity

Layers = tuple[int, ...]


@dataclass(frozen=True)
class Removal:
    """The teacher without the layers ``removed``, ascending; without any it is the baseline.

    ``loss`` is in nats per token, ``milliseconds`` are those of a generated token, None if nobody measured them.
    """

    removed: Layers
    loss: float
    milliseconds: float | None
    parameters: int

    @property
    def perplexity(self) -> float:
        """The perplexity on validation text."""
        return perplexity(self.loss)


@dataclass(frozen=True)
class Removals:
    """All removals that a study has measured, of a teacher with ``layers`` layers. The baseline removes nothing."""

    layers: int
    baseline: Removal
    others: tuple[Removal, ...]

    @property
    def added(self) -> Mapping[Layers, float]:
        """The loss that each removal adds to the baseline's, in nats per token."""
        return {one.removed: one.loss - self.baseline.loss for one in self.others}

    def ordered(self) -> list[Removal]:
        """The baseline, then by the number of removed layers, the least loss first."""
        return [self.baseline, *sorted(self.others, key=lambda one: (len(one.removed), one.loss, one.removed))]

    def best(self) -> dict[int, Removal]:
        """The removal with the least loss, by the number of removed layers."""
        found: dict[int, Removal] = {}
        for one in self.ordered()[1:]:
            found.setdefault(len(one.removed), one)
        return found

    def ranking(self) -> list[tuple[int, float]]:
        """(layer, added loss) of each layer that was removed alone, the least damage first."""
        alone = ((removed[0], added) for removed, added in self.added.items() if len(removed) == 1)
        return sorted(alone, key=lambda one: (one[1], one[0]))

    def together(self) -> dict[tuple[int, int], float]:
        """What a pair adds beyond the sum of its two layers alone, in nats per token, by the pair.

        Positive: each layer stands in for the other. Negative: without the one, the other is worth less.
        """
        added = self.added
        known = (pair for pair in combinations(range(self.layers), 2) if pair in added)
        return {(a, b): added[a, b] - added[a,] - added[b,] for a, b in known if (a,) in added and (b,) in added}

    def one_after_another(self) -> dict[int, Layers]:
        """What greedy removal takes, by the number of removed layers: always the layer that then adds least.

        It ends where a removal was not measured.
        """
        added, way, found = self.added, frozenset[int](), dict[int, Layers]()
        while len(way) < self.layers - 1:
            following = [tuple(sorted({*way, one})) for one in range(self.layers) if one not in way]
            if not all(one in added for one in following):
                return found
            found[len(way) + 1] = min(following, key=lambda one: (added[one], one))
            way = frozenset(found[len(way) + 1])
        return found


def named(layers: Iterable[int]) -> str:
    """``1 4 5``, or ``none``."""
    return " ".join(map(str, layers)) or "none"


def insights(removals: Removals) -> list[str]:
    """What follows from the measurements, a sentence or two each; nothing about what was not measured."""
    return [one for one in (_ranking(removals), _best(removals), _greedy(removals), _pairs(removals)) if one]


def _ranking(removals: Removals) -> str:
    found = [f"{layer} ({added:+.3f})" for layer, added in removals.ranking()]
    return f"layers by the loss that their removal alone adds, in nats a token: {', '.join(found)}" if found else ""


def _best(removals: Removals) -> str:
    best = removals.best()
    found = [f"{removals.layers - count} left: without {named(best[count].removed)}" for count in sorted(best)]
    return f"least loss by layers left; {'; '.join(found)}" if found else ""


def _greedy(removals: Removals) -> str:
    best, greedy = removals.best(), removals.one_after_another()
    same = sum(best[count].removed == removed for count, removed in greedy.items())
    what = "one after another, always the layer that then adds least, finds the best combination"
    return f"{what} for {same} of {len(greedy)} numbers of layers" if greedy else ""


def _pairs(removals: Removals) -> str:
    pairs = removals.together()
    if not pairs:
        return ""
    most, least = max(pairs, key=pairs.__getitem__), min(pairs, key=pairs.__getitem__)
    worse = sum(one > 0 for one in pairs.values())
    ends = ", ".join(f"{a} and {b} ({pairs[a, b]:+.3f} nats)" for a, b in dict.fromkeys((most, least)))
    extremes = f"the most and the least beyond it: {ends}" if most != least else f"that is {ends}"
    return f"{worse} of {len(pairs)} pairs add more loss together than the sum of both alone; {extremes}"
