"""Writes what is special in the checkpoint of a compressed student."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from search_spaces.compression import Compression
from trials.compress.compress import round_weights
from trials.compress.quantize import DTYPE, quantization_config, quantized_state
from trials.export.packed import PACKED, unpack, write_packed

WEIGHTS = "model.safetensors"
# The largest difference between logits, as a share of the largest logit. bitsandbytes multiplies in half precision, and
# LLM.int8() also rounds the inputs. A file with wrong codes differs by about 1.
TOLERANCES = {"none": 1e-5, "int8": 0.1, "int8wo": 0.1, "nf4": 0.1}
# The same for numbers that were in float32 before.
ROUNDING = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float32: 1e-5}


def as_exported(student: PreTrainedModel, compression: Compression, dtype: torch.dtype | None) -> PreTrainedModel:
    """The model that the checkpoint of ``student`` holds: with rounded weights, and in the checkpoint's dtype.

    A compressed student is in bfloat16, any other in ``dtype``; None keeps its own. Without compression it is
    ``student`` itself, changed.
    """
    if not compression:
        return student if dtype is None else in_dtype(student, dtype)
    shown = copy.deepcopy(student)
    round_weights(shown, compression)
    return in_dtype(shown, DTYPE)


def in_dtype(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """``model`` itself with its parameters in ``dtype``. Buffers stay: rotary positions are in float32 when loaded."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    model.config.dtype = dtype
    return model


def write_compressed(student: PreTrainedModel, compression: Compression, folder: Path) -> None:
    """Complete the checkpoint of ``student`` in ``folder``, which `as_exported` has written without compression.

    ``student`` holds the weights before they are rounded. Quantized weights replace the plain ones, and the
    configuration names the quantization. Sparse weights are written to a packed file too, and read back.

    Raises ValueError when the packed file does not give the same weights.
    """
    quantization = compression.quantization
    if quantization.scheme != "none":
        state, about = quantized_state(student, quantization)
        tensors = {name: one.contiguous() for name, one in state.items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", **about})
        config = json.loads((folder / "config.json").read_text("utf-8"))
        config["quantization_config"] = quantization_config(student, quantization)
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    if compression.sparsity.level:
        write_packed(student, compression, folder)
        _check_packed(as_exported(student, compression, None), folder)


def _check_packed(shown: PreTrainedModel, folder: Path) -> None:
    wanted, found = dict(shown.named_parameters()), unpack(folder / PACKED)
    wrong = [name for name, one in wanted.items() if name not in found or not torch.equal(found[name], one)]
    if wrong or set(found) != set(wanted):
        raise ValueError(f"{PACKED}: {[*wrong, *(set(found) ^ set(wanted))][0]} differs from the student's")
