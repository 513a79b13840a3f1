"""Evaluates one model on given texts, for the command line and for the end of a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from search_spaces.errors import InputError
from trials.evaluate.lambada import last_words
from trials.evaluate.likelihood import Measurement, score
from trials.evaluate.perplexity import rolling_likelihood, strided_perplexity, token_perplexity, tokens_of
from trials.evaluate.reading import Reading
from trials.text.evaluation_text import Passages, Text

LONGEST_DEFAULT = 2048  # the length in GPTQ, SparseGPT and Wanda, also for models with more positions
STRIDE_DEFAULT = 512


def evaluate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text | Passages],
    length: int | None = None,
    stride: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Reading]:
    """Every reading of ``model`` on ``texts``, in their order, each by its convention.

    ``length`` is the largest number of tokens in a window; the default is `default_length`. ``stride`` is the distance
    between strided windows; the default is `STRIDE_DEFAULT`, at most half the length. The model stays on its device and
    in its dtype. ``progress(done, total)`` is called with token counts. All inputs are checked before the model runs.

    Raises InputError when the length exceeds the model's positions, a text is shorter than one window, the tokenizer
    has no begin- or end-of-text token, or the model gives NaN.
    """
    length = checked_length(model, length)
    stride = checked_stride(length, stride)
    return read(model, [one for text in texts for one in _measurements(text, tokenizer, length, stride)], progress)


def headline(
    texts: Sequence[Text | Passages], tokenizer: PreTrainedTokenizerBase, length: int, tokens: int | None = None
) -> list[Measurement]:
    """The measurements behind the figures that compression papers print, for `read`.

    They are the token perplexity on non-overlapping windows of ``length`` tokens and the last words of passages, with a
    fifth of the work of `evaluate_texts`. They use the first ``tokens`` tokens of each text, or the passages that begin
    within them; None means all.

    Raises InputError when ``tokens`` or a text is less than one window.
    """
    return [_headline(text, tokenizer, length, tokens) for text in texts]


def read(
    model: PreTrainedModel,
    measurements: Sequence[Measurement],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Reading]:
    """The readings of ``model`` by ``measurements``, in their order. ``progress(done, total)`` receives token counts.

    Raises InputError when the model gives NaN.
    """
    total, done = sum(one.tokens for one in measurements), 0

    def advance(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress(done, total)

    return [reading for one in measurements for reading in one.readings(score(model, one.windows, advance))]


def checked_length(model: PreTrainedModel, length: int | None) -> int:
    """``length``, or `default_length` if None. Raises InputError when it exceeds the model's positions."""
    positions = positions_of(model.config)
    if length is None:
        return default_length(model.config)
    if length < 2 or (positions and length > positions):
        raise InputError(f"length {length}: must be from 2 to the model's positions, {positions or 'unlimited'}")
    return length


def checked_stride(length: int, stride: int | None) -> int:
    """``stride``, or if None `STRIDE_DEFAULT`, at most half of ``length``. Raises InputError beyond ``length``."""
    if stride is None:
        return min(STRIDE_DEFAULT, length // 2)
    if not 1 <= stride <= length:
        raise InputError(f"stride {stride}: must be from 1 to the length, {length}; a larger one would skip tokens")
    return stride


def default_length(config: PretrainedConfig) -> int:
    """The positions of a model of this configuration, at most `LONGEST_DEFAULT`."""
    return min(positions_of(config) or LONGEST_DEFAULT, LONGEST_DEFAULT)


def positions_of(config: PretrainedConfig) -> int | None:
    """The longest sequence of the model in tokens; None if its configuration names no limit."""
    names = ("n_positions", "max_position_embeddings", "n_ctx")
    return next((value for name in names if (value := getattr(config.get_text_config(), name, None))), None)


def _measurements(
    text: Text | Passages, tokenizer: PreTrainedTokenizerBase, length: int, stride: int
) -> list[Measurement]:
    if isinstance(text, Passages):
        return [last_words(text.task, text.passages, tokenizer, length)]
    tokens = _stream(text, tokenizer, length)
    return [
        token_perplexity(text.task, tokens, length),
        strided_perplexity(text.task, tokens, length, stride),
        rolling_likelihood(text.task, text.documents, tokenizer, length),
    ]


def _headline(
    text: Text | Passages, tokenizer: PreTrainedTokenizerBase, length: int, tokens: int | None
) -> Measurement:
    if isinstance(text, Text):
        if tokens is not None and tokens < length:
            raise InputError(
                f"task {text.task}: {tokens} tokens are less than one window of {length}; give a larger --test-tokens"
            )
        return token_perplexity(text.task, _stream(text, tokenizer, length)[:tokens], length)
    if tokens is None:
        return last_words(text.task, text.passages, tokenizer, length)
    sizes = [len(tokens_of(tokenizer, passage)) for passage in text.passages]
    begun = [before < tokens for before in accumulate(sizes[:-1], initial=0)]
    return last_words(text.task, text.passages[: sum(begun)], tokenizer, length)


def _stream(text: Text, tokenizer: PreTrainedTokenizerBase, length: int) -> list[int]:
    tokens = tokens_of(tokenizer, text.stream)
    if len(tokens) < length:
        raise InputError(
            f"task {text.task}: its text is {len(tokens)} tokens, less than one window of {length}; "
            "give a smaller --length or more text"
        )
    return tokens
