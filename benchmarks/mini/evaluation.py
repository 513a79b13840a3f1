"""Evaluates a model of the standard library's text: bits per byte on held-out text."""

from __future__ import annotations

import gzip
import lzma
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trials.text.packing import encode
from trials.text.stdlib_text import validation_documents

BATCH = 16


def held_out_report(folder: Path) -> dict[str, Any]:
    """Bits per UTF-8 byte of the held-out documents, for the model and for simpler compressors.

    gzip and xz get the whole text as one file. The unigram values are entropies of the held-out text itself, so they
    are lower bounds for unigram models fitted on other text.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [document.text for document in validation_documents()]
    content = "".join(texts).encode()
    tokens = [token for document in encode(tokenizer, texts) for token in document]
    model_bits = held_out_bits(model, tokenizer, texts)
    bits = {
        "model": model_bits,
        "unigram, tokens": entropy_bits(tokens),
        "unigram, bytes": entropy_bits(content),
        "gzip -9": 8.0 * len(gzip.compress(content, compresslevel=9)),
        "xz -9e": 8.0 * len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)),
    }
    return {
        "held-out documents": len(texts),
        "held-out bytes": len(content),
        "held-out tokens": len(tokens),
        "nats per token": round(model_bits * math.log(2) / len(tokens), 4),
        "bits per byte": {name: round(value / len(content), 4) for name, value in bits.items()},
        "nats per token more without layer": [round(nats, 3) for nats in layer_damage(model, tokens)],
    }


def held_out_bits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> float:
    """Bits that the model needs for all ``texts``."""
    documents = encode(tokenizer, texts)
    return total_nats(model, documents, model.config.n_positions, tokenizer.eos_token_id) / math.log(2)


@torch.no_grad()
def layer_damage(model: PreTrainedModel, tokens: list[int], windows: int = 32) -> list[float]:
    """For each layer, the increase of the mean loss in nats per token when this layer alone is removed.

    The loss is measured on the first ``windows`` windows of ``tokens``, each as long as the model's positions.
    """
    length = model.config.n_positions
    text = torch.tensor(tokens[: windows * length]).view(-1, length)
    layers = list(model.transformer.h)

    def loss(kept: list[torch.nn.Module]) -> float:
        model.transformer.h = torch.nn.ModuleList(kept)
        return float(model(input_ids=text, labels=text, use_cache=False).loss)

    whole = loss(layers)
    damage = [loss(layers[:place] + layers[place + 1 :]) - whole for place in range(len(layers))]
    model.transformer.h = torch.nn.ModuleList(layers)
    return damage


@torch.no_grad()
def total_nats(model: torch.nn.Module, documents: Sequence[list[int]], length: int, end: int) -> float:
    """The negative log likelihood of all tokens of all documents, in nats.

    A document is cut into consecutive pieces of ``length`` tokens. Each piece follows one end-of-text token instead of
    its true context. So every token is predicted once, and the first of a piece has no context.
    """
    pieces = [document[start : start + length] for document in documents for start in range(0, len(document), length)]
    pieces.sort(key=len)
    return sum(_batch_nats(model, pieces[start : start + BATCH], end) for start in range(0, len(pieces), BATCH))


def _batch_nats(model: torch.nn.Module, pieces: Sequence[list[int]], end: int) -> float:
    width = max(map(len, pieces))
    inputs = torch.tensor([[end, *piece[:-1]] + [end] * (width - len(piece)) for piece in pieces])
    targets = torch.tensor([piece + [-100] * (width - len(piece)) for piece in pieces])
    logits = model(input_ids=inputs, use_cache=False).logits.float()
    return float(F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"))


def entropy_bits(symbols: Iterable[int]) -> float:
    """Bits that an ideal code for the symbols' own frequencies needs for all ``symbols``."""
    counts = Counter(symbols)
    total = counts.total()
    return -sum(count * math.log2(count / total) for count in counts.values())
