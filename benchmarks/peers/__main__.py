r"""Puts published one-shot ways of structured pruning beside the way of a search, before and after training.

    python -m benchmarks.peers --model mini
    python -m benchmarks.peers --model teachers/SmolLM2-135M-Instruct.Q4_1.gguf --corpus ./wikitext-2 \
      --architectures d29-h576-a9k3-m1056 d28-h576-a9k3-m768 --texts ptb=ptb.valid.txt

All ways have the same teacher, calibration windows, texts and number of non-embedding parameters. Ours is
`trials.prune.prune.prune` with the teacher's streams. The peers of a Llama-style teacher are

    Minitron   slices by its activation scores (arXiv 2407.14679), of the same architecture and with fewer neurons only
    Wanda-sp   neurons by weight and norm of the input (arXiv 2306.11695 and 2312.11983)
    FLAP       neurons by the variance of the input, and biases (arXiv 2312.11983); uniform, and its own spread
    ShortGPT   whole layers by Block Importance (arXiv 2403.03853)
    SliceGPT   directions of the stream, a rotation for each block (arXiv 2401.15024)

For a GPT-2 teacher, Minitron's three ways stand beside ours at the same shapes: fewer layers, narrower, and both.

Excess is the loss over the teacher's in nats per token. Everybody calibrated on the first text, which is the held-out
part of the corpus. Nobody calibrated on the ``--texts``. Seconds are for cutting, without scores that are computed once
for a teacher.

Training compares at equal FLOPs: ours trains on the tokens of the recipe, and a peer on so many more that it costs as
much as our refit and training together.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from benchmarks.flags import flags_of, parsed, plan_of
from benchmarks.peers.sizes import flops_per_token, non_embedding, three_shapes
from benchmarks.peers.table import Row, against, best_peers, heading
from benchmarks.peers.ways import Peers, Way
from benchmarks.pruning.minitron import RATES, REFIT, SLICES, Bench, candidates
from nas.planning.plan import Plan
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from trials.estimate import refit_flops, refit_windows, training_flops
from trials.families.llama import LlamaStyle
from trials.losses.window_losses import WindowLosses, window_losses

SHARES = (0.74, 0.58)
OURS = "ours"
MARGIN = 1.5  # some peers have fewer FLOPs for a token than we have


class Contest:
    """A bench with its peers: cuts, trains and measures the students of all ways."""

    def __init__(self, bench: Bench, rates: Sequence[float]) -> None:
        self.bench, self.rates, self.family = bench, rates, bench.common.targets.family
        self.peers = Peers(bench.common.teacher.model, bench.common.streams.windows, bench.minitron)

    def ours(self, architecture: Architecture) -> Way:
        """Our way for ``architecture``. The student is cut once and then copied, because a refit takes minutes."""
        first = cache(lambda: self.bench.student(architecture, REFIT))
        return Way(OURS, architecture.key, lambda: deepcopy(first()))

    def best(self, architectures: Sequence[Architecture]) -> Architecture:
        """Our best of ``architectures`` on the corpus's own validation text. Prints a line for each."""
        own, text = next(iter(self.bench.texts.items()))
        teacher, found = self.bench.teacher_losses[own].mean(), {}
        for one in architectures:
            found[one] = float(window_losses(self.ours(one).make(), self.family, text).mean() - teacher)
            print(f"candidate {one.key:<30} excess {found[one]:.3f}", flush=True)
        return min(found, key=found.__getitem__)

    def cut(self, way: Way) -> Row:
        """Cut and measure a student. Prints its row."""
        started = time.perf_counter()
        model = way.make().float()
        seconds = time.perf_counter() - started
        return self._row(way, model, self.bench.losses(model), seconds)

    def train(self, way: Way, ours: Architecture) -> Row:
        """Train and measure a student at the FLOPs of ``ours``. Prints its row.

        A peer is trained at each rate. Its result is the best on the corpus's own text.
        """
        rows = []
        for rate in (RATES[REFIT],) if way.name == OURS else self.rates:
            model = way.make().float()
            tokens = self.bench.recipe.tokens
            if way.name != OURS:
                forward = flops_per_token(model, self.family, self.bench.recipe.sequence_length)
                tokens = self.bench.tokens_for_refit(forward, ours)
            started = time.perf_counter()
            losses = self.bench.trained(model, rate, tokens)
            rows.append(self._row(way, model, losses, time.perf_counter() - started, tokens, rate))
        return min(rows, key=lambda row: row.calibrated)

    def _row(
        self,
        way: Way,
        model: PreTrainedModel,
        losses: WindowLosses,
        seconds: float,
        tokens: int = 0,
        rate: float | None = None,
    ) -> Row:
        excess = {name: float(one.mean() - self.bench.teacher_losses[name].mean()) for name, one in losses.items()}
        sizes = sum(one.numel() for one in model.parameters()), non_embedding(model, self.family)
        row = Row(way.name, way.sizes, *sizes, excess, seconds, tokens, rate, losses)
        print(row.line(), flush=True)
        return row


