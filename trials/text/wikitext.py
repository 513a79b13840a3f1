"""WikiText as its two kinds of readers take it: rows of a dataset, or whole articles with the spaces of plain text.

The raw file has a paragraph or a heading in each line, and lines of one space between them. The hub's dataset has one
row for each line of the file: the line with its newline, but an empty string for a blank one. The same text is
therefore not the same tokens: joined rows have three newlines where the file has one, and published token perplexities
are of joined rows. Rows are what this file works on; a raw file is turned into them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

BLANK = " \n"


def hub_rows(raw: str) -> list[str]:
    """The rows that the hub's dataset has for a raw file; a last line that was cut off is a row as it stands."""
    *lines, rest = raw.split("\n")
    rows = [f"{line}\n" if line.strip() else "" for line in lines]
    return [*rows, rest] if rest.strip() else rows


def joined(rows: Iterable[str]) -> str:
    """The text of token perplexities: the rows with an empty line between them.

    So do the scripts of GPTQ (datautils.py, ``get_wikitext2``), SparseGPT (the same), Wanda (lib/data.py) and the page
    "Perplexity of fixed-length models" of the transformers documentation. With GPT-2's tokenizer the test split of
    WikiText-2 comes to 287,644 tokens.
    """
    return "\n\n".join(rows)


def articles(rows: Iterable[str]) -> list[str]:
    """The articles, each from its title to the line before the next, as lm-evaluation-harness cuts the raw file.

    That is the hub's dataset ``EleutherAI/wikitext_document_level``: blank lines have their space, and the last
    newline of an article is not part of it, except at the end of the file.
    """
    raw = "".join(row or BLANK for row in rows)
    found: list[list[str]] = [[]]
    for line in raw.split("\n"):
        if _is_title(line):
            found.append([])
        found[-1].append(line)
    return [text for text in map("\n".join, found) if text.strip()]


def _is_title(line: str) -> bool:
    """`` = Title = ``, and not `` = = Section = = ``."""
    stripped = line.replace("= = =", "===").replace("= =", "==").strip()
    return stripped.startswith("= ") and stripped.endswith(" =")


# In this order, one after the other: what one rule leaves, the next may find. The rule for " N " is one for the Penn
# Treebank; it stays, because it is in the published figures.
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
    """An article with the spaces of ordinary text: what word perplexities and bits per byte are published on.

    It equals ``wikitext_detokenizer`` of lm-evaluation-harness (tasks/wikitext/preprocess_wikitext.py, which has it
    from Megatron-LM), but for that function's rule about a quote and a digit between slashes, a slip in porting.
    """
    for old, new in LITERAL_BEFORE:
        article = article.replace(old, new)
    for left, right in ENCLOSING:
        inside = f"{re.escape(left)}\\s*([^{re.escape(right)}]*?)\\s*{re.escape(right)}"
        article = re.sub(inside, f"{left}\\1{right}", article)
    for old, new in LITERAL_AFTER:
        article = article.replace(old, new)
    return article


def harness_words(article: str) -> int:
    """How many words lm-evaluation-harness counts: pieces between white space, empty ones at either end included."""
    return len(re.split(r"\s+", article))
