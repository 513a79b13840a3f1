"""Each convention predicts the right tokens from the right context, and divides the total correctly."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import TEXT, VOCAB, make_gpt2
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from search_spaces.errors import InputError
from trials.evaluate.evaluation import checked_length, checked_stride, evaluate_texts
from trials.evaluate.likelihood import Window
from trials.evaluate.perplexity import non_overlapping, rolling, strided
from trials.evaluate.reading import Reading
from trials.text.evaluation_text import Document, Text

LENGTHS = st.integers(2, 12)
COUNTS = st.integers(0, 60)


def text(stream: str = TEXT * 4) -> Text:
    documents = tuple(Document(part, len(part.split()), len(part.encode())) for part in stream.splitlines())
    return Text("mine", stream, documents)


def by_convention(readings: list[Reading]) -> dict[tuple[str, str], Reading]:
    return {(one.convention, one.metric): one for one in readings}


def predictions(windows: list[Window]) -> list[tuple[int, int]]:
    """(token, number of tokens before it in its window) for each prediction; each token equals its position."""
    places = [
        (window, place)
        for window in windows
        for place in range(len(window.tokens) - window.predicted, len(window.tokens))
    ]
    return [(window.tokens[place], place) for window, place in places]


@given(COUNTS, LENGTHS)
def test_whole_windows_predict_all_but_their_first_token(count: int, length: int) -> None:
    found = predictions(non_overlapping(range(count), length))
    whole = count // length * length
    assert found == [(token, token % length) for token in range(whole) if token % length]


@given(COUNTS, LENGTHS, st.data())
def test_strided_windows_predict_each_token_once_with_the_context_promised(
    count: int, length: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, length - 1))
    windows = strided(range(count), length, stride)
    found = predictions(windows)
    assert [token for token, _ in found] == list(range(1, count))
    assert all(context >= min(token, length - stride) for token, context in found)
    assert all(len(window.tokens) <= length for window in windows)


@given(st.integers(0, 6), LENGTHS)
def test_a_stride_of_the_length_is_no_overlap(windows: int, length: int) -> None:
    tokens = range(windows * length)
    assert strided(tokens, length, length) == non_overlapping(tokens, length)


@given(COUNTS, LENGTHS)
def test_rolling_windows_are_those_of_the_harness(count: int, length: int) -> None:
    tokens = list(range(1, count + 1))
    theirs = map(make_disjoint_window, get_rolling_token_windows(tokens, 0, length, context_len=1))
    assert rolling(tokens, 0, length) == [Window(context + then, len(then)) for context, then in theirs]


def test_knowing_nothing_is_a_perplexity_of_the_vocabulary(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_gpt2()
    torch.nn.init.zeros_(model.lm_head.weight)
    readings = by_convention(evaluate_texts(model, tiny_tokenizer, [text()]))
    assert readings["non-overlapping windows", "token perplexity"].value == pytest.approx(VOCAB, rel=1e-6)
    assert readings["strided windows", "token perplexity"].value == pytest.approx(VOCAB, rel=1e-6)
    bits = readings["rolling documents", "bits per byte"]
    assert bits.tokens
    assert bits.bytes
    assert bits.value == pytest.approx(math.log2(VOCAB) * bits.tokens / bits.bytes, rel=1e-6)


def test_words_and_bytes_share_one_total(tiny_gpt2: GPT2LMHeadModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    readings = by_convention(evaluate_texts(tiny_gpt2, tiny_tokenizer, [text()], length=32))
    words = readings["rolling documents", "word perplexity"]
    bits = readings["rolling documents", "bits per byte"]
    lines = (TEXT * 4).splitlines()
    assert (bits.documents, bits.words) == (words.documents, words.words) == (4, len(TEXT.split()) * 4)
    assert bits.bytes == sum(len(line.encode()) for line in lines)
    assert math.log(words.value) * words.words == pytest.approx(bits.value * math.log(2) * bits.bytes, rel=1e-9)


def test_readings_say_how_they_were_taken(tiny_gpt2: GPT2LMHeadModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = len(tiny_tokenizer(TEXT * 4)["input_ids"])
    whole, with_stride, words, bits = evaluate_texts(tiny_gpt2, tiny_tokenizer, [text()], length=32, stride=8)
    assert (whole.length, whole.stride, whole.tokens) == (32, None, tokens // 32 * 31)
    assert (with_stride.length, with_stride.stride, with_stride.tokens) == (32, 8, tokens - 1)
    assert words.length == bits.length == 32
    assert {one.task for one in (whole, with_stride, words, bits)} == {"mine"}
    assert with_stride.to_dict() == {
        "task": "mine",
        "convention": "strided windows",
        "metric": "token perplexity",
        "value": with_stride.value,
        "unit": "per token",
        "tokens": tokens - 1,
        "length": 32,
        "stride": 8,
    }


def test_more_context_and_the_same_tokens_for_a_stride_of_one(
    tiny_gpt2: GPT2LMHeadModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """At a stride of 1, each token after the first window is predicted from the longest possible context."""
    _, found, *_ = evaluate_texts(tiny_gpt2, tiny_tokenizer, [text(TEXT)], length=16, stride=1)
    tokens = tiny_tokenizer(TEXT)["input_ids"]
    nats = []
    for place in range(1, len(tokens)):
        before = torch.tensor([tokens[max(0, place - 15) : place]])
        nats.append(-float(tiny_gpt2(before).logits[0, -1].double().log_softmax(-1)[tokens[place]]))
    assert math.log(found.value) == pytest.approx(sum(nats) / len(nats), rel=1e-5)


def test_progress_ends_at_its_total(tiny_gpt2: GPT2LMHeadModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    seen: list[tuple[int, int]] = []
    evaluate_texts(tiny_gpt2, tiny_tokenizer, [text(), text()], progress=lambda *now: seen.append(now))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 0


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"length": 65}, "length 65.*positions, 64"),
        ({"length": 1}, "length 1"),
        ({"length": 16, "stride": 17}, "stride 17.*16"),
        ({"stride": 0}, "stride 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    tiny_gpt2: GPT2LMHeadModel, tiny_tokenizer: PreTrainedTokenizerFast, sizes: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        evaluate_texts(tiny_gpt2, tiny_tokenizer, [text()], **sizes)


def test_defaults_are_bounded_where_a_model_reads_much(tiny_gpt2: GPT2LMHeadModel) -> None:
    assert checked_length(tiny_gpt2, None) == 64
    assert checked_length(make_gpt2(n_positions=4096), None) == 2048
    assert [checked_stride(length, None) for length in (64, 1024, 2048)] == [32, 512, 512]


def test_a_text_shorter_than_a_window_is_refused(
    tiny_gpt2: GPT2LMHeadModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(InputError, match=r"mine: its text is \d+ tokens, less than one window of 64"):
        evaluate_texts(tiny_gpt2, tiny_tokenizer, [text(), text("a few words")])


def test_a_tokenizer_without_a_token_to_start_from_is_refused(
    tiny_gpt2: GPT2LMHeadModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    with pytest.raises(InputError, match="bos_token, eos_token"):
        evaluate_texts(tiny_gpt2, bare, [text()])
