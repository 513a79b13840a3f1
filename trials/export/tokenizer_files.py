"""Writes the tokenizer of an exported checkpoint: the teacher's own files, byte for byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

CONFIG = "tokenizer_config.json"
# Every file that a tokenizer of transformers reads, in all its versions, and the chat templates.
PATTERNS = (
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "additional_chat_templates/*",
)


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, source: Path | None, folder: Path) -> None:
    """Write ``tokenizer`` to ``folder`` with the files of the folder ``source``, from which it was loaded.

    Without a source, and for a tokenizer with code of its own, which is not run here, transformers writes the files.

    A tokenizer without a padding token cannot pad a batch. So its end-of-text token becomes that, by one key in
    tokenizer_config.json. No other file changes, and no token is added: the embedding has no row for one.
    """
    if source is None or "auto_map" in _read(source / CONFIG):
        tokenizer.save_pretrained(folder)
    else:
        for file in tokenizer_files(source):
            target = folder / file.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        content = {**_read(folder / CONFIG), "pad_token": tokenizer.eos_token}
        (folder / CONFIG).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of ``folder`` that belong to its tokenizer, sorted."""
    return sorted({file for pattern in PATTERNS for file in folder.glob(pattern) if file.is_file()})


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return content
