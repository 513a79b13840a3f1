"""WikiText in its two published forms: the rows of the dataset, and whole articles with the spacing of plain text.

The raw file has a paragraph or a heading in each line, and lines of one space between them. The hub's dataset has one
row for each line: the line with its newline, or an empty string for a blank line. The two give different tokens,
because joined rows have three newlines where the file has one. Published token perplexities use joined rows. The
functions here work on rows; `hub_rows` turns a raw file into rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

BLANK = " \n"


def hub_rows(raw: str) -> list[str]:
    """The rows of the hub's dataset for a raw file. A last line without a newline is a row as it is."""
    *lines, rest = raw.split("\n")
    rows = [f"{line}\n" if line.strip() else "" for line in lines]
    return [*rows, rest] if rest.strip() else rows


def joined(rows: Iterable[str]) -> str:
    """The text for token perplexities: the rows, joined by two newlines.

    GPTQ (datautils.py, ``get_wikitext2``), SparseGPT (the same), Wanda (lib/data.py) and the page "Perplexity of
    fixed-length models" of the transformers documentation do the same. With GPT-2's tokenizer, the test split of
    WikiText-2 has 287,644 tokens.
    """
    return "\n\n".join(rows)


def articles(rows: Iterable[str]) -> list[str]:
    """The articles, each from its title to the line before the next title, as in lm-evaluation-harness.

    They equal the hub's dataset ``EleutherAI/wikitext_document_level``: blank lines keep their space, and the last
    newline of an article is left out, except at the end of the file.
    """
    raw = "".join(row or BLANK for row in rows)
    found: list[list[str]] = [[]]
    for line in raw.split("\n"):
        if _is_title(line):
            found.append([])
        found[-1].append(line)
    return [text for text in map("\n".join, found) if text.strip()]


def _is_title(line: str) -> bool:
    """Whether a line is `` = Title = `` and not `` = = Section = = ``."""
    stripped = line.replace("= = =", "===").replace("= =", "==").strip()
    return stripped.startswith("= ") and stripped.endswith(" =")


# The order matters, because a rule may match what an earlier one has left. The rule for " N " belongs to the Penn
# Treebank. It stays, because published values were computed with it.
LITERAL_BEFORE = (
    ("s '", "s'"),
    *((f" @{mark}@ ", mark) for mark in "-,."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
)
ENCLOSING = (("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'"))
LITERAL_AFTER = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def detokenized(article: str) -> str:
    """An article with the spacing of ordinary text, on which word perplexities and bits per byte are published.

    It follows ``wikitext_detokenizer`` of lm-evaluation-harness (tasks/wikitext/preprocess_wikitext.py, from
    Megatron-LM), without that function's rule about a quote and a digit between slashes, which is a porting error.
    """
    for old, new in LITERAL_BEFORE:
        article = article.replace(old, new)
    for left, right in ENCLOSING:
        article = _tightened(article, left, right)
    for old, new in LITERAL_AFTER:
        article = article.replace(old, new)
    return article


def _tightened(text: str, left: str, right: str) -> str:
    """``text`` without the spaces next to the marks between each ``left`` and the next ``right``.

    A regular expression, as in the harness, takes hours where one mark is repeated or spaces are many.
    """
    parts, place = [], 0
    while (start := text.find(left, place)) >= 0 and (end := text.find(right, start + 1)) >= 0:
        parts += [text[place:start], left, text[start + 1 : end].strip(), right]
        place = end + 1
    return "".join([*parts, text[place:]])


def harness_words(article: str) -> int:
    """The number of words as lm-evaluation-harness counts: pieces between white space, also empty ones at the ends."""
    return len(re.split(r"\s+", article))
