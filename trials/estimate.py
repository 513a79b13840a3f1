"""How long a trial will take, from its FLOPs and a measurement of this machine that takes under a second."""

from __future__ import annotations

import time
from functools import lru_cache

import torch

from search_spaces.architecture import Architecture
from search_spaces.shape import ModelShape
from trials.losses.precision import training_precision
from trials.recipe import SCREEN_CALIBRATION, SCREEN_VALIDATION, Recipe, Way
from trials.teacher.second_moments import moments_count
from trials.teacher.streams import most_windows
from trials.teacher.targets import way_for

PROBE_SECONDS = 0.3
PROBE_TOKENS = {"cpu": 1024, "cuda": 16384}
# Share of a bare matrix product's speed that a trial reaches: softmax, norms, attention, the optimizer take the rest.
EFFICIENCY = {"cpu": 0.55, "cuda": 0.35}


def estimate_seconds(shape: ModelShape, architecture: Architecture, recipe: Recipe, device: str) -> float:
    """Seconds for a full trial of ``architecture`` on this machine's ``device``, alone on it; right within about 2x.

    Without what is done once for all trials: corpus, importance scores, the teacher's streams and targets.
    """
    work = training_flops(shape, architecture, recipe, device) + evaluation_flops(shape, architecture, recipe)
    work += refit_flops(shape, architecture, recipe, refit_windows(shape, recipe, device))
    return _seconds(work, shape, device)


def estimate_screen_seconds(shape: ModelShape, architecture: Architecture, recipe: Recipe, device: str) -> float:
    """Seconds for screening ``architecture``, as `estimate_seconds`."""
    return _seconds(screen_flops(shape, architecture, recipe, SCREEN_CALIBRATION, SCREEN_VALIDATION), shape, device)


def _seconds(work: int, shape: ModelShape, device: str) -> float:
    return work / (EFFICIENCY[device] * _flops_per_second(shape.hidden, device))


def training_flops(shape: ModelShape, architecture: Architecture, recipe: Recipe, device: str) -> int:
    """FLOPs of all training steps: the student forward and backward (twice a forward), and the teacher.

    Where the text has a share in the loss, the student's output projection is worked through for it once more.
    """
    length, way = recipe.sequence_length, way_for(shape, recipe.tokens, device, recipe.teacher_targets)
    step = 3 * shape.flops_per_token(architecture, length) + teacher_flops(shape, length, way)
    again = 6 * shape.vocab * architecture.hidden if recipe.text_share else 0
    windows = recipe.tokens // length
    return recipe.tokens * step + windows * (length - 1) * again


def teacher_flops(shape: ModelShape, length: int, way: Way) -> int:
    """FLOPs of the teacher for a token of a step: all of it, its output projection, or nothing (`trials.teacher.targets`)."""
    ways = {"online": shape.flops_per_token(shape.full, length), "cached": 2 * shape.vocab * shape.hidden, "drawn": 0}
    return ways[way]


def evaluation_flops(shape: ModelShape, architecture: Architecture, recipe: Recipe) -> int:
    """FLOPs of reading all validation texts before training and at every rung."""
    readings = (len(recipe.rungs) + 1) * (1 + len(recipe.validation))
    return readings * recipe.validation_tokens * shape.flops_per_token(architecture, recipe.sequence_length)


def screen_flops(
    shape: ModelShape, architecture: Architecture, recipe: Recipe, calibration: int, validation: int
) -> int:
    """FLOPs of screening a student (see `trials.screen.screen`) on so many tokens of each text."""
    length, texts = recipe.sequence_length, 1 + len(recipe.validation)
    reading = texts * max(1, validation // length) * length * shape.flops_per_token(architecture, length)
    return refit_flops(shape, architecture, recipe, max(1, calibration // length)) + reading


def refit_windows(shape: ModelShape, recipe: Recipe, device: str) -> int:
    """How many windows the student of a trial is refitted on."""
    return min(recipe.calibration_samples, most_windows(shape, recipe.sequence_length, device))


def refit_flops(shape: ModelShape, architecture: Architecture, recipe: Recipe, windows: int) -> int:
    """FLOPs of refitting a student: one pass without logits, and two products for each output projection.

    They are the second moments of its inputs, and those of inputs and what is wanted of it, which for a narrower stream
    is the teacher's turned; once for all tokens, what the projection gives already is taken from those. Solving for the
    change is left out.
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
    """Speed of the matrix product of an MLP of this width, in the format of training, after a warm-up."""
    dtype, _ = training_precision(device)
    tokens = torch.ones(PROBE_TOKENS[device], hidden, dtype=dtype, device=device)
    matrix = torch.ones(hidden, 4 * hidden, dtype=dtype, device=device)
    _products(tokens, matrix, 1)
    count, seconds = 1, _products(tokens, matrix, 1)
    while seconds < PROBE_SECONDS / 2:
        count *= 2
        seconds = _products(tokens, matrix, count)
    return count * 2 * tokens.shape[0] * matrix.numel() / seconds


def _products(tokens: torch.Tensor, matrix: torch.Tensor, count: int) -> float:
    """Seconds that ``count`` products take."""
    started = time.perf_counter()
    for _ in range(count):
        product = tokens @ matrix
    float(product[0, 0])  # on CUDA, wait until it is there
    return time.perf_counter() - started
