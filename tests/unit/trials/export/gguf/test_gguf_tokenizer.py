"""Tokenizers in GGUF files: the same tokens in llama.cpp, or a refusal."""

from __future__ import annotations

import json
import random
from pathlib import Path

import gguf
import llama_cpp
import pytest
from conftest import TEXT, VOCAB, make_decoder
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from search_spaces.errors import InputError
from trials.export.gguf.pre_tokenizer import LLAMA_3, QWEN_2
from trials.export.gguf.sentence_piece import scores
from trials.export.gguf.writer import write_gguf
from trials.teacher.teacher import PROBE, load_tokenizer

TEXTS = [
    PROBE,
    TEXT,
    "\n \n\n \t\t  word 3 33 333 3333 33333 1234567 3.14 3...3 x=1;y=22\r\n\r\n  I've you'RE a'lL",
    "we'Ve DON'T <|endoftext|>",
    "'''```\"\"\"!!!??? äöü ÄÖÜ ß Привет 你好，世界 កាន់តែ 🦙🦙 (😶‍🌫️) a_b-c/d\\e\u00a0\u2003f",
    "",
]
BY_RULE = pre_tokenizers.ByteLevel(add_prefix_space=False)
BY_SPLIT = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
RULES = {
    "gpt-2": BY_RULE,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BY_RULE]),
    "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA_3), "isolated"), BY_SPLIT]),
    "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN_2), "isolated"), BY_SPLIT]),
}


