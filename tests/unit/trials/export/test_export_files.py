"""The files of an export and of its student: their modes, their settings, and what a killed export leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import make_decoder
from transformers import AutoConfig, GenerationConfig, GPT2LMHeadModel, PreTrainedTokenizerFast

from search_spaces.architecture import Architecture
from trials.distill.checkpoint import CheckpointWriter, Progress
from trials.distill.results import save_student
from trials.export import export
from trials.export.export import FreshLoad, ModelCard, export_student, verify_manifest
from trials.families.lookup import family_of
from trials.prune.importance import compute_importance
from trials.prune.prune import prune, student_from

STOCK, CUSTOM = Architecture.uniform(2, 36, 3, 64), Architecture(2, 40, (4, 1), (10, 96))
CARD = ModelCard("teacher", 100_000, 2.0, "60%", CUSTOM, 60_000, 1_000, 2.25, "a corpus", "python -m nas.search")
WRITER = """
import sys, time
from pathlib import Path
from trials.storage.durable import write_sealed

def write(folder):
    (folder / "model.safetensors").write_text("half")
    print(folder, flush=True)
    sys.stdin.read()

write_sealed(Path(sys.argv[1]), write)
"""


@pytest.fixture(autouse=True)
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`test_export` has the tests with a fresh process."""
    monkeypatch.setattr(export, "check_fresh_load", lambda *_: FreshLoad(0.0, "AutoTokenizer"))


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=["022", "027", "077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def student_of(teacher: GPT2LMHeadModel, architecture: Architecture) -> GPT2LMHeadModel:
    scores = compute_importance(teacher, family_of(teacher.config), torch.arange(60).view(4, 15))
    return prune(teacher, scores, architecture)


def modes(folder: Path) -> set[str]:
    return {f"{file.stat().st_mode & 0o777:o}" for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("architecture", [STOCK, CUSTOM], ids=["stock", "custom"])
def test_every_file_of_an_export_has_the_mode_of_the_umask(
    tiny_gpt2: GPT2LMHeadModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    umask: int,
    architecture: Architecture,
) -> None:
    folder = export_student(student_of(tiny_gpt2, architecture), tiny_tokenizer, tmp_path / "best", CARD)
    assert modes(folder) == {f"{0o666 & ~umask:o}"}
    verify_manifest(folder)


def test_so_have_the_files_of_students_and_checkpoints(tiny_gpt2: GPT2LMHeadModel, tmp_path: Path, umask: int) -> None:
    student = student_of(tiny_gpt2, STOCK)
    save_student(student, tmp_path / "student")
    with CheckpointWriter(tmp_path) as checkpoints:
        checkpoints.save(student, torch.optim.AdamW(student.parameters()), Progress("trial", step=3))
    assert modes(tmp_path) == {f"{0o666 & ~umask:o}"}


def start_writer(path: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process in the middle of writing ``path``, and its temporary folder."""
    command = [sys.executable, "-c", WRITER, str(path)]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    return writer, Path(writer.stdout.readline().strip())


def test_what_a_killed_export_left_is_removed_by_the_next_one_and_a_living_one_is_not_disturbed(
    tiny_gpt2: GPT2LMHeadModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    directory = tmp_path / "best"
    other = tmp_path / ".best_stock.0123.tmp"
    other.mkdir()
    retired = tmp_path / ".best.4567.tmp"  # the older export, if a process is killed between two renames
    retired.mkdir()
    (dead, left), (living, kept) = start_writer(directory), start_writer(directory)
    dead.send_signal(signal.SIGKILL)
    dead.communicate()
    assert left.is_dir()
    assert kept.is_dir()
    export_student(student_of(tiny_gpt2, STOCK), tiny_tokenizer, directory, CARD)
    assert not left.exists()
    assert not retired.exists()
    assert (kept / "model.safetensors").read_text() == "half"
    assert other.is_dir()
    verify_manifest(directory)
    living.communicate("")
    assert living.returncode == 0
    assert (directory / "model.safetensors").read_text() == "half"
    assert {one.name for one in tmp_path.iterdir()} == {"best", other.name}


def test_so_is_what_a_killed_trial_left_of_its_student(tiny_gpt2: GPT2LMHeadModel, tmp_path: Path) -> None:
    dead, left = start_writer(tmp_path / "student")
    dead.send_signal(signal.SIGKILL)
    dead.communicate()
    assert left.is_dir()
    save_student(student_of(tiny_gpt2, STOCK), tmp_path / "student")
    assert [one.name for one in tmp_path.iterdir()] == ["student"]


@pytest.mark.parametrize("architecture", [STOCK, CUSTOM], ids=["stock", "custom"])
def test_an_export_generates_with_a_cache_whatever_its_teacher_says(
    tiny_gpt2: GPT2LMHeadModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, architecture: Architecture
) -> None:
    student = student_of(tiny_gpt2, architecture)
    student.config.use_cache = student.generation_config.use_cache = False
    folder = export_student(student, tiny_tokenizer, tmp_path / "best", CARD)
    config = json.loads((folder / "config.json").read_text())
    generation = json.loads((folder / "generation_config.json").read_text())
    assert config["use_cache"] is True
    assert generation.get("use_cache", True) is True
    assert AutoConfig.from_pretrained(folder, trust_remote_code=True).use_cache
    assert GenerationConfig.from_pretrained(folder).use_cache in (None, True)


def test_the_student_of_a_quantized_teacher_is_exported_as_plain_weights(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    teacher = make_decoder("qwen3")
    fp8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}
    teacher.config.quantization_config = fp8
    architecture = Architecture.uniform(2, 40, 4, 64, 2)
    student = student_from(teacher.config, architecture, student_of(teacher, architecture).state_dict())
    folder = export_student(student, tiny_tokenizer, tmp_path / "best", CARD)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(("dtype", "words"), [(torch.float32, "float32; `dtype"), (torch.bfloat16, "bfloat16\n")])
def test_the_card_says_the_number_format_of_the_weights(
    tiny_gpt2: GPT2LMHeadModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    dtype: torch.dtype,
    words: str,
) -> None:
    folder = export_student(student_of(tiny_gpt2, STOCK).to(dtype), tiny_tokenizer, tmp_path / "best", CARD)
    assert f"- Number format of the weights: {words}" in (folder / "README.md").read_text()
