"""A model as an ONNX file, checked in onnxruntime."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from search_spaces.errors import InputError
from trials.compress.extras import check_installed
from trials.export.errors import ExportError
from trials.families.base import positions_of

INPUTS, OUTPUT = ("input_ids", "attention_mask"), "logits"
OPSET = 18
LARGEST_FILE = 2**31  # bytes of one file, which protobuf limits
TOLERANCE = 1e-4  # of logits, as a share of the largest
TRACED = (2, 9)  # sequences and tokens of the example
CHECKED = ((1, 1), (2, 9), (3, 40))  # other numbers of sequences and tokens, so that nothing of the example is fixed


class _Logits(nn.Module):
    """``model`` as a function of token ids and a mask (B, T), both int64, that returns logits (B, T, vocab)."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, use_cache=False, **positions_of(attention_mask)).logits
        return logits


def write_onnx(model: PreTrainedModel, path: Path) -> float:
    """Write ``model`` in float32 to ``path``; returns the largest difference between logits in onnxruntime.

    The file maps ``input_ids`` and ``attention_mask`` (batch, length) to ``logits``. Padding takes up no position. It
    has no key/value cache, so it reads text; it does not generate fast. torch's older exporter writes it, because the
    newer one needs one more package.

    Raises InputError when onnxruntime is missing or the weights do not fit in one file, and ExportError when the logits
    differ.
    """
    check_installed("onnx", "onnx")
    check_installed("onnxruntime", "onnx")
    size = sum(weight.numel() * 4 for weight in model.parameters())
    if size >= LARGEST_FILE:
        raise InputError(
            f"onnx: {size:,} bytes of weights, and one file holds less than {LARGEST_FILE:,}; take another"
        )
    model.set_attn_implementation("eager")  # its operations are all in ONNX
    moving = {name: {0: "batch", 1: "length"} for name in (*INPUTS, OUTPUT)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is the older one, and that it fixes what the check below would find
        torch.onnx.export(
            _Logits(model).eval(),
            _example(model, *TRACED),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_axes=moving,
        )
    return _checked(model, path)


def _example(model: PreTrainedModel, count: int, length: int) -> tuple[Tensor, Tensor]:
    """Token ids and a mask, with padding in front of the first sequence."""
    length = min(length, model.config.max_position_embeddings)
    tokens = torch.randint(model.config.vocab_size, (count, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(tokens)
    mask[0, : length // 3] = 0
    return tokens, mask


def _checked(model: PreTrainedModel, path: Path) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for count, length in CHECKED:
        tokens, mask = _example(model, count, length)
        [found] = session.run(None, dict(zip(INPUTS, (tokens.numpy(), mask.numpy()), strict=True)))
        expected = _Logits(model).eval()(tokens, mask).numpy()
        real = mask.numpy().astype(bool)
        difference = float(np.abs(found[real] - expected[real]).max())
        if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise ExportError(
                f"onnx: logits of {count} x {length} tokens differ by up to {difference:.3g} in onnxruntime"
            )
        worst = max(worst, difference)
    return worst
