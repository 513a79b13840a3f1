"""Writes a checkpoint with its weights in another number format, and checks what others load from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from search_spaces.compression import Compression, Quantization
from search_spaces.errors import InputError
from trials.compress.matrices import layer_matrices
from trials.export.compressed import TOLERANCES, as_exported, in_dtype, write_compressed
from trials.export.export import check_fresh_load, check_replaceable, probe_tokens, rounding_of
from trials.export.model_card import converted_card
from trials.export.onnx_file import write_onnx
from trials.export.tokenizer_files import write_tokenizer
from trials.storage.durable import write_sealed
from trials.teacher.teacher import load_tokenizer

NUMBERS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NF4_INPUTS, NF4_OUTPUTS = 64, 32  # what bitsandbytes multiplies on a CPU, where an export is checked


@dataclass(frozen=True)
class Converted:
    """A written folder. ``difference`` is the largest one from the logits before, ``largest`` the largest logit."""

    path: Path
    bytes: int
    difference: float
    largest: float


@torch.inference_mode()
def write_format(model: PreTrainedModel, source: Path, target: Path, name: str) -> Converted:
    """Write ``model``, loaded from the folder ``source`` in float32, to the folder ``target`` in the format ``name``.

    ``name`` is a key of `NUMBERS`, "int8", "nf4" (both bitsandbytes) or "onnx". The tokenizer's files are copied. The
    result is loaded again before it is put in place: by onnxruntime, or by transformers in a fresh process.

    Raises InputError for what the format cannot hold and for a ``target`` that is no export, and ExportError when the
    loaded model is not the one that was written.
    """
    check_replaceable(target)
    before = model(probe_tokens(model)).logits
    differences: list[float] = []

    def write(folder: Path) -> None:
        differences.append(_WRITERS[name](model, source, folder, before))
        if (source / "README.md").is_file():
            card = converted_card((source / "README.md").read_text("utf-8"), source.name, target.name, name)
            (folder / "README.md").write_text(card, "utf-8")

    target.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(target, write)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    return Converted(target, size, differences[0], float(before.abs().max()))


def _write_numbers(name: str) -> Callable[[PreTrainedModel, Path, Path, Tensor], float]:
    def write(model: PreTrainedModel, source: Path, folder: Path, before: Tensor) -> float:
        dtype = NUMBERS[name]
        for weight, values in model.named_parameters():
            if not values.to(dtype).isfinite().all():
                raise InputError(
                    f"{name}: {weight} holds {float(values.abs().max()):.3g}, which {name} cannot; take bf16"
                )
        difference = rounding_of(in_dtype(model, dtype), before)
        _write_checked(model, Compression(), source, folder)
        return difference

    return write


def _write_coded(scheme: str) -> Callable[[PreTrainedModel, Path, Path, Tensor], float]:
    def write(model: PreTrainedModel, source: Path, folder: Path, before: Tensor) -> float:
        if scheme == "nf4":
            _check_nf4(model)
        shown = _write_checked(model, Compression(quantization=Quantization(scheme)), source, folder)
        return float((shown(probe_tokens(shown)).logits.float() - before).abs().max())

    return write


def _write_checked(model: PreTrainedModel, compression: Compression, source: Path, folder: Path) -> PreTrainedModel:
    """Write ``model`` to ``folder`` and load it in a fresh process; returns the model that was written."""
    tokenizer = load_tokenizer(source)
    shown = as_exported(model, compression, None)
    shown.save_pretrained(folder)
    write_compressed(model, compression, folder)
    write_tokenizer(tokenizer, source, folder)
    check_fresh_load(folder, shown, tokenizer, TOLERANCES[compression.quantization.scheme])
    return shown


def _check_nf4(model: PreTrainedModel) -> None:
    """Raise InputError for matrices that bitsandbytes cannot multiply in four bits on a CPU."""
    matrices = layer_matrices(model)
    wrong = [one for one in matrices if one.weight.shape[1] % NF4_INPUTS or one.weight.shape[0] % NF4_OUTPUTS]
    if wrong:
        outputs, inputs = wrong[0].weight.shape
        raise InputError(
            f"nf4: {len(wrong)} of {len(matrices)} matrices are no multiple of {NF4_INPUTS} inputs and {NF4_OUTPUTS} "
            f"outputs, which bitsandbytes wants on a CPU (the first is {wrong[0].name}, {inputs} to {outputs}); "
            "take int8 or --format gguf"
        )


def _write_onnx(model: PreTrainedModel, source: Path, folder: Path, before: Tensor) -> float:
    write_tokenizer(load_tokenizer(source), source, folder)
    return write_onnx(model, folder / "model.onnx")


_WRITERS: dict[str, Callable[[PreTrainedModel, Path, Path, Tensor], float]] = {
    **{name: _write_numbers(name) for name in NUMBERS},
    "int8": _write_coded("int8"),
    "nf4": _write_coded("nf4"),
    "onnx": _write_onnx,
}
