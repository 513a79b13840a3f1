"""The tokenizer of a GGUF file: the fields of the teacher's own GGUF file, or a BPE from its tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from search_spaces.errors import InputError
from trials.export.gguf.pre_tokenizer import pre_tokenizer_name
from trials.export.gguf.sentence_piece import write_sentence_piece
from trials.teacher.gguf import TOKENIZER_FIELDS, copy_tokenizer
from trials.teacher.teacher import check_vocabulary, load_tokenizer

UNSUPPORTED = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")  # of a BPE


def write_tokenizer_fields(writer: GGUFWriter, folder: Path, rows: int) -> None:
    """Write the tokenizer of the checkpoint in ``folder``, whose embedding has ``rows`` rows.

    Raises InputError for a tokenizer that is not known to give the same tokens in llama.cpp.
    """
    kept = folder / TOKENIZER_FIELDS
    if kept.is_file():
        if (known := copy_tokenizer(kept, writer)) != rows:
            raise InputError(f"GGUF: {kept} has {known:,} tokens, and the embedding {rows:,} rows; export it again")
    else:
        _write_bpe(writer, folder, rows)


def _write_bpe(writer: GGUFWriter, folder: Path, rows: int) -> None:
    tokenizer, file = load_tokenizer(folder), folder / "tokenizer.json"
    if not file.is_file():
        raise InputError("GGUF: there is no tokenizer.json to read the tokenizer's rules from; export another format")
    content = json.loads(file.read_text("utf-8"))  # not what a class of transformers makes of it
    model = content["model"]
    if model["type"] != "BPE" or any(model.get(name) for name in UNSUPPORTED):
        raise InputError(
            f"GGUF: a tokenizer of type {model['type']}: only BPE and the tokenizer of a teacher that was a GGUF file "
            "are written; export another format"
        )
    check_vocabulary(folder, tokenizer, rows)
    tokens, kinds = _vocabulary(content, rows)
    if model.get("byte_fallback"):
        write_sentence_piece(writer, content, kinds)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer_name(content))
        writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in model["merges"]])
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    _write_special(writer, tokenizer)


def _vocabulary(content: dict[str, Any], rows: int) -> tuple[list[str], list[TokenType]]:
    """All tokens and their kinds by their ids. Rows that no token has are named as llama.cpp's converter does."""
    tokens, kinds = [f"[PAD{row}]" for row in range(rows)], [TokenType.UNUSED] * rows
    for token, row in content["model"]["vocab"].items():
        tokens[row], kinds[row] = token, TokenType.NORMAL
    for one in content["added_tokens"]:
        tokens[one["id"]] = one["content"]
        kinds[one["id"]] = TokenType.CONTROL if one["special"] else TokenType.USER_DEFINED
    return tokens, kinds


def _write_special(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase) -> None:
    """The special tokens, which of them surround a text, and the chat template."""
    for name in ("bos", "eos", "unk", "pad"):
        if (row := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(row)
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(bool(ids) and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(bool(ids) and ids[-1] == tokenizer.eos_token_id)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)
