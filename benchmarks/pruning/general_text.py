r"""Measures what keeps a student general: kinds of calibration text, amounts of it, ridges, and rates of training.

    python -m benchmarks.pruning.general_text --model teachers/SmolLM2-135M-Instruct.Q4_1.gguf \
      --architectures d29-h576-a9k3-m1056 --texts ptb=ptb.txt lambada=lambada.jsonl \
      --mixtures wiki=./wikitext-2 wiki=./wikitext-2,stories=stories.txt,reviews=reviews.txt,python=stdlib

For each mixture (`trials.text.mixture`) the students are refitted on the first ``--samples`` windows of it with each of
the ``--ridges``. The scores that choose layers and neurons are of all ``--calibration-samples``. With ``--rates``, the
student of the last amount and of the first ridge is then trained on the mixture at each rate.

Printed is the excess loss over the teacher's, in nats per token, on the held-out part of the mixture ("own"), on each
of the ``--texts``, and the mean over the latter.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.flags import flags_of, parsed, plan_of
from benchmarks.pruning.minitron import Bench
from benchmarks.pruning.refit import IN_TURN, student
from search_spaces.architecture import Architecture
from trials.losses.window_losses import WindowLosses
from trials.prune.refit import RIDGE


def line(bench: Bench, name: str, losses: WindowLosses) -> str:
    """A row of the table."""
    own, *others = (float(one.mean() - bench.teacher_losses[text].mean()) for text, one in losses.items())
    mean = sum(others) / len(others)
    return f"{name:<40}{own:>10.3f}{''.join(f'{one:>10.3f}' for one in others)}{mean:>10.3f}"


def rows(bench: Bench, architecture: Architecture, flags: argparse.Namespace) -> None:
    """Print the rows of one architecture and one mixture."""
    for samples in flags.samples:
        for ridge in flags.ridges:
            losses = bench.losses(student(bench, architecture, IN_TURN, samples, ridge))
            tokens = samples * bench.recipe.sequence_length
            print(line(bench, f"{architecture.key} {tokens:,}, ridge {ridge:g}", losses), flush=True)
    for rate in flags.rates:
        losses = bench.trained(student(bench, architecture, IN_TURN, flags.samples[-1], flags.ridges[0]), rate)
        print(line(bench, f"  then {bench.recipe.tokens:,} tokens at {rate:g}", losses), flush=True)


def table(flags: argparse.Namespace, mixture: str, architectures: Sequence[Architecture]) -> None:
    """Print the table of one mixture."""
    flags.corpus = mixture
    bench = Bench(plan_of(flags))
    print(f"\ncalibrated on {mixture}")
    names = ["own", *list(bench.texts)[1:], "mean"]
    print(f"{'':40}{''.join(f'{name[:9]:>10}' for name in names)}", flush=True)
    for architecture in architectures:
        rows(bench, architecture, flags)


def main() -> None:
    parser = flags_of(__doc__, space="default")  # the budget has no effect here
    parser.add_argument("--architectures", nargs="+", required=True, metavar="KEY")
    parser.add_argument("--mixtures", nargs="+", required=True, metavar="CORPUS")
    parser.add_argument("--texts", nargs="+", required=True, metavar="NAME=FILE", help="texts nobody calibrated on")
    parser.add_argument("--samples", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--ridges", type=float, nargs="+", default=[RIDGE])
    parser.add_argument("--rates", type=float, nargs="*", default=[], help="peak rates of a training (none)")
    flags = parser.parse_args()
    flags.validation = ",".join(flags.texts)
    for mixture in flags.mixtures:
        table(flags, mixture, [parsed(key) for key in flags.architectures])


if __name__ == "__main__":
    main()
