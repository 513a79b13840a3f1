"""Wrong user files: each is rejected in one line that names the file and the rule."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from nas.evaluate import main as evaluate
from nas.search import main as search
from search_spaces.errors import InputError
from trials.preparation import Preparation, prepare
from trials.recipe import Recipe

LENGTH = 16
TEXT = "\n\n".join("the teacher is pruned to a smaller architecture" for _ in range(120))


@dataclass(frozen=True)
class Brought:
    """A user's files: a teacher's folder and a text file. Both are valid until a test damages one."""

    teacher: Path
    text: Path

    def prepare(self, cache: Path, length: int = LENGTH) -> Preparation:
        sizes: dict[str, Any] = {"tokens": 4 * length, "rungs": (4 * length,), "validation_tokens": 4 * length}
        sizes |= {"sequence_length": length, "batch_tokens": length, "calibration_samples": 2}
        recipe = Recipe(str(self.teacher), str(self.text), **sizes, learning_rate=1e-3, seed=0)
        return prepare(recipe, str(cache), "cpu")


@pytest.fixture
def brought(tiny_teacher_folder: Path, tmp_path: Path) -> Brought:
    teacher, text = tmp_path / "teacher", tmp_path / "text.txt"
    shutil.copytree(tiny_teacher_folder, teacher)
    text.write_text(TEXT)
    return Brought(teacher, text)


def empty(one: Brought) -> None:
    one.text.write_text("")


def blank(one: Brought) -> None:
    one.text.write_text(" \n\n \n")


def tiny(one: Brought) -> None:
    one.text.write_text("a\n\nb\n\nc")


def not_utf8(one: Brought) -> None:
    one.text.write_bytes(TEXT.encode() + b"caf\xe9")


def larger_vocabulary(one: Brought) -> None:
    fast = json.loads((one.teacher / "tokenizer.json").read_text())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(fast)))
    tokenizer.add_tokens([f"<{number}>" for number in range(100)])
    tokenizer.save_pretrained(one.teacher)


def truncated(one: Brought) -> None:
    weights = one.teacher / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)


def overwritten(one: Brought) -> None:
    (one.teacher / "model.safetensors").write_bytes(os.urandom(1000))


def emptied(one: Brought) -> None:
    (one.teacher / "model.safetensors").write_bytes(b"")


def no_json(one: Brought) -> None:
    (one.teacher / "config.json").write_text('{"model_type": "gpt2", ')


def lacking(one: Brought) -> None:
    weights = load_file(one.teacher / "model.safetensors")
    del weights["transformer.ln_f.weight"]
    save_file(weights, one.teacher / "model.safetensors", metadata={"format": "pt"})


def untied(one: Brought) -> None:
    weights = load_file(one.teacher / "model.safetensors")
    weights["lm_head.weight"] = weights["transformer.wte.weight"] + 1
    save_file(weights, one.teacher / "model.safetensors", metadata={"format": "pt"})


def infinite(one: Brought) -> None:
    weights = load_file(one.teacher / "model.safetensors")
    weights["transformer.h.0.mlp.c_fc.weight"][0, 0] = float("inf")
    save_file(weights, one.teacher / "model.safetensors", metadata={"format": "pt"})


CASES = (
    (empty, "text.txt", "at least two paragraphs"),
    (blank, "text.txt", "at least two paragraphs"),
    (tiny, "text.txt", "shorter than one window of 16 tokens"),
    (not_utf8, "text.txt", "not UTF-8 at byte"),
    (larger_vocabulary, "teacher", "its tokenizer has"),
    (truncated, "teacher", "its weights cannot be loaded"),
    (overwritten, "teacher", "its weights cannot be loaded"),
    (emptied, "teacher", "its weights cannot be loaded"),
    (no_json, "teacher", "config.json cannot be used"),
    (lacking, "teacher", "lack 1 tensors, the first is transformer.ln_f.weight"),
    (untied, "teacher", "tie_word_embeddings: true"),
    (infinite, "teacher", "its weight transformer.h.0.mlp.c_fc.weight holds NaN or infinity"),
)


@pytest.mark.parametrize(("spoil", "file", "rule"), CASES, ids=[case[0].__name__ for case in CASES])
def test_is_refused(brought: Brought, tmp_path: Path, spoil: Callable[[Brought], None], file: str, rule: str) -> None:
    spoil(brought)
    with pytest.raises(InputError) as error:
        brought.prepare(tmp_path / "cache")
    message = str(error.value)
    assert str(tmp_path / file) in message
    assert rule in message
    assert "\n" not in message


def quantized(one: Brought) -> None:
    change(one, quantization_config={"quant_method": "gptq", "bits": 4})


def sized_by_a_text(one: Brought) -> None:
    change(one, n_layer="3")


def of_all_memory(one: Brought) -> None:
    change(one, n_layer=2**40)


def without_a_shape(one: Brought) -> None:
    (one.teacher / "config.json").write_text("null")


def change(one: Brought, **values: object) -> None:
    file = one.teacher / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (quantized, "its weights are quantized (gptq, 4 bits), and quantized matrices cannot be"),
        (sized_by_a_text, 'n_layer is "3", and must be a whole number from 1 to 1,000'),
        (of_all_memory, "n_layer is 1099511627776, and must be a whole number from 1 to 1,000"),
        (without_a_shape, "its config.json cannot be used: it holds null instead of an object"),
    ],
)
def test_both_commands_refuse_it_from_the_configuration_alone(
    brought: Brought,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Brought], None],
    rule: str,
) -> None:
    spoil(brought)
    monkeypatch.chdir(brought.teacher.parent)
    monkeypatch.setattr("trials.teacher.teacher.AutoModelForCausalLM", None)  # no weights are loaded
    searches = ["--model", "teacher", "--corpus", "text.txt", "--budget", "60%"]
    for command, arguments in ((search, [*searches, "--dry-run"]), (search, searches), (evaluate, ["teacher"])):
        assert command(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: model teacher: ")
        assert rule in line


@pytest.mark.parametrize("batch", [10**12, 10**30])
def test_a_batch_that_no_memory_holds(brought: Brought, capsys: pytest.CaptureFixture[str], batch: int) -> None:
    assert evaluate([str(brought.teacher), "--tasks", "efficiency", "--batch", str(batch)]) == 2
    assert capsys.readouterr().err.startswith(f"error: batch {batch}: more sequences than the memory holds")


def test_sequences_longer_than_the_positions_are_refused(brought: Brought, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sequence length 65: the teacher reads at most 64 tokens"):
        brought.prepare(tmp_path / "cache", 65)


def test_what_is_not_spoilt_is_taken(brought: Brought, tmp_path: Path) -> None:
    prepared = brought.prepare(tmp_path / "cache")
    assert prepared.corpus.startswith("text.txt: ")
    assert 0 < prepared.teacher_loss < 20
