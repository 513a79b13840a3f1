"""Perplexities by the conventions of published tables. Values of different conventions cannot be compared.

*Token* perplexity is exp of the mean loss per token. It cannot compare models with different tokenizers. *Word*
perplexity and *bits per byte* divide the total loss by units that do not depend on the tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from search_spaces.errors import InputError
from trials.evaluate.likelihood import Measurement, Score, Window, total_nats
from trials.evaluate.reading import TOKEN_PERPLEXITY, Reading, perplexity
from trials.text.evaluation_text import Document

NON_OVERLAPPING = "non-overlapping windows"
STRIDED = "strided windows"
ROLLING = "rolling documents"


def token_perplexity(task: str, tokens: Sequence[int], length: int) -> Measurement:
    """Token perplexity on independent windows of ``length`` tokens. A shorter remainder at the end is left out.

    This is the convention of compression papers: GPTQ (opt.py ``opt_eval``, datautils.py), SparseGPT (the same) and
    Wanda (lib/eval.py ``eval_ppl_wikitext``), mostly with a length of 2,048. The first token of a window is not
    predicted.
    """
    windows = non_overlapping(tokens, length)
    return _by_token(Reading(task, NON_OVERLAPPING, TOKEN_PERPLEXITY, 0, "per token", length=length), windows)


def strided_perplexity(task: str, tokens: Sequence[int], length: int, stride: int) -> Measurement:
    """Token perplexity on windows of ``length`` tokens, ``stride`` apart. Each window predicts only new tokens.

    Every token after the first window is predicted from at least ``length - stride`` tokens. This is the convention of
    "Perplexity of fixed-length models" in the transformers documentation, with a stride of 512 for GPT-2's 1,024
    tokens. The mean here is over tokens. That page averages over windows, and weights each later one with one token too
    few.
    """
    windows = strided(tokens, length, stride)
    reading = Reading(task, STRIDED, TOKEN_PERPLEXITY, 0, "per token", length=length, stride=stride)
    return _by_token(reading, windows)


def rolling_likelihood(
    task: str, documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, length: int
) -> Measurement:
    """Word perplexity and bits per byte of whole documents. Every token is predicted once.

    This is the convention of lm-evaluation-harness (models/huggingface.py ``loglikelihood_rolling``; tasks/wikitext).
    The first token of a document is predicted from the tokenizer's begin- or end-of-text token, even if the tokenizer
    has added such a token itself. Words and bytes are counted in the original document, before its preparation.

    Raises InputError when the tokenizer has neither token.
    """
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if start is None:
        raise InputError(
            f"task {task}: the model's tokenizer has neither a begin- nor an end-of-text token (bos_token, eos_token), "
            "but the first token of a document is predicted from it; add one to tokenizer_config.json"
        )
    encoded = [tokens_of(tokenizer, document.text) for document in documents]
    counts: dict[str, Any] = {
        "tokens": sum(map(len, encoded)),
        "words": sum(document.words for document in documents),
        "bytes": sum(document.bytes for document in documents),
        "documents": len(documents),
    }

    def readings(scores: Sequence[Score]) -> list[Reading]:
        nats = total_nats(scores)
        words, bits = perplexity(nats / counts["words"]), nats / math.log(2) / counts["bytes"]
        return [
            Reading(task, ROLLING, "word perplexity", words, "per word", length=length, **counts),
            Reading(task, ROLLING, "bits per byte", bits, "bits", length=length, **counts),
        ]

    return Measurement([window for tokens in encoded for window in rolling(tokens, start, length)], readings)


def tokens_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The token ids of ``text``, with the tokenizer's automatic special tokens, as in all these conventions."""
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    return ids


def non_overlapping(tokens: Sequence[int], length: int) -> list[Window]:
    """Consecutive windows of ``length`` tokens, without the remainder."""
    starts = range(0, len(tokens) - length + 1, length)
    return [Window(tokens[start : start + length], length - 1) for start in starts]


def strided(tokens: Sequence[int], length: int, stride: int) -> list[Window]:
    """Windows of ``length`` tokens, ``stride`` apart, to the last token. The last window may be shorter."""
    windows, reached = [], 0
    for start in range(0, len(tokens), stride):
        if reached == len(tokens):
            break
        end = min(start + length, len(tokens))
        windows.append(Window(tokens[start:end], min(end - reached, end - start - 1)))
        reached = end
    return [window for window in windows if window.predicted]


def rolling(tokens: Sequence[int], start: int, length: int) -> list[Window]:
    """Windows that predict every token once, from at most ``length`` tokens; the first follows ``start``.

    The last window is extended back to the full length, if possible.
    """
    whole = [start, *tokens]
    ends = [*range(length, len(tokens), length), len(tokens)] if tokens else []
    firsts = [0, *ends]
    return [
        Window(whole[max(0, end - length) : end + 1], end - first) for first, end in zip(firsts, ends, strict=False)
    ]


def _by_token(reading: Reading, windows: Sequence[Window]) -> Measurement:
    predicted = sum(window.predicted for window in windows)

    def readings(scores: Sequence[Score]) -> list[Reading]:
        return [replace(reading, value=perplexity(total_nats(scores) / predicted), tokens=predicted)]

    return Measurement(windows, readings)
