"""SentencePiece's BPE, as the tokenizers of Llama 2 and the first Mistral have it, for a GGUF file.

transformers holds it as a list of merges, llama.cpp as a score for each token: the pair of neighbours whose
concatenation has the highest score is merged first. The two are the same when every pair that gives a token is in the
list, in the order of the tokens that the pairs give.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from gguf import GGUFWriter, TokenType

from search_spaces.errors import InputError

SPACE = "▁"
PREPEND = {"type": "Prepend", "prepend": SPACE}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
BYTE = re.compile("<0x[0-9A-F]{2}>")
NEVER = -1e6  # the score of a token that no merge gives


def write_sentence_piece(writer: GGUFWriter, content: Mapping[str, Any], kinds: list[TokenType]) -> None:
    """Write the rules and scores of ``content``, a tokenizer.json, and complete the ``kinds`` of its tokens by id.

    Raises InputError when llama.cpp would give other tokens.
    """
    model = content["model"]
    prefix = _space_in_front(content)
    found = scores(model["vocab"], [tuple(one.split(" ") if isinstance(one, str) else one) for one in model["merges"]])
    by_row = [NEVER] * len(kinds)
    for token, row in model["vocab"].items():
        by_row[row] = found.get(token, NEVER)
        if BYTE.fullmatch(token):
            kinds[row] = TokenType.BYTE
    if model["unk_token"] is not None:
        kinds[model["vocab"][model["unk_token"]]] = TokenType.UNKNOWN
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores(by_row)
    writer.add_add_space_prefix(prefix)


def scores(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, ...]]) -> dict[str, float]:
    """The score of every token that a merge gives, the first the highest.

    Raises InputError when ``merges`` are not those that scores can stand for.
    """
    given = [token for token, _ in groupby(left + right for left, right in merges)]
    places = {token: -float(place) for place, token in enumerate(given)}
    known = set(merges)
    missing = (
        (token[:cut], token[cut:])
        for token in places
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary and (token[:cut], token[cut:]) not in known
    )
    if len(places) < len(given) or next(missing, None):
        raise InputError(
            "GGUF: the merges of the tokenizer are not SentencePiece's, so llama.cpp would merge in another order; "
            "export another format"
        )
    return places


def _space_in_front(content: Mapping[str, Any]) -> bool:
    """Whether a space is put in front of each text, and behind each special token in it.

    Metaspace puts none in front of a text that begins with one, and llama.cpp always does. So only its scheme "never"
    is the same in both.
    """
    normalizer, splitter = content["normalizer"], content["pre_tokenizer"]
    steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
    if splitter is None and steps in ([PREPEND, REPLACE], [REPLACE]):
        return steps == [PREPEND, REPLACE]
    metaspace = splitter is not None and splitter["type"] == "Metaspace" and splitter["replacement"] == SPACE
    if normalizer is None and metaspace and not splitter["split"] and splitter["prepend_scheme"] == "never":
        return False
    raise InputError(
        "GGUF: the tokenizer is a BPE with bytes for unknown characters, but its rules for spaces are not those of "
        "Llama 2; export another format"
    )
