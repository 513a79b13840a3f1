"""WikiText as rows, as one text and as articles, compared with the real test split if it is available."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer
from transformers import AutoTokenizer

from trials.text.evaluation_text import Text, TextTask, open_text
from trials.text.wikitext import articles, detokenized, hub_rows, joined

SHARED = Path(__file__).resolve().parents[4] / "shared"  # beside the checkout, if it exists
TEST_SPLIT = SHARED / "data" / "wikitext-2-raw" / "wiki.test.raw"
GPT2_TOKENIZER = SHARED / "tokenizers" / "gpt2"
needs_the_split = pytest.mark.skipif(not TEST_SPLIT.is_file(), reason="the test split is not beside the checkout")

RAW = " \n = Title = \n \n One , two . \n \n = = Part = = \n \n Three \n \n = Other = \n \n Four \n \n"
ROWS = ["", " = Title = \n", "", " One , two . \n", "", " = = Part = = \n", "", " Three \n", "", " = Other = \n"]
LINES = st.lists(st.sampled_from([" ", " = A = ", " = = B = = ", " = = = C = = = ", " text , more ", "x\x85y\u2028z"]))


def test_rows_are_lines_with_their_newline_and_nothing_for_blank_ones() -> None:
    assert hub_rows(RAW) == [*ROWS, "", " Four \n", ""]
    assert hub_rows(" a \n b") == [" a \n", " b"]


@given(LINES)
def test_articles_hold_every_line_once(lines: list[str]) -> None:
    raw = "".join(f"{line}\n" for line in lines)
    found = "\n".join(articles(hub_rows(raw)))
    assert found.strip() == raw.strip()


def test_articles_begin_at_titles_alone() -> None:
    assert [page.split("\n")[0] for page in articles(hub_rows(RAW))] == [" = Title = ", " = Other = "]


def test_a_cut_off_file_keeps_its_end() -> None:
    assert articles(hub_rows(" = T = \n cut o")) == [" = T = \n cut o"]


@given(st.text(alphabet="ab ()[]{}\"',\n\x85", max_size=80))
def test_any_text_is_detokenized_as_in_the_harness(text: str) -> None:
    assert detokenized(text) == wikitext_detokenizer({"page": text})


@pytest.mark.parametrize("text", ["( " * 20_000, "(" + " " * 20_000 + "x", "[ a " * 20_000, "' " * 20_001])
def test_a_mark_without_its_other_half_takes_no_time(text: str) -> None:
    started = time.perf_counter()
    detokenized(text)
    assert time.perf_counter() - started < 5


@needs_the_split
@pytest.mark.skipif(not GPT2_TOKENIZER.is_dir(), reason="GPT-2's tokenizer is not beside the checkout")
def test_the_test_split_of_wikitext_2_is_287644_tokens_of_gpt2() -> None:
    rows = hub_rows(TEST_SPLIT.read_bytes().decode())
    assert len(rows) == 4358
    tokenizer = AutoTokenizer.from_pretrained(GPT2_TOKENIZER)
    assert len(tokenizer(joined(rows), verbose=False)["input_ids"]) == 287_644


@needs_the_split
def test_articles_of_the_test_split_are_detokenized_as_in_the_harness() -> None:
    pages = articles(hub_rows(TEST_SPLIT.read_bytes().decode()))
    assert [detokenized(page) for page in pages] == [wikitext_detokenizer({"page": page}) for page in pages]
    text = open_text(TextTask("wikitext-2", TEST_SPLIT))
    assert isinstance(text, Text)
    assert [document.text for document in text.documents] == [detokenized(page) for page in pages]
    assert sum(document.bytes for document in text.documents) == pytest.approx(TEST_SPLIT.stat().st_size, rel=1e-3)
