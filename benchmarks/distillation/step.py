r"""Compares the training step with a straightforward one: tokens per second, and the final validation loss.

    python -m benchmarks.distillation.step --model teachers/SmolLM2-135M-Instruct.Q4_1.gguf \
      --corpus ./wikitext-2 --budget 100M

Straightforward: the teacher runs on every batch, all logits are kept, everything is in float32, and the allocator has
its default settings. Ours: the loop of the trials as a worker runs it, with stored teacher states, loss and gradient by
chunks of tokens, bfloat16 products where the hardware has them, and the allocator settings of
`nas.cluster.session.WORKER_ENVIRONMENT`.

Both train the same student on the same batches at the same rates. Each repetition is a process of its own; the two
loops take turns. The teacher's states, which all trials share, are computed before. With ``--teacher-targets drawn``
they are replaced by tokens drawn from its distributions, and a step does not need the teacher.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from benchmarks.flags import flags_of, plan_of
from nas.cluster.session import WORKER_ENVIRONMENT
from nas.planning.candidates import informed
from nas.planning.plan import Plan
from trials.distill.distill import MAX_GRADIENT_NORM, DistillSettings, distill, learning_rate, make_optimizer
from trials.losses.window_losses import validation_loss
from trials.preparation import Shared, shared
from trials.prune.prune import prune
from trials.text.corpus import BatchOrder, windows

STRAIGHTFORWARD, OURS = "straightforward", "ours"


def straightforward(student: PreTrainedModel, common: Shared, settings: DistillSettings) -> float:
    """Seconds of all steps of ``settings`` in a straightforward loop."""
    teacher, train = common.teacher.model, windows(common.corpus.train, settings.sequence_length)
    order = BatchOrder(len(train), settings.batch_windows, settings.seed, settings.first_windows)
    optimizer = make_optimizer(student, settings.learning_rate)
    started = time.perf_counter()
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        tokens = torch.from_numpy(train[order.indices(step)].astype("int64"))
        with torch.no_grad():
            target = F.log_softmax(teacher(tokens).logits.flatten(0, 1), dim=-1)
        own = F.log_softmax(student(tokens).logits.flatten(0, 1), dim=-1)
        optimizer.zero_grad()
        torch.autograd.backward(F.kl_div(own, target, log_target=True, reduction="batchmean"))
        torch.nn.utils.clip_grad_norm_(student.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
    return time.perf_counter() - started


def ours(student: PreTrainedModel, common: Shared, settings: DistillSettings) -> float:
    """Seconds of all steps of ``settings`` in `distill`. Its two evaluations use one window and are subtracted."""
    corpus = replace(common.corpus, validation=common.corpus.validation[: settings.sequence_length], further=())
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        distill(student, common.targets, corpus, settings, Path(folder), lambda _, one: seconds.append(one["seconds"]))
    validating, total = seconds
    return total - 2 * validating


def repetition(plan: Plan, way: str) -> dict[str, float]:
    """Tokens per second and final validation loss of one run in this process."""
    torch.set_num_threads(plan.resources.cpus)
    recipe, target = plan.recipe, plan.target
    common = shared(recipe, str(plan.cache), "cpu")
    architecture = dict(informed(target.shape, target.feasible))["balanced"]
    student = prune(common.teacher.model, common.scores, architecture, common.streams).float()
    sizes = (recipe.tokens, (recipe.tokens,), recipe.sequence_length, recipe.batch_tokens, recipe.learning_rate)
    settings = DistillSettings(*sizes, recipe.seed, identity="benchmark")
    seconds = {STRAIGHTFORWARD: straightforward, OURS: ours}[way](student, common, settings)
    text = windows(common.corpus.validation, recipe.sequence_length)
    return {"speed": recipe.tokens / seconds, "loss": validation_loss(student, common.targets.family, text)}


def in_a_process(arguments: list[str], way: str) -> dict[str, float]:
    """`repetition` in a process of its own, with the allocator settings of ``way``."""
    environment = {**os.environ, **(WORKER_ENVIRONMENT if way == OURS else {})}
    command = [sys.executable, "-m", "benchmarks.distillation.step", *arguments, "--way", way]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{way:<16}{found['speed']:8.0f} tokens/s, validation loss {found['loss']:.4f}", flush=True)
    return found


def main() -> None:
    parser = flags_of(__doc__, calibration_samples=64, validation_tokens=4_096, teacher_targets=None)
    parser.add_argument("--way", choices=(STRAIGHTFORWARD, OURS), default=None, help=argparse.SUPPRESS)
    parser.add_argument("--repetitions", type=int, default=3)
    flags = parser.parse_args()
    plan = plan_of(flags)
    if flags.way:
        print(json.dumps(repetition(plan, flags.way)))
        return
    shared(plan.recipe, str(plan.cache), "cpu")  # computes what all trials share before the first repetition
    ways = [STRAIGHTFORWARD, OURS] * flags.repetitions
    found = [(one, in_a_process(sys.argv[1:], one)) for one in ways]
    speeds = {one: statistics.median(run["speed"] for way, run in found if way == one) for one in ways}
    ratios = [ours["speed"] / plain["speed"] for (_, plain), (_, ours) in zip(found[::2], found[1::2], strict=True)]
    print(
        f"median {speeds[STRAIGHTFORWARD]:.0f} and {speeds[OURS]:.0f} tokens/s: {statistics.median(ratios):.2f} times"
    )


if __name__ == "__main__":
    main()
