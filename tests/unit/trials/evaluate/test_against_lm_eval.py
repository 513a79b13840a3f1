"""Cross-checks with lm-evaluation-harness: the likelihoods behind published metrics are equal."""

from __future__ import annotations

import math

import pytest
from conftest import TEXT, make_gpt2
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer
from reading_models import beginning, make_llama
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from trials.evaluate.evaluation import evaluate_texts
from trials.evaluate.likelihood import score
from trials.evaluate.perplexity import rolling, tokens_of
from trials.text.evaluation_text import Document, Passages, Text
from trials.text.wikitext import detokenized, harness_words

SENTENCES = TEXT.replace("\n", " ").split(". ")
DOCUMENTS = [TEXT, TEXT * 5, "Words: déjà vu, 漢字.", SENTENCES[0], "x"]
PASSAGES = [f"{one} {SENTENCES[0]}" for one in SENTENCES] + [TEXT * 3 + "two  words", "line\n\nend it"]
CASES = {"gpt2": (make_gpt2, lambda tokenizer: tokenizer), "llama": (make_llama, beginning)}
Tokenizer = PreTrainedTokenizerFast


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest, tiny_tokenizer: Tokenizer) -> tuple[PreTrainedModel, Tokenizer, HFLM]:
    make, adapt = CASES[request.param]
    model, tokenizer = make(), adapt(tiny_tokenizer)
    harness = HFLM(pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=2, max_length=64, device="cpu")
    return model, tokenizer, harness


def asked(kind: str, *arguments: tuple[str, ...]) -> list[Instance]:
    return [Instance(kind, {}, one, 0) for one in arguments]


def test_documents_are_as_likely_as_the_harness_finds_them(
    pair: tuple[PreTrainedModel, Tokenizer, HFLM],
) -> None:
    model, tokenizer, harness = pair
    theirs = harness.loglikelihood_rolling(asked("loglikelihood_rolling", *((one,) for one in DOCUMENTS)), True)
    for document, wanted in zip(DOCUMENTS, theirs, strict=True):
        windows = rolling(tokens_of(tokenizer, document), tokenizer.bos_token_id, 64)
        assert sum(one.nats for one in score(model, windows)) == pytest.approx(-wanted, rel=1e-5)


def test_word_perplexity_and_bits_follow_from_the_total_of_the_harness(
    pair: tuple[PreTrainedModel, Tokenizer, HFLM],
) -> None:
    model, tokenizer, harness = pair
    documents = tuple(Document(one, len(one.split()), len(one.encode())) for one in DOCUMENTS)
    *_, words, bits = evaluate_texts(model, tokenizer, [Text("mine", TEXT * 5, documents)])
    total = -sum(harness.loglikelihood_rolling(asked("loglikelihood_rolling", *((one,) for one in DOCUMENTS)), True))
    assert math.log(words.value) == pytest.approx(total / sum(one.words for one in documents), rel=1e-5)
    assert bits.value == pytest.approx(total / math.log(2) / sum(one.bytes for one in documents), rel=1e-5)


def test_last_words_are_as_the_harness_finds_them(pair: tuple[PreTrainedModel, Tokenizer, HFLM]) -> None:
    model, tokenizer, harness = pair
    split = [(" ".join(one.split(" ")[:-1]), " " + one.split(" ")[-1]) for one in PASSAGES]  # as lambada_openai.yaml
    theirs = harness.loglikelihood(asked("loglikelihood", *split), True)
    accuracy, perplexity = evaluate_texts(model, tokenizer, [Passages("lambada", tuple(PASSAGES))])
    assert accuracy.value == pytest.approx(sum(greedy for _, greedy in theirs) / len(theirs))
    assert math.log(perplexity.value) == pytest.approx(-sum(nats for nats, _ in theirs) / len(theirs), rel=1e-5)


PIECES = st.sampled_from(
    [*(f" {mark} " for mark in ":;.!?,-°N'\"=()[]{}"), "@-@", " @,@ ", " @.@ ", "s '", " 's", "= ", " \n ", "word", "9"]
)


@given(st.lists(PIECES, max_size=40).map("".join))
def test_articles_are_detokenized_and_counted_as_in_the_harness(article: str) -> None:
    assert detokenized(article) == wikitext_detokenizer({"page": article})
    counts = process_results({"page": article}, [0.0])
    assert (harness_words(article), len(article.encode())) == (counts["word_perplexity"][1], counts["bits_per_byte"][1])
