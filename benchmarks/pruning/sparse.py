r"""Compares ways to choose the weights that are 0, before any retraining.

    python -m benchmarks.pruning.sparse
    python -m benchmarks.pruning.sparse --model teachers/SmolLM2-135M-Instruct.Q4_1.gguf --corpus ./wikitext-2

The matrices of all layers of the teacher are made sparse on the same calibration text. Printed is the excess validation
loss over the teacher's in nats per token, and the seconds that it took (`trials.compress.sparsify`).
"""

from __future__ import annotations

import copy
import time

from benchmarks.flags import flags_of, plan_of
from benchmarks.pruning.minitron import Bench
from search_spaces.compression import Sparsity
from trials.compress.sparsify import bake, measured_sparsity, sparsify
from trials.losses.window_losses import mean_loss

METHODS = ("magnitude", "wanda", "sparsegpt")
LEVELS = {"50 %": Sparsity(0.5), "70 %": Sparsity(0.7), "2:4": Sparsity(0.5, "2:4")}


def excess(bench: Bench, sparsity: Sparsity) -> tuple[float, float]:
    """The excess loss of the teacher with ``sparsity``, and the seconds that making it took."""
    model = copy.deepcopy(bench.common.teacher.model).float()
    started = time.perf_counter()
    sparsify(model, sparsity, bench.common.streams.windows.numpy())
    seconds = time.perf_counter() - started
    bake(model)
    assert abs(measured_sparsity(model, sparsity.matrices) - sparsity.level) < 1e-4
    return mean_loss(bench.losses(model)) - bench.teacher_loss, seconds


def main() -> None:
    bench = Bench(plan_of(flags_of(__doc__).parse_args()))  # the budget has no effect here
    calibration = bench.common.streams.windows.numel()
    print(f"teacher {bench.teacher_loss:.4f}; excess loss, nats a token; {calibration:,} tokens of calibration text")
    print(f"{'':<8}" + "".join(f"{method:>12}{'seconds':>9}" for method in METHODS))
    for name, level in LEVELS.items():
        found = [excess(bench, Sparsity(level.level, level.kind, method=method)) for method in METHODS]
        print(f"{name:<8}" + "".join(f"{loss:12.3f}{seconds:9.1f}" for loss, seconds in found), flush=True)


if __name__ == "__main__":
    main()
