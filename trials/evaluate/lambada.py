"""LAMBADA (arXiv 1606.06031): predicts the last word of a passage, which depends on the whole passage."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from search_spaces.errors import InputError
from trials.evaluate.likelihood import Measurement, Score, Window, total_nats
from trials.evaluate.perplexity import tokens_of
from trials.evaluate.reading import Reading, perplexity

CONVENTION = "lambada_openai"


def last_words(task: str, passages: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> Measurement:
    """Accuracy and perplexity of last words, as in the task ``lambada_openai`` of lm-evaluation-harness.

    The last word begins at the last space. Its tokens are those of the passage beyond the number of tokens of the text
    before it. It is correct if each of its tokens was the likeliest. Perplexity is per word. A passage of more than
    ``length`` + 1 tokens is cut at its beginning. Unlike in the GPT-2 paper, stop words are not filtered.

    Raises InputError for a passage of one word, and for a last word of no tokens or more than ``length``.
    """
    windows = [_window(task, passage, tokenizer, length) for passage in passages]
    tokens = sum(window.predicted for window in windows)

    def readings(scores: Sequence[Score]) -> list[Reading]:
        def reading(metric: str, value: float, unit: str) -> Reading:
            count = len(passages)
            return Reading(task, CONVENTION, metric, value, unit, tokens, count, documents=count, length=length)

        right = sum(score.greedy for score in scores) / len(scores)
        return [
            reading("last-word accuracy", right, "share"),
            reading("last-word perplexity", perplexity(total_nats(scores) / len(scores)), "per word"),
        ]

    return Measurement(windows, readings)


def _window(task: str, passage: str, tokenizer: PreTrainedTokenizerBase, length: int) -> Window:
    before = passage.rpartition(" ")[0].rstrip()
    if not before:
        raise InputError(f"task {task}: the passage {passage[:40]!r} has no last word after another; remove it")
    tokens = tokens_of(tokenizer, passage)
    predicted = len(tokens) - len(tokens_of(tokenizer, before))
    if not 0 < predicted <= length:
        raise InputError(
            f"task {task}: the last word of {passage[:40]!r} is {predicted} tokens, not 1 to {length}; remove it, or "
            "give a larger --length"
        )
    return Window(tokens[-length - 1 :], predicted)
