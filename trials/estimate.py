"""How long a trial will take: its FLOPs against a short measurement of this machine."""

from __future__ import annotations

import time

import torch

from search_spaces.architecture import Architecture
from search_spaces.shape import ModelShape
from trials.preparation import Recipe

PROBE_SECONDS = 0.4
PROBE_SIZE = {"cpu": 512, "cuda": 4096}
EFFICIENCY = 0.5  # of the matrix products' speed; the rest goes into attention, norms, optimizer and copies
BACKWARD = 2  # forward passes that a backward pass costs


def trial_flops(shape: ModelShape, architecture: Architecture, recipe: Recipe) -> int:
    """FLOPs of one full trial: the teacher's forward, the student's training steps, and its evaluations."""
    teacher = shape.flops_per_token(shape.full, recipe.sequence_length)
    student = shape.flops_per_token(architecture, recipe.sequence_length)
    readings = (1 + len(recipe.rungs)) * recipe.validation_tokens
    return recipe.tokens * (teacher + (1 + BACKWARD) * student) + readings * student


def estimate_seconds(shape: ModelShape, architecture: Architecture, recipe: Recipe, device: str) -> float:
    """Seconds of one full trial that has the whole of ``device`` to itself; right to a factor of about two."""
    return trial_flops(shape, architecture, recipe) / (EFFICIENCY * matmul_flops(device))


@torch.inference_mode()
def matmul_flops(device: str) -> float:
    """FLOP/s of square matrix products on ``device``: float32 on a CPU, bfloat16 on CUDA; takes under a second.

    The fastest of many counts: what slows the others is somebody else's work, and will pass.
    """
    size = PROBE_SIZE[device]
    left = torch.randn(size, size, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    right = torch.randn_like(left)
    times, ends = [float("inf")], time.perf_counter() + PROBE_SECONDS
    while (started := time.perf_counter()) < ends:
        left @ right
        _finish(device)
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
