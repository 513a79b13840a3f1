"""Compares ways to screen a part of a band: random draws, and following the losses. Replayed from a table.

    python -m benchmarks.search.screening
    python -m benchmarks.search.screening --report outputs/STUDY/report/screening.csv --space fine.yaml

The table of `benchmarks.search.ground_truth` has the loss before retraining of every architecture of mini's band. So
has the report of a search that screened its whole band (with a large enough ``--screened``). A given number of
architectures is screened, with other draws for every seed: all drawn, or half drawn and half chosen by
`nas.choosing.screening.follow`, with several strengths of its ridge.

Printed are how often the screened ones contain the band's best architecture by that loss, how many of the band's eight
best they contain, and by how much their best one is above the band's best in nats per token: in that loss, and after
training if the table has it.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from unittest import mock

from benchmarks.search.strategies import Truth
from nas.choosing.screening import RIDGE, drawn, follow
from search_spaces.architecture import Architecture
from search_spaces.files import load_space
from search_spaces.space import SearchSpace
from trials.teacher.source import read_shape, resolve_model

TOKENS, RIDGES, EIGHT = 8_192, (0.001, RIDGE, 0.1), 8


@dataclass(frozen=True)
class Screened:
    """A band whose architectures were all screened. Losses are in nats per token, by key of the architecture."""

    space: SearchSpace
    architectures: tuple[Architecture, ...]
    before: Mapping[str, float]
    after: Mapping[str, float]  # empty if they were not all trained


def of_truth(name: str) -> Screened:
    truth = Truth(json.loads((Path(__file__).parent / f"truth_{name}.json").read_text("utf-8")))
    after = {key: curve[truth.recipe.tokens] for key, curve in truth.curves.items()}
    return Screened(truth.space, tuple(truth.architectures.values()), truth.screens(TOKENS), after)


def of_report(file: Path, model: str, space: str) -> Screened:
    """The band from the ``screening.csv`` of a search with this ``model`` and ``space``."""
    with file.open(encoding="utf-8") as rows:
        before = {row["architecture"]: float(row["screen_loss"]) for row in csv.DictReader(rows)}
    all_of_it = load_space(space, read_shape(resolve_model(model)))
    return Screened(all_of_it, tuple(one for one in all_of_it if one.key in before), before, {})


def followed(band: Screened, order: Sequence[Architecture], most: int, ridge: float) -> list[str]:
    """The keys of the architectures that `nas.choosing.screening.follow` screens."""
    losses = dict[str, float | None]()
    with mock.patch("nas.choosing.screening.RIDGE", ridge):
        while new := [one.key for one in follow(band.space, order, most, losses) if one.key not in losses]:
            losses |= {key: band.before[key] for key in new}
    return list(losses)


def line(band: Screened, most: int, ridge: float | None, seeds: int) -> str:
    """A row of the table. Without a ``ridge``, all architectures are drawn."""
    best = sorted(band.before, key=band.before.__getitem__)
    firsts, shares = [], []
    for seed in range(seeds):
        order = drawn(band.space.shape, band.architectures, seed)
        found = [one.key for one in order[:most]] if ridge is None else followed(band, order, most, ridge)
        firsts.append(min(found, key=band.before.__getitem__))
        shares.append(len({*found} & {*best[:EIGHT]}))
    hits = mean(first == best[0] for first in firsts)
    name = "drawn" if ridge is None else f"followed, ridge {ridge:g}"
    ends = f"{_above(band.after, firsts):>12.4f}" if band.after else ""
    return f"{most:>8}  {name:<22}{hits:>10.0%}{mean(shares):>14.1f}{_above(band.before, firsts):>14.4f}{ends}"


def _above(losses: Mapping[str, float], firsts: Sequence[str]) -> float:
    """By how much the losses of ``firsts`` are above the lowest of ``losses``, on average."""
    return mean(losses[first] for first in firsts) - min(losses.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="mini", help="name of the table")
    parser.add_argument("--report", type=Path, help="screening.csv of a search, instead of the table")
    parser.add_argument("--model", default="mini", help="teacher of that search")
    parser.add_argument("--space", default="default", help="space of that search")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--parts", type=int, nargs="+", default=(12, 16, 24, 32), help="how many are screened")
    flags = parser.parse_args()
    band = of_report(flags.report, flags.model, flags.space) if flags.report else of_truth(flags.name)
    print(f"{len(band.architectures)} architectures, means over {flags.seeds} draws")
    ends = f"{'ends above':>12}" if band.after else ""
    print(f"{'screened':>8}  {'by':<22}{'the best':>10}{'of the 8 best':>14}{'starts above':>14}{ends}")
    for most in flags.parts:
        for ridge in (None, *RIDGES):
            print(line(band, most, ridge, flags.seeds))


if __name__ == "__main__":
    main()
