"""Decides which number format a device trains in and whether it uses `torch.compile`, with the reasons."""

from __future__ import annotations

import importlib.util
import shutil
import sysconfig
from pathlib import Path

import torch


def training_precision(device: str) -> tuple[torch.dtype, str]:
    """The dtype of matrix products in training on ``device`` ("cpu" or "cuda"), and the reason in words.

    It is bfloat16 if the hardware multiplies it natively. Emulated bfloat16 is several times slower than float32.
    """
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return _chosen(native, "bfloat16 tensor cores")
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return _chosen(native, "AVX512-BF16 or AMX")


def autocast(device: str) -> torch.autocast:
    """The autocast context for a training step on ``device``. Weights and optimizer state stay in float32."""
    dtype, _ = training_precision(device)
    return torch.autocast(device, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16)


def compiles(device: str) -> tuple[bool, str]:
    """Whether `torch.compile` is used on ``device``, and the reason in words.

    On CUDA it fuses many memory-bound kernels into one.
    """
    if device == "cpu":
        return False, "nothing is compiled on a CPU"
    if importlib.util.find_spec("triton") is None:
        return False, "nothing is compiled, so training is slower: Triton is not installed"
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return False, "nothing is compiled, so training is slower: Triton needs a C compiler (cc, gcc or clang)"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return False, "nothing is compiled, so training is slower: Triton needs Python.h (Debian: python3-dev)"
    return True, "losses are compiled by Triton"


def _chosen(native: bool, feature: str) -> tuple[torch.dtype, str]:
    if native:
        return torch.bfloat16, f"bfloat16 products, float32 weights: this device has {feature}"
    return torch.float32, f"float32: this device lacks {feature}"