def trained(rule: pre_tokenizers.PreTokenizer, whole_words: bool = False) -> Tokenizer:
    """A byte-level BPE that has learnt digits, spaces and newlines that belong together by ``rule``."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole_words))
    tokenizer.pre_tokenizer, tokenizer.decoder = rule, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 4, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*TEXTS, "3333 333 33 \n\n\n 1234 you've I've We'Ve"] * 4, trainer)
    return tokenizer


def saved(tokenizer: Tokenizer, folder: Path, **settings: object) -> Path:
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, **settings).save_pretrained(
        folder
    )
    return folder


def fields(path: Path) -> dict[str, object]:
    return {name: one.contents() for name, one in gguf.GGUFReader(path).fields.items() if name.startswith("tokenizer.")}


@pytest.mark.parametrize("name", RULES)
def test_llama_cpp_gives_the_same_tokens(name: str, tmp_path: Path) -> None:
    folder = saved(trained(RULES[name], name == "llama-bpe"), tmp_path / "tokenizer")
    path = write_gguf(make_decoder("llama"), folder, tmp_path / "model.gguf", "f16").path
    assert fields(path)["tokenizer.ggml.pre"] == name
    tokenizer = load_tokenizer(folder)
    assert llama_cpp.ask(path, texts=TEXTS).tokens == [tokenizer(text)["input_ids"] for text in TEXTS]


def test_the_rules_of_one_tokenizer_are_not_those_of_another(tmp_path: Path) -> None:
    """So that the test above can fail."""
    ids = [json.dumps([trained(rule).encode(text).ids for text in TEXTS]) for rule in RULES.values()]
    assert len(set(ids)) == len(RULES)


def sentence_piece(scheme: str | None) -> Tokenizer:
    """A BPE as SentencePiece's: all pairs that give a token are merges.

    Its rules for spaces are those of Llama 2, or Metaspace with ``scheme``.
    """
    words = [
        "the",
        "▁the",
        "▁teacher",
        "er",
        "▁t",
        "▁▁",
        "▁▁▁▁",
        "prune",
        "▁prune",
        "def",
        "ing",
        "33",
        "▁stay",
        "ou",
        "ä",
    ]
    pieces = sorted({word[:end] for word in words for end in range(2, len(word) + 1)} | {"he", "ea", "run", "ay"})
    generator = random.Random(0)
    generator.shuffle(pieces)
    letters = sorted(set("▁".join(words)) | set(map(chr, range(33, 127))))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    tokens += [letter for letter in letters if letter not in tokens]
    vocabulary = {token: row for row, token in enumerate(tokens)}
    merges = [
        (token[:cut], token[cut:])
        for token in pieces
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    if scheme:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


@pytest.mark.parametrize("scheme", [None, "never"])
def test_llama_cpp_gives_the_same_tokens_of_sentence_piece(scheme: str | None, tmp_path: Path) -> None:
    tokenizer = sentence_piece(scheme)
    folder = tmp_path / "tokenizer"
    ends = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends).save_pretrained(folder)
    model = make_decoder("llama", vocab_size=tokenizer.get_vocab_size() + 3)
    path = write_gguf(model, folder, tmp_path / "model.gguf", "f16").path
    texts = [text.replace("<|endoftext|>", "</s>") for text in TEXTS if text]
    texts.append("    the teacher is pruned, 3333 thethe teacherer  stays äöü")
    assert llama_cpp.ask(path, texts=texts).tokens == [load_tokenizer(folder)(text)["input_ids"] for text in texts]
    found = fields(path)
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.add_bos_token"]) == ("llama", True)


def test_merges_that_scores_cannot_stand_for_are_refused() -> None:
    vocabulary = {token: row for row, token in enumerate(["a", "b", "c", "ab", "bc", "abc"])}
    every = [("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")]
    assert scores(vocabulary, every) == {"ab": 0.0, "bc": -1.0, "abc": -2.0}
    for wrong in (every[:-1], [every[2], *every[:2], every[3]]):
        with pytest.raises(InputError, match="the merges of the tokenizer are not SentencePiece's"):
            scores(vocabulary, wrong)


def test_a_token_before_every_text_added_tokens_and_a_template_are_kept(tmp_path: Path) -> None:
    tokenizer = trained(BY_RULE)
    tokenizer.add_tokens(["<b>"])
    tokenizer.add_special_tokens(["<|pad|>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    folder = saved(tokenizer, tmp_path / "tokenizer", pad_token="<|pad|>", chat_template="{{ messages[0]['content'] }}")
    path = write_gguf(make_decoder("llama"), folder, tmp_path / "model.gguf", "f16").path
    found = fields(path)
    assert found["tokenizer.chat_template"] == "{{ messages[0]['content'] }}"
    assert (found["tokenizer.ggml.add_bos_token"], found["tokenizer.ggml.add_eos_token"]) == (True, False)
    tokens, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert (len(tokens), tokens[-1], kinds[-1]) == (VOCAB, f"[PAD{VOCAB - 1}]", gguf.TokenType.UNUSED)
    pad = tokenizer.token_to_id("<|pad|>")
    assert (found["tokenizer.ggml.padding_token_id"], kinds[pad]) == (pad, gguf.TokenType.CONTROL)
    assert kinds[tokenizer.token_to_id("<b>")] == gguf.TokenType.USER_DEFINED
    texts = ["a <b>word</b>", "<|pad|>x"]
    assert llama_cpp.ask(path, texts=texts).tokens == [load_tokenizer(folder)(text)["input_ids"] for text in texts]


UNKNOWN = {
    "whitespace": (pre_tokenizers.Whitespace(), "Whitespace"),
    "space in front": (pre_tokenizers.ByteLevel(add_prefix_space=True), "ByteLevel"),
    "another split": (
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\s+"), "isolated"), BY_SPLIT]),
        "Split then ByteLevel",
    ),
    "grouped digits": (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), BY_RULE]),
        "Digits then ByteLevel",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_rules_that_are_not_known_in_llama_cpp_are_refused(name: str, tmp_path: Path) -> None:
    rule, words = UNKNOWN[name]
    folder = saved(trained(rule), tmp_path / "tokenizer")
    with pytest.raises(InputError, match=rf"splits text by rules \(no normalizer; {words}\)"):
        write_gguf(make_decoder("llama"), folder, tmp_path / "model.gguf", "f16")


def test_other_normalizers_kinds_and_merges_are_refused(tmp_path: Path) -> None:
    lower = trained(BY_RULE)
    lower.normalizer = normalizers.Lowercase()
    words = Tokenizer(models.WordLevel({"a": 0, "<|endoftext|>": 1}, unk_token="a"))
    bytes_ = trained(BY_RULE)
    bytes_.model = models.BPE({"a": 0, "<|endoftext|>": 1}, [], byte_fallback=True)
    for tokenizer, message in (
        (lower, r"rules \(Lowercase; ByteLevel\)"),
        (words, "type WordLevel: only BPE"),
        (bytes_, "its rules for spaces are not those of Llama 2"),
        (sentence_piece("first"), "its rules for spaces are not those of Llama 2"),
        (trained(BY_RULE, whole_words=True), "ignore_merges is not that of llama.cpp's gpt-2"),
    ):
        folder = saved(tokenizer, tmp_path / "tokenizer")
        with pytest.raises(InputError, match=message):
            write_gguf(make_decoder("llama", vocab_size=500), folder, tmp_path / "model.gguf", "f16")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = saved(trained(BY_RULE), tmp_path / "tokenizer")
    with pytest.raises(InputError, match="its tokenizer has 316 entries and its embedding 300"):
        write_gguf(make_decoder("llama", vocab_size=300), folder, tmp_path / "model.gguf", "f16")
