"""What a model of the standard library's text has learnt: bits per byte on text that it has not seen."""

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

from trials.text.corpus import encode
from trials.text.stdlib_text import validation_documents

BATCH = 16


def held_out_report(folder: Path) -> dict[str, Any]:
    """Bits per UTF-8 byte of the held-out documents: the model's, and what simpler means reach on the same bytes.

    gzip and xz get all of it as one file; the unigram figures are entropies of the held-out text itself, so they
    are less than any unigram model fitted on other text would need.
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
    """Bits that the model needs for all of the texts."""
    documents = encode(tokenizer, texts)
    return total_nats(model, documents, model.config.n_positions, tokenizer.eos_token_id) / math.log(2)


@torch.no_grad()
def layer_damage(model: PreTrainedModel, tokens: list[int], windows: int = 32) -> list[float]:
    """How much the mean loss grows, in nats per token, when one layer after another is left out.

    On the first ``windows`` windows of the model's positions, each read on its own.
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
    """Summed negative log likelihood of every token of every document.

    A document is cut into pieces of ``length`` tokens that do not overlap, each behind one end-of-text token in the
    place of what came before: every token is predicted once, the first of a piece from no context at all.
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
    """Bits that an ideal code of the symbols' own frequencies needs for all of them."""
    counts = Counter(symbols)
    total = counts.total()
    return -sum(count * math.log2(count / total) for count in counts.values())
