"""Last words: correct only if each of their tokens is the likeliest."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from conftest import VOCAB
from reading_models import certain_gpt2
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from search_spaces.errors import InputError
from trials.evaluate.evaluation import evaluate_texts
from trials.evaluate.lambada import last_words
from trials.evaluate.reading import Reading
from trials.text.evaluation_text import Passages

PASSAGE = "keep the qzj"
LAST = " qzj"


def sure_of(tokenizer: PreTrainedTokenizerFast, passage: str, last: str, weight: float = 10.0) -> GPT2LMHeadModel:
    tokens = tokenizer(passage)["input_ids"]
    length = len(tokenizer(last)["input_ids"])
    return certain_gpt2(pairwise(tokens[-length - 1 :]), weight)


def readings(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, *passages: str) -> tuple[Reading, Reading]:
    accuracy, perplexity = evaluate_texts(model, tokenizer, [Passages("lambada", passages)])
    return accuracy, perplexity


def test_certainty_is_full_accuracy_and_a_perplexity_of_one(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    accuracy, perplexity = readings(sure_of(tiny_tokenizer, PASSAGE, LAST), tiny_tokenizer, PASSAGE)
    assert (accuracy.metric, accuracy.value) == ("last-word accuracy", 1.0)
    assert (perplexity.metric, perplexity.value) == ("last-word perplexity", pytest.approx(1.0))
    assert accuracy.documents == perplexity.words == 1
    assert accuracy.tokens == len(tiny_tokenizer(LAST)["input_ids"]) > 1


def test_the_likeliest_word_is_right_without_certainty(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    accuracy, perplexity = readings(sure_of(tiny_tokenizer, PASSAGE, LAST, weight=0.2), tiny_tokenizer, PASSAGE)
    assert accuracy.value == 1
    assert perplexity.value > 100


def test_half_of_the_passages_right_is_half(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = sure_of(tiny_tokenizer, PASSAGE, LAST)
    accuracy, perplexity = readings(model, tiny_tokenizer, PASSAGE, "keep the qzz")
    assert accuracy.value == 0.5
    assert perplexity.value > 10


def test_one_wrong_token_makes_a_word_wrong(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = sure_of(tiny_tokenizer, PASSAGE, LAST)
    *_, before, after = tiny_tokenizer(PASSAGE)["input_ids"]
    model.lm_head.weight[after, before] = 0
    accuracy, perplexity = readings(model, tiny_tokenizer, PASSAGE)
    assert accuracy.value == 0
    assert perplexity.value == pytest.approx(VOCAB, rel=0.01)  # all of it from the token with uniform probabilities


def test_perplexity_is_of_whole_words(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    _, perplexity = readings(certain_gpt2([]), tiny_tokenizer, PASSAGE)
    tokens = len(tiny_tokenizer(LAST)["input_ids"])
    assert math.log(perplexity.value) == pytest.approx(tokens * math.log(VOCAB), rel=1e-5)


def test_a_long_passage_loses_its_beginning(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    (window,) = last_words("lambada", ["keep " * 100 + PASSAGE], tiny_tokenizer, length=16).windows
    assert len(window.tokens) == 17  # 16 are read
    assert list(window.tokens) == tiny_tokenizer("keep " * 100 + PASSAGE)["input_ids"][-17:]


@pytest.mark.parametrize("passage", ["word", " word"])
def test_a_passage_of_one_word_is_refused(tiny_tokenizer: PreTrainedTokenizerFast, passage: str) -> None:
    with pytest.raises(InputError, match=r"lambada: the passage ' ?word' has no last word"):
        last_words("lambada", [passage], tiny_tokenizer, length=16)


def test_a_last_word_that_fills_the_model_is_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match=r"is \d+ tokens, not 1 to 16"):
        last_words("lambada", ["the " + "qzj" * 20], tiny_tokenizer, length=16)
