"""The command nas.export: finds the checkpoint, writes the file, and says what it did in lines to read."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import pytest
import torch
from conftest import make_decoder
from transformers import PreTrainedTokenizerFast

from nas.export import find_checkpoint, main, parse_arguments
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from trials.families.lookup import family_of
from trials.prune.importance import compute_importance
from trials.prune.prune import prune


@pytest.fixture(scope="module")
def checkpoint(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The winner of a study: a llama with sizes by layer, of whose matrices one has rows of 40 and one of 60."""
    folder = tmp_path_factory.mktemp("study") / "best"
    teacher = make_decoder("llama")
    scores = compute_importance(teacher, family_of(teacher.config), torch.arange(60).view(4, 15))
    prune(teacher, scores, Architecture(2, 32, (4, 2), (64, 60), (2, 1))).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def test_a_folder_becomes_a_gguf_file(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "student.gguf"
    assert main([str(checkpoint), "--format", "gguf", "--type", "q8_0", "--output", str(path)]) == 0
    first, left, serve = capsys.readouterr().out.splitlines()
    reader = gguf.GGUFReader(path)
    assert first.startswith(f"{path}: ")
    assert first.endswith(f"{len(reader.tensors)} tensors in q8_0, llama.cpp's deci")
    stay = [one for one in reader.tensors if one.tensor_type.name == "F16"]
    assert left.startswith(f"{len(stay)} tensors ({sum(one.n_bytes for one in stay) / 1e6:,.1f} MB) stay in f16")
    assert serve == f"serve it:   llama-server -m {path}"


def test_the_file_is_beside_the_checkpoint_unless_told_otherwise(checkpoint: Path) -> None:
    request = parse_arguments([str(checkpoint), "--format", "gguf"])
    assert (request.output, request.kind) == (checkpoint.parent / "best-f16.gguf", "f16")


def test_a_study_is_its_winner(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint(str(checkpoint.parent)) == checkpoint
    (tmp_path / "outputs").symlink_to(checkpoint.parents[1])
    assert find_checkpoint(checkpoint.parent.name) == checkpoint
    several = tmp_path / "several"
    for budget in ("260M", "200M"):
        (several / budget).mkdir(parents=True)
        (several / budget / "best").symlink_to(checkpoint)
    with pytest.raises(InputError, match=r"has several winners, .*200M/best, .*260M/best; give one of them"):
        find_checkpoint(str(several))
    assert find_checkpoint(str(several / "260M")) == checkpoint


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "--format", "gguf"], "'nowhere': neither a checkpoint nor a study with a winner"),
        (["nowhere"], "--format"),
        (["nowhere", "--format", "gguf", "--type", "q4_k"], "q4_k"),
        (["nowhere", "--format", "pickle"], "pickle"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: .+\n", said)
    assert words in said


def test_what_cannot_be_written_is_refused_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = make_decoder("qwen3")
    scores = compute_importance(teacher, family_of(teacher.config), torch.arange(60).view(4, 15))
    prune(teacher, scores, Architecture(2, 32, (4, 2), (64, 60), (2, 1))).save_pretrained(tmp_path / "best")
    capsys.readouterr()
    assert main([str(tmp_path / "best"), "--format", "gguf"]) == 2
    assert re.fullmatch(r"error: GGUF: a qwen3 with sizes by layer.+\n", capsys.readouterr().err)
    assert [one.name for one in tmp_path.iterdir()] == ["best"]
