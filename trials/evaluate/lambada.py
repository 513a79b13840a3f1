"""LAMBADA (arXiv 1606.06031): guessing the last word of a passage that makes no sense without its beginning."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from search_spaces.errors import InputError
from trials.evaluate.likelihood import Measurement, Score, Window, total_nats
from trials.evaluate.perplexity import tokens_of
from trials.evaluate.reading import Reading, perplexity

CONVENTION = "lambada_openai"


def last_words(task: str, passages: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> Measurement:
    """Accuracy and perplexity of last words, by the task ``lambada_openai`` of lm-evaluation-harness.

    The last word, with the space before it, is all that follows the last space. Its tokens are those of the whole
    passage beyond the tokens of the rest; it is right when each of them was the likeliest, and the perplexity is of
    whole words. A passage longer than ``length`` tokens loses its beginning. No stop words are filtered, as the GPT-2
    paper does. Raises InputError for a passage of one word.
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
        raise InputError(f"task {task}: the passage {passage[:40]!r} has no last word after another; take it out")
    tokens = tokens_of(tokenizer, passage)
    predicted = len(tokens) - len(tokens_of(tokenizer, before))
    if not 0 < predicted <= length:
        raise InputError(
            f"task {task}: the last word of {passage[:40]!r} is {predicted} tokens, not 1 to {length}; take it out, or "
            "give a larger --length"
        )
    return Window(tokens[-length - 1 :], predicted)
