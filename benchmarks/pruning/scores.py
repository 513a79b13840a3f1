"""Compares scores that choose the heads and neurons that stay, before and after the same short distillation.

    python -m benchmarks.pruning.scores
    python -m benchmarks.pruning.scores --model teachers/SmolLM2-135M-Instruct.Q4_1.gguf --corpus ./wikitext-2

Half of the teacher's neurons, or three quarters of its heads, are kept by each score on the same calibration text.
Printed is the excess validation loss over the teacher's in nats per token, of slices and of refitted students
(`trials.prune.refit`). A unit is a neuron or a head. a are the activations of a unit (the outputs of a head), x all
inputs of a projection W, C = E[x x^T] with a ridge, and i the index of the unit (a block for a head):

    Minitron       L2 over windows of the mean over tokens of |a| (arXiv 2407.14679, section 2.2); the norm for a head
    L2             the root of the mean square of a
    variance       the variance of a, summed over a head
    output         E |W_i a|^2, the unit's part of the output (Wanda, arXiv 2306.11695, for a whole unit)
    OBS            tr(W_i ((C^-1)_ii)^-1 W_i^T), the loss when all others are refitted (Hassibi and Stork, 1993)
    elimination    OBS repeated, with all others refitted each time (ZipLM, arXiv 2302.04089); neurons only
    Fisher         E (dL / dg)^2 over windows, g a factor of the unit, L the loss on the text (arXiv 2204.09656)

Then the best score of each axis after the refit is used for all axes at once. That student is distilled beside one by
Minitron's scores.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.flags import flags_of, plan_of
from benchmarks.pruning.minitron import REFIT, SLICES, Bench
from nas.choosing.bootstrap import paired_difference
from nas.planning.candidates import informed
from search_spaces.architecture import Architecture
from trials.families.base import matrix_of
from trials.losses.window_losses import mean_loss
from trials.prune.head_order import eliminated_blocks
from trials.prune.neuron_order import eliminated
from trials.teacher.second_moments import second_moments

RIDGE = 0.01  # as a share of the mean of C's diagonal
BATCH = 4  # windows in a pass
SHARES = {"mlp": 0.5, "heads": 0.75}
MINITRON = "Minitron"

Values = NDArray[np.float32]


class Moments:
    """E[x], E[x x^T] and W of the inputs x of the output projections W, by layer and axis."""

    def __init__(self, bench: Bench, windows: Tensor) -> None:
        family, model = bench.common.targets.family, bench.common.teacher.model
        self.head_dim = bench.common.teacher.shape.head_dim
        self.sums: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self.weights: dict[tuple[str, int], Tensor] = {}
        handles = []
        for number, layer in enumerate(family.layers(model)):
            for axis, module in (("heads", family.attention_output(layer)), ("mlp", family.mlp_output(layer))):
                self.weights[axis, number] = matrix_of(module).detach().double()
                handles.append(module.register_forward_hook(self._adding((axis, number))))
        with torch.no_grad():
            for start in range(0, len(windows), BATCH):
                family.backbone(model, windows[start : start + BATCH])
        for handle in handles:
            handle.remove()
        self.count = windows.numel()

    def _adding(self, place: tuple[str, int]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            rows = inputs[0].flatten(0, 1)
            sums, products = rows.sum(dim=0), second_moments(rows)
            known = self.sums.get(place)
            self.sums[place] = (sums, products) if known is None else (known[0] + sums, known[1] + products)

        return add

    def scores(self, axis: str, score: Callable[[Tensor, Tensor, Tensor, int], Tensor]) -> Values:
        """``score(E[x], E[x x^T], W, size of a unit)`` for every layer, (L, units)."""
        size = self.head_dim if axis == "heads" else 1
        rows = [
            score(sums.double() / self.count, products.double() / self.count, self.weights[place], size)
            for place, (sums, products) in self.sums.items()
            if place[0] == axis
        ]
        return torch.stack(rows).float().numpy()


def _units(values: Tensor, size: int) -> Tensor:
    return values.reshape(-1, size).sum(dim=1)


def _blocks(matrix: Tensor, size: int) -> Tensor:
    """The blocks (units, size, size) on the diagonal."""
    count = len(matrix) // size
    return matrix.reshape(count, size, count, size)[torch.arange(count), :, torch.arange(count)]


def _columns(weight: Tensor, size: int) -> Tensor:
    """The columns (units, m, size) of ``weight`` (m, n)."""
    return weight.reshape(len(weight), -1, size).transpose(0, 1)


def _energy(columns: Tensor, blocks: Tensor) -> Tensor:
    """tr(W_i B_i W_i^T) of every unit."""
    return torch.einsum("umi,uij,umj->u", columns, blocks, columns)


def l2(mean: Tensor, second: Tensor, weight: Tensor, size: int) -> Tensor:
    return _units(second.diagonal(), size).sqrt()


def variance(mean: Tensor, second: Tensor, weight: Tensor, size: int) -> Tensor:
    return _units(second.diagonal() - mean.square(), size)


def output(mean: Tensor, second: Tensor, weight: Tensor, size: int) -> Tensor:
    return _energy(_columns(weight, size), _blocks(second, size))


def obs(mean: Tensor, second: Tensor, weight: Tensor, size: int) -> Tensor:
    ridge = RIDGE * second.diagonal().mean() * torch.eye(len(second), dtype=second.dtype)
    left = torch.linalg.inv(_blocks(torch.linalg.inv(second + ridge), size))
    return _energy(_columns(weight, size), left)


def elimination(mean: Tensor, second: Tensor, weight: Tensor, size: int) -> Tensor:
    second = second - torch.outer(mean, mean)
    return eliminated(second, weight) if size == 1 else eliminated_blocks(second, weight, size)


@contextmanager
def gated(bench: Bench, windows: int) -> Iterator[dict[str, list[Tensor]]]:
    """While open, gates of 1 multiply the teacher's units. They are (windows, 1, units), by axis and layer."""
    family, model, shape = bench.common.targets.family, bench.common.teacher.model, bench.common.teacher.shape

    def gates(units: int) -> Tensor:
        return torch.ones(windows, 1, units, requires_grad=True)

    layers = family.layers(model)
    found = {
        "mlp": [gates(shape.mlp) for _ in layers],
        "heads": [gates(shape.heads) for _ in layers],
    }

    def before(gate: Tensor, size: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        return lambda _, inputs: (inputs[0] * gate.repeat_interleave(size, dim=2), *inputs[1:])

    handles = []
    for layer, mlp, heads in zip(layers, found["mlp"], found["heads"], strict=True):
        handles.append(family.mlp_output(layer).register_forward_pre_hook(before(mlp, 1)))
        handles.append(family.attention_output(layer).register_forward_pre_hook(before(heads, shape.head_dim)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def fisher(bench: Bench, windows: Tensor) -> dict[str, Values]:
    """Fisher's scores (L, units) by axis."""
    family, model = bench.common.targets.family, bench.common.teacher.model
    sums: dict[str, Tensor] = {}
    for start in range(0, len(windows), BATCH):
        part = windows[start : start + BATCH]
        with gated(bench, len(part)) as gates:
            hidden = family.backbone(model, part)[:, :-1].flatten(0, 1)
            logits = F.linear(hidden, family.output_weight(model))
            loss = F.cross_entropy(logits, part[:, 1:].flatten()) * len(part)
            flat = [one for axis in gates.values() for one in axis]
            slopes = iter(torch.autograd.grad(loss, flat))
        for axis, ones in gates.items():
            squares = torch.stack([next(slopes).square().sum(dim=(0, 1)) for _ in ones])
            sums[axis] = squares + sums.get(axis, torch.zeros(()))
    return {axis: one.numpy() for axis, one in sums.items()}


def all_scores(bench: Bench, windows: Tensor) -> dict[str, dict[str, Values]]:
    """All scores by axis and name, Minitron's first."""
    moments, slopes = Moments(bench, windows), fisher(bench, windows)
    ways = {"L2": l2, "variance": variance, "output": output, "OBS": obs, "elimination": elimination}
    found: dict[str, dict[str, Values]] = {}
    for axis in SHARES:
        others = {name: moments.scores(axis, way) for name, way in ways.items()}
        found[axis] = {MINITRON: getattr(bench.minitron, axis), **others, "Fisher": slopes[axis]}
    return found


def with_scores(bench: Bench, **scores: Values) -> Bench:
    """The bench with Minitron's scores, and with ``scores`` for some axes."""
    other = copy.copy(bench)
    other.minitron = replace(bench.minitron, **scores)
    other.common = replace(bench.common, scores=replace(bench.minitron, **scores))
    return other


def cut(bench: Bench, axis: str) -> Architecture:
    """The teacher's architecture with one axis reduced to its share."""
    shape, share = bench.common.teacher.shape, SHARES[axis]
    heads, kv_heads, mlp = shape.heads, shape.kv_heads, shape.mlp
    if axis == "heads":
        kv_heads = max(1, round(kv_heads * share))
        heads = kv_heads * shape.group
    else:
        mlp = round(mlp * share)
    return Architecture.uniform(shape.layers, shape.hidden, heads, mlp, kv_heads)


def compare(bench: Bench, axis: str, scores: dict[str, Values]) -> str:
    """Print the table of one axis. Returns the score whose refitted student is best."""
    architecture, excess = cut(bench, axis), {}
    print(f"\n{axis}: {architecture.key}\n{'score':<12}{'slices':>8}{'refit':>8}")
    for name, values in scores.items():
        own = with_scores(bench, **{axis: values})
        ways = (mean_loss(own.losses(own.student(architecture, way))) - bench.teacher_loss for way in (SLICES, REFIT))
        sliced, excess[name] = ways
        print(f"{name:<12}{sliced:8.3f}{excess[name]:8.3f}", flush=True)
    return min(excess, key=excess.__getitem__)


def main() -> None:
    parser = flags_of(__doc__)
    parser.add_argument("--score-windows", type=int, default=64, help="calibration windows for the scores")
    parser.add_argument("--axes", nargs="+", choices=sorted(SHARES), default=sorted(SHARES))
    flags = parser.parse_args()
    plan = plan_of(flags)
    bench = Bench(plan)
    scores = all_scores(bench, bench.common.streams.windows[: flags.score_windows])
    print(f"teacher {bench.teacher_loss:.4f}; excess loss, nats a token")
    best = {axis: compare(bench, axis, scores[axis]) for axis in flags.axes}
    architecture = dict(informed(plan.target.shape, plan.target.feasible))["balanced"]
    print(f"\n{architecture.key}, by {', '.join(f'{name} ({axis})' for axis, name in best.items())}, and by Minitron")
    chosen = with_scores(bench, **{axis: scores[axis][name] for axis, name in best.items()})
    both = (chosen, with_scores(bench))
    before = [mean_loss(one.losses(one.student(architecture, REFIT))) - bench.teacher_loss for one in both]
    after = [one.distilled(architecture, REFIT) for one in both]
    losses = [mean_loss(one) - bench.teacher_loss for one in after]
    print(f"before {before[0]:.3f} and {before[1]:.3f}; after {bench.recipe.tokens:,} tokens", end=" ")
    print(f"{losses[0]:.3f} and {losses[1]:.3f}, difference {paired_difference(after[0], after[1])}")


if __name__ == "__main__":
    main()
