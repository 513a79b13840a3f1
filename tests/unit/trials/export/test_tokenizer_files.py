"""The tokenizer of an export: the teacher's own files, and a padding token where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import make_gpt2
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from search_spaces.architecture import Architecture
from trials.export.export import ModelCard, export_student
from trials.export.tokenizer_files import write_tokenizer
from trials.teacher.teacher import load_tokenizer

EXTRA = {
    "chat_template.jinja": "{{ messages }}\n",
    "additional_chat_templates/tools.jinja": "{{ tools }}\n",
    "tokenizer.model": "a SentencePiece model, to the byte: \u00e4\r\n",
    "special_tokens_map.json": '{"unk_token":   "<|endoftext|>"}',
}
NOT_COPIED = ("README.md", "model.safetensors", "config.json", "additional_chat_templates_of_mine.txt")
CARD = ModelCard("t", 100, 2.0, "60%", Architecture.uniform(3, 48, 4, 96), 60, 10, 2.25, "text", "python -m nas.search")


@pytest.fixture
def source(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    folder = tmp_path / "teacher"
    tiny_tokenizer.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=7))
    (folder / "additional_chat_templates").mkdir()
    for name, text in EXTRA.items():
        (folder / name).write_bytes(text.encode())
    for name in NOT_COPIED:
        (folder / name).write_text("{}")
    return folder


def test_files_are_copied_byte_for_byte_and_only_the_config_of_one_without_padding_changes(source: Path) -> None:
    target = source.with_name("student")
    target.mkdir()
    write_tokenizer(load_tokenizer(source), source, target)
    for name in ("tokenizer.json", *EXTRA):
        assert (target / name).read_bytes() == (source / name).read_bytes()
    assert not [name for name in NOT_COPIED if (target / name).exists()]
    before, after = (json.loads((one / "tokenizer_config.json").read_text()) for one in (source, target))
    assert after == {**before, "pad_token": "<|endoftext|>"}
    again = source.with_name("again")
    again.mkdir()
    write_tokenizer(load_tokenizer(target), target, again)  # it has a padding token now
    assert (again / "tokenizer_config.json").read_bytes() == (target / "tokenizer_config.json").read_bytes()


def test_files_of_a_tokenizer_with_code_of_its_own_do_not_ask_for_it(source: Path) -> None:
    tokenizer, config = load_tokenizer(source), source / "tokenizer_config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "auto_map": {"AutoTokenizer": ["mine.Mine", None]}})
    )
    target = source.with_name("student")
    write_tokenizer(tokenizer, source, target)
    assert "auto_map" not in json.loads((target / "tokenizer_config.json").read_text())
    assert AutoTokenizer.from_pretrained(target)("a teacher").input_ids == tokenizer("a teacher").input_ids


def test_a_batch_of_an_export_is_padded_and_generates_what_each_text_alone_does(source: Path, tmp_path: Path) -> None:
    folder = export_student(make_gpt2(), load_tokenizer(source), tmp_path / "best", CARD, tokenizer_folder=source)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (model.generation_config.pad_token_id, model.config.pad_token_id) == (0, None)
    tokenizer.padding_side = "left"
    texts = ["The teacher is pruned to", "A"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    assert batch.attention_mask.sum(1).tolist() == [len(tokenizer(text).input_ids) for text in texts]
    made = model.generate(**batch, max_new_tokens=6, do_sample=False)
    for row, text in zip(made, texts, strict=True):
        alone = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=6, do_sample=False)[0]
        assert torch.equal(row[-len(alone) :], alone)
