"""What a screening of a part of a band finds: by a draw alone, and by following the losses, replayed from the truth.

    python -m benchmarks.screening

The truth (`benchmarks.ground_truth`) has the loss before retraining of every architecture of mini's band. So many of
them are screened, with another draw for every seed: all drawn, or half drawn and half by `nas.screening.follow`, at
several strengths of its ridge. Printed are how often the best of the band by that loss is among them, how many of the
eight best are, and by how much the best of them ends above the best of all after training, in nats per token.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from unittest import mock

from benchmarks.strategies import Truth
from nas.screening import RIDGE, drawn, follow
from search_spaces.architecture import Architecture

TOKENS, PARTS, RIDGES, EIGHT = 8_192, (12, 16, 24, 32), (0.001, RIDGE, 0.1), 8


def followed(truth: Truth, order: Sequence[Architecture], most: int, ridge: float) -> list[str]:
    """Keys of what is screened when losses are followed."""
    known, losses = truth.screens(TOKENS), dict[str, float | None]()
    with mock.patch("nas.screening.RIDGE", ridge):
        while new := [one.key for one in follow(truth.space, order, most, losses) if one.key not in losses]:
            losses |= {key: known[key] for key in new}
    return list(losses)


def line(truth: Truth, most: int, ridge: float | None, seeds: int) -> str:
    """A row of the table; with no ``ridge`` all are drawn."""
    known = truth.screens(TOKENS)
    best = sorted(known, key=known.__getitem__)
    hits, shares, above = [], [], []
    for seed in range(seeds):
        order = drawn(truth.shape, list(truth.architectures.values()), seed)
        found = [one.key for one in order[:most]] if ridge is None else followed(truth, order, most, ridge)
        first = min(found, key=known.__getitem__)
        hits.append(first == best[0])
        shares.append(len({*found} & {*best[:EIGHT]}))
        above.append(truth.curves[first][truth.recipe.tokens] - truth.best)
    name = "drawn" if ridge is None else f"followed, ridge {ridge:g}"
    return f"{most:>8}  {name:<22}{mean(hits):>10.0%}{mean(shares):>14.1f}{mean(above):>12.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="mini", help="of the table")
    parser.add_argument("--seeds", type=int, default=20)
    flags = parser.parse_args()
    truth = Truth(json.loads((Path(__file__).parent / f"truth_{flags.name}.json").read_text("utf-8")))
    print(f"{len(truth.architectures)} architectures, screened on {TOKENS:,} tokens; means over {flags.seeds} draws")
    print(f"{'screened':>8}  {'by':<22}{'the best':>10}{'of the 8 best':>14}{'ends above':>12}")
    for most in PARTS:
        for ridge in (None, *RIDGES):
            print(line(truth, most, ridge, flags.seeds))


if __name__ == "__main__":
    main()
