r"""Measures the losses of all subsets of a model's layers: with shared prefixes, and in two naive loops.

    python -m benchmarks.pruning.subsets
    python -m benchmarks.pruning.subsets --repetitions 5 --validation-tokens 2048

The first naive loop is that of published scripts: it copies the model, deletes layers, and takes the loss of
transformers. The second one slices each subset from the teacher (`trials.prune.prune`) and measures its loss on
validation text (`trials.losses.window_losses`). The shared way is `trials.prune.subset_losses`. All take turns. The
losses must agree within 1e-5 nats: those of each window, or their mean for the first loop, which has no others.

Printed are medians of processor seconds, which a busy neighbour changes less than seconds of the clock. The head is the
output projection with the cross-entropy, which both ways need once for each subset. ``layer passes`` are those for each
batch of windows, counted.
"""

from __future__ import annotations

import copy
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from benchmarks.flags import flags_of, plan_of
from trials.families.lookup import family_of
from trials.losses import window_losses as naive
from trials.losses.window_losses import BATCH_TOKENS
from trials.preparation import Shared, shared
from trials.prune import subset_losses as together
from trials.prune.prune import prune
from trials.text.corpus import windows

Losses = dict[tuple[int, ...], np.ndarray]
SLICES, LAYERS, HEAD = "slices", "layers", "head"


@contextmanager
def timed(spent: dict[str, float], name: str) -> Iterator[None]:
    """Add the processor seconds of the block to ``spent``."""
    started = time.process_time()
    yield
    spent[name] += time.process_time() - started


def head_timed(spent: dict[str, float]) -> Callable[..., Any]:
    """`state_losses`, which adds its seconds to ``spent``."""
    original = naive.state_losses

    def call(*given: Any) -> Any:
        with timed(spent, HEAD):
            return original(*given)

    return call


def one_by_one(common: Shared, text: np.ndarray, subsets: list[tuple[int, ...]], spent: dict[str, float]) -> Losses:
    """The losses of the naive loop, its processor seconds in ``spent``."""
    model, full, found = common.teacher.model, common.teacher.shape.full, Losses()
    family = family_of(model.config)
    for subset in subsets:
        depth, named = len(subset), () if len(subset) == full.depth else subset
        sizes = {name: getattr(full, name)[:depth] for name in ("heads", "mlp", "kv_heads")}
        with timed(spent, SLICES):
            student = prune(model, common.scores, replace(full, depth=depth, kept_layers=named, **sizes))
        with patch.object(naive, "state_losses", head_timed(spent)), timed(spent, LAYERS):
            found[subset] = naive.window_losses(student, family, text)
    return found


def as_scripts_do(common: Shared, text: np.ndarray, subsets: list[tuple[int, ...]], spent: dict[str, float]) -> Losses:
    """The mean loss of each subset by the loop of published scripts, its processor seconds in ``spent``."""
    model, found = common.teacher.model, Losses()
    family, batch = family_of(model.config), max(1, BATCH_TOKENS["cpu"] // text.shape[1])
    for subset in subsets:
        with timed(spent, SLICES):
            student = copy.deepcopy(model)
            first = family.layers(student)[0]
            layers = next(one for one in student.modules() if isinstance(one, nn.ModuleList) and one[0] is first)
            for gone in sorted(set(range(len(layers))) - set(subset), reverse=True):
                del layers[gone]
        losses = []
        with torch.no_grad(), timed(spent, LAYERS):
            for start in range(0, len(text), batch):
                tokens = torch.from_numpy(text[start : start + batch].astype(np.int64))
                losses += [student(tokens, labels=tokens, use_cache=False).loss.item()] * len(tokens)
        found[subset] = np.array(losses)
    return found


def at_once(common: Shared, text: np.ndarray, subsets: list[tuple[int, ...]], spent: dict[str, float]) -> Losses:
    """The losses of the shared way, its processor seconds in ``spent``."""
    model = common.teacher.model
    with patch.object(together, "state_losses", head_timed(spent)), timed(spent, LAYERS):
        return together.subset_losses(model, family_of(model.config), text, subsets)


def layer_passes(common: Shared, text: np.ndarray, subsets: list[tuple[int, ...]]) -> int:
    """How often the shared way runs a layer for one batch of windows."""
    family, counted = family_of(common.teacher.model.config), Counter[int]()
    layers = family.layers(common.teacher.model)
    handles = [one.register_forward_hook(lambda layer, *_: counted.update([id(layer)])) for one in layers]
    together.subset_losses(common.teacher.model, family, text[:1], subsets)
    for handle in handles:
        handle.remove()
    return counted.total()


def main() -> None:
    parser = flags_of(__doc__, budget="100%", calibration_samples=16, validation_tokens=2_048)
    parser.add_argument("--repetitions", type=int, default=3)
    flags = parser.parse_args()
    plan = plan_of(flags)
    common = shared(plan.recipe, str(plan.cache), plan.resources.device)
    text, number = windows(common.corpus.validation, plan.recipe.sequence_length), common.teacher.shape.layers
    subsets = [one for depth in range(1, number + 1) for one in combinations(range(number), depth)]
    ways = {"as scripts do": as_scripts_do, "one by one": one_by_one, "shared": at_once}
    spent = {name: [defaultdict[str, float](float) for _ in range(flags.repetitions)] for name in ways}
    for turn in range(flags.repetitions):
        found = {name: way(common, text, subsets, spent[name][turn]) for name, way in ways.items()}
        worst = max(float(np.abs(found["shared"][one] - found["one by one"][one]).max()) for one in subsets)
        means = max(abs(float(found["shared"][one].mean() - found["as scripts do"][one].mean())) for one in subsets)
        assert max(worst, means) < 1e-5, f"the losses differ by {worst}, their means by {means}"
    naive_passes = sum(map(len, subsets))
    passes = dict.fromkeys(ways, naive_passes) | {"shared": layer_passes(common, text, subsets)}
    print(
        f"{len(subsets)} subsets of {number} layers, {text.size:,} tokens; losses within {max(worst, means):.1e} nats"
    )
    table = {name: parts_of(turns) | {"layer passes": float(passes[name])} for name, turns in spent.items()}
    print(f"{'':<16}" + "".join(f"{way:>15}" for way in ways) + f"{'shared, share of each':>24}")
    for name in table["shared"]:
        values = [table[way][name] for way in ways]
        digits = 0 if name == "layer passes" else 2
        shares = "".join(f"{values[-1] / one:>12.3f}" if one else " " * 12 for one in values[:-1])
        print(f"{name:<16}" + "".join(f"{one:>15,.{digits}f}" for one in values) + shares)


def parts_of(turns: list[defaultdict[str, float]]) -> dict[str, float]:
    """Medians of processor seconds over ``turns``. The layers of scripts are with their head."""
    parts: dict[str, Callable[[defaultdict[str, float]], float]] = {
        "cutting slices": lambda one: one[SLICES],
        "layers": lambda one: one[LAYERS] - one[HEAD],
        "head": lambda one: one[HEAD],
        "forward passes": lambda one: one[LAYERS],
        "everything": lambda one: one[SLICES] + one[LAYERS],
    }
    return {name: median(map(part, turns)) for name, part in parts.items()}


if __name__ == "__main__":
    main()
