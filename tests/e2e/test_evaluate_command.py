"""The command that measures, on a teacher of 75,408 parameters and texts from files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXT
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from nas.evaluate import main
from trials.evaluate.evaluation import evaluate_texts
from trials.text.evaluation_text import open_text, text_task

ROOT = Path(__file__).parents[2]
CONVENTIONS = ["non-overlapping windows", "strided windows", "rolling documents", "rolling documents"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("texts")
    article = f" = Title = \n \n {TEXT * 3} \n"
    rows = "".join(json.dumps({"text": f"{TEXT} and a {word}"}) + "\n" for word in ("teacher", "student", "layer"))
    files = {
        "wikitext-2": ("wiki.test.raw", article * 2),
        "ptb": ("ptb.test.txt", f" {TEXT}" * 4),
        "lambada": ("lambada.jsonl", rows),
        "mine": ("mine.txt", TEXT * 4),
    }
    for name, content in files.values():
        (folder / name).write_text(content)
    return {task: folder / name for task, (name, _) in files.items()}


def tasks(texts: dict[str, Path], *more: str) -> str:
    return ",".join([*(f"{task}={path}" for task, path in texts.items()), *more])


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """``python -m nas.evaluate`` with the arguments, from the project's folder, on one thread."""
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "nas.evaluate", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **offline}, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def document(tiny_teacher_folder: Path, texts: dict[str, Path]) -> dict[str, Any]:
    done = run(tiny_teacher_folder, "--tasks", tasks(texts, "efficiency"), "--length", 32, "--batch", 2, "--json")
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_document_has_every_reading(document: dict[str, Any], tiny_teacher_folder: Path) -> None:
    about = {name: document[name] for name in ("model", "path", "class", "parameters", "dtype")}
    folder = str(tiny_teacher_folder)
    assert about == {
        "model": folder,
        "path": folder,
        "class": "GPT2LMHeadModel",
        "parameters": 75_408,
        "dtype": "float32",
    }
    by_task: dict[str, list[str]] = {}
    for reading in document["readings"]:
        assert {"task", "convention", "metric", "value", "unit"} <= reading.keys()
        by_task.setdefault(reading["task"], []).append(reading["convention"])
    assert list(by_task) == ["wikitext-2", "ptb", "lambada", "mine", "efficiency"]
    assert by_task["wikitext-2"] == by_task["ptb"] == by_task["mine"] == CONVENTIONS
    assert by_task["lambada"] == ["lambada_openai"] * 2


def test_document_is_what_the_library_measures(
    document: dict[str, Any],
    texts: dict[str, Path],
    tiny_gpt2: GPT2LMHeadModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    opened = [open_text(text_task(f"{task}={path}")) for task, path in texts.items()]
    expected = [one.to_dict() for one in evaluate_texts(tiny_gpt2, tiny_tokenizer, opened, length=32)]
    found = [reading for reading in document["readings"] if reading["task"] != "efficiency"]
    for one, other in zip(found, expected, strict=True):
        assert {**one, "value": None} == {**other, "value": None}
        assert one["value"] == pytest.approx(other["value"], rel=1e-5)


def test_table(
    tiny_teacher_folder: Path,
    texts: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # as in a pipe; a narrow terminal folds the cells of the table
    assert main([str(tiny_teacher_folder), "--tasks", tasks(texts), "--dtype", "bfloat16"]) == 0
    printed = capsys.readouterr()
    for part in ("GPT2LMHeadModel, 75,408 parameters, bfloat16", "strided windows of 64, stride 32", "3 documents"):
        assert part in printed.out
    assert not printed.err


def test_our_own_export_runs_when_it_may(
    tmp_path: Path, texts: dict[str, Path], tiny_tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    from trials.families.modeling_pruned_gpt2 import PrunedGPT2Config, PrunedGPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_embd": 40, "n_head": 4, "head_dim": 12, "vocab_size": 320, "n_positions": 64}
    config = PrunedGPT2Config(**sizes, layer_heads=[4, 2], layer_mlp=[16, 96], bos_token_id=0, eos_token_id=0)
    PrunedGPT2LMHeadModel(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    arguments = [str(tmp_path), "--tasks", f"mine={texts['mine']},efficiency", "--batch", "1", "--json"]
    assert main(arguments) == 2
    assert "--trust-remote-code" in capsys.readouterr().err
    assert main([*arguments, "--trust-remote-code"]) == 0
    assert json.loads(capsys.readouterr().out)["class"] == "PrunedGPT2LMHeadModel"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--tasks", "wikitext2"], "'wikitext2': unknown"),
        (["--tasks", "mine=nowhere.txt"], "no such file: nowhere.txt"),
        (["--tasks", "quiz=nowhere.yaml"], "no such YAML file: nowhere.yaml"),
        (["--tasks", "mine={mine},mine={ptb}"], "each once"),
        (["--tasks", "efficiency={mine}"], "efficiency without =PATH"),
        (["--tasks", ","], "at least one task"),
        (["--tasks", "mine={mine}", "--length", "65"], "length 65"),
        (["--tasks", "mine={mine}", "--stride", "65"], "stride 65"),
        (["--tasks", "efficiency", "--batch", "0"], "batch 0"),
        (["--tasks", "mine={empty}"], "no text in"),
        (["--tasks", "mine={latin}"], "not UTF-8 at byte 3"),
        (["--tasks", "mine={fields}"], 'line 1: each line must be an object with a string under "text"'),
        (["--tasks", "mine={short}"], "less than one window of 64"),
        (["--tasks", "ptb"], "as a file: ptb=./ptb.test.txt"),
        (["--length", "many"], "--length: invalid int value: 'many'"),
        (["--quick"], "--quick"),
        (["--dtype", "int4"], "'int4'"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    tiny_teacher_folder: Path,
    texts: dict[str, Path],
    tmp_path: Path,
    arguments: list[str],
    named: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    contents = {
        "empty.txt": b" \n",
        "latin.txt": b"caf\xe9",
        "fields.jsonl": b'{"body": "x"}',
        "short.txt": b"a few words",
    }
    files = {task: str(path) for task, path in texts.items()}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        files[name.split(".")[0]] = str(tmp_path / name)
    assert main([str(tiny_teacher_folder), "--json", *(one.format(**files) for one in arguments)]) == 2
    printed = capsys.readouterr()
    assert named in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert not printed.out


@pytest.mark.parametrize("model", ["./nowhere", "bad name"])
def test_a_wrong_model_is_one_line_and_exit_code_2(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([model, "--tasks", "efficiency"]) == 2
    printed = capsys.readouterr()
    assert repr(model) in printed.err
    assert len(printed.err.strip().splitlines()) == 1


def test_the_hub_out_of_reach_is_one_line_that_names_files(tiny_teacher_folder: Path, tmp_path: Path) -> None:
    unreachable = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = run(tiny_teacher_folder, **unreachable)
    assert done.returncode == 2
    assert "out of reach" in done.stderr
    assert "as a file: wikitext-2=./wiki.test.raw" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_wrong_arguments_are_known_before_torch_is_loaded() -> None:
    code = "import sys; from nas.evaluate import main; print(main(['mini', '--tasks', 'x']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "2 False"
