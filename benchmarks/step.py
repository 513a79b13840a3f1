"""What a step of distillation costs: the straightforward loop beside ours, on the same student and the same batches.

    python -m benchmarks.step --model teachers/SmolLM2-135M-Instruct.Q4_1.gguf --corpus ./wikitext-2 --budget 100M

The straightforward loop is what one would write first: the teacher reads every batch, both models give all their
logits, everything is in float32, and memory is as the system hands it out. Ours is `trials.distill` in the environment
that `nas.runner` gives its workers: stored targets, the loss in pieces of the vocabulary, bfloat16 products where the
processor has them. Each runs in a process of its own, one after the other, `REPETITIONS` times, on all cores. Prints
tokens per second (median), peak memory, and the validation loss that each came to.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from nas.plan import Machine, Plan, make_plan, resolve_target
from nas.runner import ALLOCATOR_ENVIRONMENT
from nas.settings import load_settings
from trials.corpus import BatchOrder, windows
from trials.distill import MAX_GRADIENT_NORM, DistillSettings, distill, learning_rate, make_optimizer
from trials.evaluate import validation_loss
from trials.preparation import Shared, shared
from trials.prune import prune

STEPS, WARM_UP, REPETITIONS = 8, 2, 3  # of the steps, so many at the start are not timed
SIZES = {"sequence_length": "256", "batch_tokens": "1024", "validation_tokens": "8192", "calibration_samples": "16"}
LOOPS = ("straightforward", "ours")


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokens per second of distillation, side by side.")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--corpus", default="stdlib")
    parser.add_argument("--budget", default="60%")
    parser.add_argument("--loop", choices=LOOPS, help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.loop:
        print(json.dumps(measured(given.loop, given.model, given.corpus, given.budget, Path(given.cache))))
        return
    with tempfile.TemporaryDirectory() as cache:
        found: dict[str, list[dict[str, float]]] = {loop: [] for loop in LOOPS}
        for _ in range(REPETITIONS):
            for loop, results in found.items():
                results.append(child(loop, given, cache))
    for loop, results in found.items():
        speed, gigabytes, loss = (statistics.median(one[name] for one in results) for name in results[0])
        print(f"{loop:<16}{speed:8.1f} tokens/s {gigabytes:6.2f} GiB   loss {loss:.4f} after {STEPS} steps")
    ratios = [ours["speed"] / plain["speed"] for plain, ours in zip(*found.values(), strict=True)]
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"ours is {statistics.median(ratios):.2f} times as fast (the repetitions: {each})")


def child(loop: str, given: argparse.Namespace, cache: str) -> dict[str, float]:
    """One loop in a process of its own, in the environment that it would have."""
    command = [sys.executable, "-m", "benchmarks.step", "--loop", loop, "--cache", cache]
    command += ["--model", given.model, "--corpus", given.corpus, "--budget", given.budget]
    environment = {**os.environ, **(ALLOCATOR_ENVIRONMENT if loop == "ours" else {})}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measured(loop: str, model: str, corpus: str, budget: str, cache: Path) -> dict[str, float]:
    """Tokens per second, peak memory of the process in GiB, and the validation loss at the end."""
    flags = {"model": model, "corpus": corpus, "budget": budget, "workers": "1", **SIZES}
    settings = load_settings({**flags, "tokens_per_trial": str(STEPS * int(SIZES["batch_tokens"]))}, None, {})
    plan = make_plan(settings, resolve_target(settings), Machine.local())
    torch.set_num_threads(plan.resources.cpus)
    common = shared(plan.recipe, str(cache), "cpu")
    candidate = plan.target.feasible[len(plan.target.feasible) // 2]
    student = prune(common.teacher.model, common.scores, candidate).float()
    speed = {"straightforward": straightforward, "ours": ours}[loop](plan, common, student)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    text = windows(common.corpus.validation, plan.recipe.sequence_length)
    return {"speed": speed, "memory": peak, "loss": validation_loss(student, common.targets.family, text)}


def ours(plan: Plan, common: Shared, student: PreTrainedModel) -> float:
    """Tokens per second of `distill`; one window is measured within that time."""
    settings = _settings(plan)
    corpus = replace(common.corpus, validation=common.corpus.validation[: settings.sequence_length])
    with tempfile.TemporaryDirectory() as folder:
        result = distill(student, common.targets, corpus, settings, Path(folder), lambda *_: None)
    _, first, last = (rung.metrics["seconds"] for rung in result.rungs)
    return (settings.tokens - settings.rungs[0]) / (last - first)


def straightforward(plan: Plan, common: Shared, student: PreTrainedModel) -> float:
    """Tokens per second of the loop that one would write first; same optimizer, rate, clipping and batches."""
    settings, teacher = _settings(plan), common.teacher.model
    text = windows(common.corpus.train, settings.sequence_length)
    order = BatchOrder(len(text), settings.batch_windows, settings.seed, settings.first_windows)
    optimizer = make_optimizer(student, settings.learning_rate)
    started = time.perf_counter()
    for step in range(settings.steps):
        if step == WARM_UP:
            started = time.perf_counter()
        tokens = torch.from_numpy(text[order.indices(step)].astype(np.int64))
        with torch.no_grad():
            target = F.log_softmax(teacher(tokens, use_cache=False).logits, dim=-1)
        own = F.log_softmax(student(tokens, use_cache=False).logits, dim=-1)
        loss = F.kl_div(own.flatten(0, 1), target.flatten(0, 1), log_target=True, reduction="batchmean")
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(student.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
    return (settings.tokens - settings.rungs[0]) / (time.perf_counter() - started)


def _settings(plan: Plan) -> DistillSettings:
    recipe = plan.recipe
    rungs = WARM_UP * recipe.batch_tokens, recipe.tokens
    sizes = recipe.sequence_length, recipe.batch_tokens
    return DistillSettings(recipe.tokens, rungs, *sizes, recipe.learning_rate, recipe.seed, "benchmark")


if __name__ == "__main__":
    main()
