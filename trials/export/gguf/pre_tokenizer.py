"""How a tokenizer splits text before it merges bytes, and llama.cpp's name for that.

llama.cpp's own converter knows tokenizers by a hash of the ids that they give to a text. That hash is of the vocabulary
too, so it knows no tokenizer that was trained anew. The rules themselves are in tokenizer.json, so they are read here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from search_spaces.errors import InputError

# The rule of GPT-2 is built into the step "ByteLevel"; Llama 3 and Qwen2 bring their own.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3, QWEN_2 = _WORDS % r"\p{N}{1,3}", _WORDS % r"\p{N}"
BY_RULE, BY_SPLIT = ("ByteLevel", False, True), ("ByteLevel", False, False)

NAMES: dict[tuple[tuple[object, ...], ...], str] = {
    (BY_RULE,): "gpt-2",
    (("Digits", True), BY_RULE): "smollm",
    (("Split", LLAMA_3, "Isolated", False), BY_SPLIT): "llama-bpe",
    (("Split", QWEN_2, "Isolated", False), BY_SPLIT): "qwen2",
}
WHOLE_WORDS = ("llama-bpe",)  # here llama.cpp takes a word that is in the vocabulary without merging, as Llama 3 does
NORMALIZERS = (None, "NFC")  # llama.cpp composes no characters: text that is not in NFC gets other tokens there


def pre_tokenizer_name(tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name for the rules of ``tokenizer``, the content of a tokenizer.json.

    Raises InputError when llama.cpp is not known to split text by these rules.
    """
    steps = tuple(_steps(tokenizer["pre_tokenizer"]))
    normalizer = (tokenizer["normalizer"] or {}).get("type")
    name = NAMES.get(steps)
    if name is None or normalizer not in NORMALIZERS:
        what = " then ".join(str(step[0]) for step in steps) or "nothing"
        raise InputError(
            f"GGUF: the tokenizer splits text by rules ({normalizer or 'no normalizer'}; {what}) that are not known in "
            f"llama.cpp: {', '.join(NAMES.values())}; export another format"
        )
    if bool(tokenizer["model"].get("ignore_merges")) != (name in WHOLE_WORDS):
        raise InputError(
            f"GGUF: the tokenizer's ignore_merges is not that of llama.cpp's {name}; export another format"
        )
    return name


def _steps(part: Mapping[str, Any] | None) -> Iterator[tuple[object, ...]]:
    """Yields the steps of a pre-tokenizer, each with the settings that change what it does."""
    if part is None:
        return
    kind = part["type"]
    if kind == "Sequence":
        for one in part["pretokenizers"]:
            yield from _steps(one)
    elif kind == "ByteLevel":
        yield kind, part["add_prefix_space"], part.get("use_regex", True)
    elif kind == "Digits":
        yield kind, part["individual_digits"]
    elif kind == "Split":
        yield kind, part["pattern"].get("Regex"), part["behavior"], part["invert"]
    else:
        yield (kind,)
