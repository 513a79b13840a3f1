"""Estimates how long a trial takes, from its FLOPs and a speed test of this machine that takes under a second.

Neighbours on the machine are not counted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

from search_spaces.architecture import Architecture
from search_spaces.shape import ModelShape
from trials.compress.compress import text_share_of
from trials.losses.precision import training_precision
from trials.recipe import SCREEN_CALIBRATION, SCREEN_VALIDATION, Recipe
from trials.teacher.second_moments import moments_count
from trials.teacher.streams import most_windows
from trials.teacher.targets import Way, way_for

PROBE_SECONDS, PROBES = 0.02, 9  # of one measurement, at least; their number
CLOCKS = {"cpu": time.process_time, "cuda": time.perf_counter}
PROBE_TOKENS = {"cpu": 1024, "cuda": 16384}
# The share of a bare matrix product's speed that a trial reaches. Softmax, norms, attention and the optimizer take the
# rest.
EFFICIENCY = {"cpu": 0.22, "cuda": 0.35}


def estimate_seconds(shape: ModelShape, architecture: Architecture, recipe: Recipe, device: str) -> float:
    """Seconds of a full trial of ``architecture`` on one core of this machine, or on one GPU, within about 2x.

    Work that is shared by all trials is not counted: corpus, importance scores, the teacher's streams and targets.
    """
    work = training_flops(shape, architecture, recipe, device) + evaluation_flops(shape, architecture, recipe)
    return _seconds(work + _refit_flops(shape, architecture, recipe, device), shape, device)


def estimate_making_seconds(shape: ModelShape, architecture: Architecture, recipe: Recipe, device: str) -> float:
    """Seconds until ``architecture`` is cut from the teacher and evaluated once; otherwise as `estimate_seconds`."""
    evaluation = evaluation_flops(shape, architecture, recipe) // (len(recipe.rungs) + 1)
    return _seconds(evaluation + _refit_flops(shape, architecture, recipe, device), shape, device)


def _refit_flops(shape: ModelShape, architecture: Architecture, recipe: Recipe, device: str) -> int:
    if not recipe.refit:
        return 0
    return refit_flops(shape, architecture, recipe, refit_windows(shape, recipe, device))


def estimate_screen_seconds(shape: ModelShape, architecture: Architecture, recipe: Recipe, device: str) -> float:
    """Seconds of screening ``architecture``; otherwise as `estimate_seconds`."""
    return _seconds(screen_flops(shape, architecture, recipe, SCREEN_CALIBRATION, SCREEN_VALIDATION), shape, device)


def _seconds(work: int, shape: ModelShape, device: str) -> float:
    return work / (EFFICIENCY[device] * _flops_per_second(shape.hidden, device))


def training_flops(shape: ModelShape, architecture: Architecture, recipe: Recipe, device: str) -> int:
    """FLOPs of all training steps: the student's forward and backward pass (twice the forward), and the teacher's work.

    The student's output projection is computed once more when the text's cross-entropy has a share in the loss.
    """
    length, way = recipe.sequence_length, way_for(shape, recipe.tokens, device, recipe.teacher_targets)
    step = 3 * shape.flops_per_token(architecture, length) + teacher_flops(shape, length, way)
    again = 6 * shape.vocab * architecture.hidden if text_share_of(architecture.compression, recipe.text_share) else 0
    windows = recipe.tokens // length
    return recipe.tokens * step + windows * (length - 1) * again


def teacher_flops(shape: ModelShape, length: int, way: Way) -> int:
    """FLOPs of the teacher for one token: a whole pass, its output projection, or none (`trials.teacher.targets`)."""
    ways = {"online": shape.flops_per_token(shape.full, length), "cached": 2 * shape.vocab * shape.hidden, "drawn": 0}
    return ways[way]


def evaluation_flops(shape: ModelShape, architecture: Architecture, recipe: Recipe) -> int:
    """FLOPs of evaluating all validation texts before training and at every rung."""
    evaluations = (len(recipe.rungs) + 1) * (1 + len(recipe.validation))
    return evaluations * recipe.validation_tokens * shape.flops_per_token(architecture, recipe.sequence_length)


def screen_flops(
    shape: ModelShape, architecture: Architecture, recipe: Recipe, calibration: int, validation: int
) -> int:
    """FLOPs of `trials.screen.screen` with ``calibration`` tokens and ``validation`` tokens of each text."""
    length, texts = recipe.sequence_length, 1 + len(recipe.validation)
    evaluation = texts * max(1, validation // length) * length * shape.flops_per_token(architecture, length)
    refit = refit_flops(shape, architecture, recipe, max(1, calibration // length)) if recipe.refit else 0
    return refit + evaluation


def refit_windows(shape: ModelShape, recipe: Recipe, device: str) -> int:
    """The number of windows on which a trial refits its student."""
    return min(recipe.calibration_samples, most_windows(shape, recipe.sequence_length, device))


def refit_flops(shape: ModelShape, architecture: Architecture, recipe: Recipe, windows: int) -> int:
    """FLOPs of refitting a student on ``windows``: one pass without logits, and the sums for each output projection.

    For every token these are the second moments of the projection's inputs, and the products of inputs and wanted
    outputs. For a narrower stream, the wanted outputs are first rotated. The projection's present outputs are
    subtracted once for all tokens. The cost of solving the least-squares problems is not counted.
    """
    length, hidden = recipe.sequence_length, architecture.hidden
    widths = [*(heads * shape.head_dim for heads in architecture.heads), *architecture.mlp]
    fits = sum(2 * (width * hidden + moments_count(width)) for width in widths)
    backbone = shape.flops_per_token(architecture, length) - 2 * shape.vocab * hidden
    fits += 2 * len(widths) * shape.hidden * hidden * (hidden < shape.hidden)
    known = sum(2 * hidden * width**2 for width in widths)
    return windows * length * (backbone + fits) + known


@lru_cache(maxsize=8)
def _flops_per_second(hidden: int, device: str) -> float:
    """Measured FLOPs per second of an MLP's matrix product at this width, in the training dtype, after a warm-up.

    On a CPU these are seconds of one core's own time, which neighbours on the machine do not take away. The median of
    `PROBES` measurements counts.
    """
    dtype, _ = training_precision(device)
    tokens = torch.ones(PROBE_TOKENS[device], hidden, dtype=dtype, device=device)
    matrix = torch.ones(hidden, 4 * hidden, dtype=dtype, device=device)
    clock = CLOCKS[device]
    with _one_thread():
        _products(tokens, matrix, 1, clock)
        count, seconds = 1, _products(tokens, matrix, 1, clock)
        while seconds < PROBE_SECONDS:
            count *= 2
            seconds = _products(tokens, matrix, count, clock)
        middle = statistics.median(_products(tokens, matrix, count, clock) for _ in range(PROBES))
    return count * 2 * tokens.shape[0] * matrix.numel() / middle


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _products(tokens: torch.Tensor, matrix: torch.Tensor, count: int, clock: Callable[[], float]) -> float:
    """Seconds of ``clock`` for ``count`` products."""
    started = clock()
    for _ in range(count):
        product = tokens @ matrix
    float(product[0, 0])  # waits for CUDA to finish
    return clock() - started