def contests(contest: Contest, flags: argparse.Namespace) -> Iterator[tuple[str, Architecture, list[Way]]]:
    """Yields the title, our architecture and the peers of every table. Raises InputError for another family."""
    model, kind = contest.bench.recipe.model, contest.bench.common.teacher.shape.family
    llama, peers = isinstance(contest.family, LlamaStyle), contest.peers
    if not llama and kind != "gpt2":
        raise InputError(f"--model {model}: a {kind} has no peers here; take a GPT-2 or a Llama-style model")
    for title, one in named(contest, flags, llama):
        yield title, one, peers.ways(one) if llama else [peers.minitron("Minitron", one)]


def named(contest: Contest, flags: argparse.Namespace, llama: bool) -> Iterator[tuple[str, Architecture]]:
    """Yields our architectures with their titles: those of the flags, or for each share our best or three shapes."""
    for one in flags.architectures:
        yield f"beside {one.key}", one
    for share in () if flags.architectures else flags.shares:
        if llama:
            yield f"at {share:.0%}", contest.best(candidates(contest.bench.space, share, flags.candidates))
        else:
            shapes = three_shapes(contest.bench.space, share)
            yield from ((f"at {share:.0%}, {cut}", one) for cut, one in shapes.items())


def compare(contest: Contest, title: str, ours: Architecture, peers: list[Way], train: str) -> dict[str, Any]:
    """Print the table of one size, before and after training. Returns it in JSON form.

    ``train`` says which ways are trained: all, the best, or none.
    """
    bench = contest.bench
    whole = bench.common.teacher.shape.non_embedding_parameters(bench.common.teacher.shape.full)
    share = bench.common.teacher.shape.non_embedding_parameters(ours) / whole
    print(f"\n{title}: {share:.1%} of the non-embedding parameters; excess loss, nats a token")
    print(heading(list(bench.texts)), flush=True)
    ways = [contest.ours(ours), *peers]
    before = [contest.cut(way) for way in ways]
    best = {row.way for row in (before[0], *best_peers(before).values())}
    chosen = {"all": {way.name for way in ways}, "best": best, "none": set()}[train]
    after = [contest.train(way, ours) for way in ways if way.name in chosen]
    value: dict[str, Any] = {"title": title, "share": share, "ours": ours.key, "summary": []}
    for when, rows in (("before", before), ("after", after)):
        found = against(rows) if rows else []
        value[when] = [row.to_dict() for row in rows]
        value[f"against {when}"] = [one.to_dict() for one in found]
        value["summary"] += [f"{title}, {when} training, {one.line()}" for one in found]
    return value


def parser_of() -> argparse.ArgumentParser:
    """The flags."""
    parser = flags_of(__doc__, space="default")  # the budget has no effect, but the space must contain it
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the non-embedding parameters")
    parser.add_argument("--candidates", type=int, default=None, metavar="N", help="of ours for each share (all)")
    parser.add_argument("--architectures", nargs="+", default=[], metavar="KEY", help="ours, in place of --shares")
    parser.add_argument("--texts", nargs="+", default=[], metavar="NAME=FILE", help="texts nobody calibrated on")
    rates = f"peak rates of the peers ({RATES[SLICES]:g})"
    parser.add_argument("--peer-rates", type=float, nargs="+", default=[RATES[SLICES]], metavar="RATE", help=rates)
    parser.add_argument("--train", choices=("best", "all", "none"), default="best", help="who trains (best)")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write all figures to FILE")
    return parser


def further_text(plan: Plan) -> int:
    """Tokens of text behind those of a trial, so that a peer, which trains on more tokens, reads none of them twice."""
    recipe, shape, device = plan.recipe, plan.target.space.shape, plan.resources.device
    refit = refit_flops(shape, shape.full, recipe, refit_windows(shape, recipe, device))
    return round(MARGIN * recipe.tokens * refit / training_flops(shape, shape.full, recipe, device))


def main() -> None:
    flags = parser_of().parse_args()
    flags.architectures = [parsed(key) for key in flags.architectures]
    flags.validation = ",".join(flags.texts) or None
    plan = plan_of(flags)
    bench = Bench(plan, further_text(plan))
    contest = Contest(bench, flags.peer_rates)
    calibration = bench.common.streams.windows
    teacher = {name: float(one.mean()) for name, one in bench.teacher_losses.items()}
    print(f"teacher {', '.join(f'{name} {loss:.4f}' for name, loss in teacher.items())}")
    print(f"calibrated on {calibration.numel():,} tokens, windows of {calibration.shape[1]}", flush=True)
    found: dict[str, Any] = {"recipe": bench.recipe.to_dict(), "calibration": list(calibration.shape)}
    found |= {"teacher": teacher, "tables": []}
    for title, ours, peers in contests(contest, flags):
        found["tables"].append(compare(contest, title, ours, peers, flags.train))
        if flags.json:  # after every table, because the next one may take an hour
            flags.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print("\nours against the best peer")
    for line in (line for table in found["tables"] for line in table["summary"]):
        print(line)


if __name__ == "__main__":
    main()
