"""Exports: complete, verified, and atomic."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import make_decoder
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

from search_spaces.architecture import Architecture
from search_spaces.compression import Compression, Quantization
from search_spaces.errors import InputError
from trials.export import export, fresh_load
from trials.export.export import ExportError, FreshLoad, ModelCard, check_fresh_load, export_student, verify_manifest
from trials.export.loads_in import loads_in
from trials.families.lookup import family_of
from trials.families.shapes import shape_of
from trials.prune.importance import compute_importance
from trials.prune.prune import prune

STOCK, CUSTOM = Architecture.uniform(2, 36, 3, 64), Architecture(2, 40, (4, 1), (10, 96))
CARD = ModelCard(
    teacher="openai-community/gpt2",
    teacher_parameters=100_000,
    teacher_loss=2.0,
    budget="60%",
    architecture=CUSTOM,
    parameters=60_000,
    tokens=1_000_000,
    val_loss=2.25,
    corpus="WikiText-103 {raw}",
    command="python -m nas.search --budget 60%",
)
GENERATE = """
import sys
made = model.generate(**tokenizer("The teacher is", return_tensors="pt"), max_new_tokens=8, do_sample=False)
print(made[0].tolist(), [name for name in sys.modules if name.partition(".")[0] in {"trials", "nas", "search_spaces"}])
"""


def student_of(teacher: PreTrainedModel, architecture: Architecture) -> PreTrainedModel:
    scores = compute_importance(teacher, family_of(teacher.config), torch.arange(60).view(4, 15))
    return prune(teacher, scores, architecture)


@pytest.fixture(scope="module", params=[STOCK, CUSTOM], ids=["stock", "custom"])
def exported(
    request: pytest.FixtureRequest,
    tiny_gpt2: GPT2LMHeadModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[PreTrainedModel, Path]:
    """A student and its export, which replaced an older one and was verified in a real fresh process."""
    student = student_of(tiny_gpt2, request.param)
    directory = tmp_path_factory.mktemp("exports") / "best"
    return student, export_student(student, tiny_tokenizer, directory, CARD)


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of everything except the fresh process."""
    monkeypatch.setattr(export, "check_fresh_load", lambda *_: FreshLoad(0.0, "AutoTokenizer"))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the loading script in this process, because a fresh one takes seconds. Isolation is not tested here."""
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(export, "_run", lambda command, *_: fresh_load.main(Path(command[-1])))


def test_export_is_complete_and_nothing_else(exported: tuple[PreTrainedModel, Path]) -> None:
    student, folder = exported
    files = {file.name for file in folder.iterdir()}
    needed = {"model.safetensors", "config.json", "generation_config.json", "README.md", "manifest.json"}
    assert needed | {"tokenizer.json", "tokenizer_config.json"} <= files
    modelling = {"modeling_pruned_gpt2.py"} if type(student) is not GPT2LMHeadModel else set()
    assert {name for name in files if name.endswith(".py")} == modelling
    assert not {name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))}  # a pickle may run any code
    assert {file.name for file in folder.parent.iterdir()} == {"best"}
    assert set(json.loads((folder / "manifest.json").read_text())) == files - {"manifest.json"}
    verify_manifest(folder)


def test_the_lines_of_the_card_load_it_anywhere(exported: tuple[PreTrainedModel, Path], tmp_path: Path) -> None:
    student, folder = exported
    [lines] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(lines.splitlines()) == 3
    done = subprocess.run(
        [sys.executable, "-I", "-c", lines + GENERATE],
        cwd=folder.parent,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "[transformers]" not in done.stderr  # no warning
    tokens = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)("The teacher is", return_tensors="pt")
    expected = student.generate(**tokens, max_new_tokens=8, do_sample=False)[0].tolist()
    assert done.stdout == f"{expected} []\n"


@pytest.mark.parametrize(
    ("model_type", "architecture", "stock"),
    [
        ("llama", Architecture.uniform(2, 40, 4, 64, 2), True),
        ("llama", Architecture.uniform(2, 43, 6, 64, 3), True),  # saved as a mistral: llama refuses 43 / 6
        ("llama", Architecture(2, 43, (6, 2), (64, 32), (3, 1)), False),
        ("qwen2", Architecture.uniform(2, 40, 4, 64, 2), True),  # saved as a seed_oss
        ("qwen2", Architecture(2, 43, (6, 2), (64, 32), (3, 1)), False),
        ("gpt_neox", Architecture.uniform(2, 43, 3, 64), False),
    ],
)
def test_other_families_load_in_a_clean_process(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, model_type: str, architecture: Architecture, stock: bool
) -> None:
    student = student_of(make_decoder(model_type), architecture)
    folder = export_student(student, tiny_tokenizer, tmp_path / "best", CARD)  # raises when logits differ
    assert bool(list(folder.glob("*.py"))) is not stock
    verify_manifest(folder)


def test_a_tokenizer_whose_rules_a_type_replaces_is_loaded_by_the_class_in_the_card(
    own_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """transformers gives every qwen2 the rules of Qwen, whatever its folder says."""
    student = student_of(make_decoder("qwen2"), Architecture.uniform(2, 48, 4, 64, 2))
    folder = export_student(student, own_tokenizer, tmp_path / "best", CARD)
    card, text = (folder / "README.md").read_text(), "In 1984 there were 13888"
    assert "**Load the tokenizer with `PreTrainedTokenizerFast`.**" in card
    [lines] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"{lines}print(tokenizer({text!r}).input_ids)"],
        cwd=folder.parent,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{own_tokenizer(text)['input_ids']}\n", done.stderr


def test_card_says_how_it_was_made_and_how_to_load_it(exported: tuple[PreTrainedModel, Path]) -> None:
    student, folder = exported
    card = (folder / "README.md").read_text()
    for fact in ("openai-community/gpt2", "60%", "60,000", "1,000,000", "2.2500", "2.0000", "WikiText-103 {raw}"):
        assert fact in card
    assert CARD.command in card
    assert json.dumps(CUSTOM.to_dict()) in card
    custom = type(student) is not GPT2LMHeadModel
    assert ("modeling_pruned_gpt2.py" in card) == custom


def front_of(folder: Path) -> dict[str, Any]:
    """The metadata of a card."""
    found: dict[str, Any] = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    return found


def test_card_names_model_shape_and_the_programs_that_load_it(
    exported: tuple[PreTrainedModel, Path], tiny_gpt2: GPT2LMHeadModel
) -> None:
    student, folder = exported
    card = (folder / "README.md").read_text()
    assert "\n# gpt2, pruned to 2 layers, width 40, 1 to 4 heads, MLP 10 to 96\n" in card
    custom = type(student) is not GPT2LMHeadModel
    assert ("# llama.cpp\npython -m nas.export ./best --format gguf" in card) is not custom
    assert ("pretrained=./best,trust_remote_code=True --tasks" in card) is custom
    assert "vllm" not in card
    where = replace(CARD, loads_in=loads_in(shape_of(tiny_gpt2.config), STOCK))
    said = {
        why: where.render("best", None, FreshLoad(0.0, "AutoTokenizer"), "bfloat16", 0.1, why) for why in (None, "a b")
    }
    for one in said.values():
        assert "# vLLM\nvllm serve ./best\n" in one
        assert "\n- Loads in transformers (as `gpt2`), vLLM (as `gpt2`)" in one
    assert "llama.cpp (as `gpt2`)\n" in said[None]
    assert "Does not load in llama.cpp: a b\n" in said["a b"]
    assert "--format gguf" not in said["a b"]
    assert front_of(folder) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["pruned", "distilled"],
    }


def test_card_carries_what_is_known_of_the_teacher(
    tiny_gpt2: GPT2LMHeadModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, no_process: None
) -> None:
    known = {"base_model": "openai-community/gpt2", "base_model_relation": "finetune", "license": "mit"}
    known |= {"language": ["en", "de"], "datasets": ["org/text"]}
    card = replace(CARD, metadata=known)
    folder = export_student(student_of(tiny_gpt2, STOCK), tiny_tokenizer, tmp_path / "best", card)
    assert {name: value for name, value in front_of(folder).items() if name in known} == known
    done = Compression(quantization=Quantization("int8"))
    coded = replace(card, architecture=replace(STOCK, compression=done))
    text = coded.render("best", None, FreshLoad(0.0, "AutoTokenizer"), "bfloat16", 0.0)
    assert "base_model_relation: quantized\n" in text


def test_any_flipped_byte_is_found_and_named(exported: tuple[PreTrainedModel, Path]) -> None:
    _, folder = exported
    for file in sorted(folder.iterdir()):
        if file.name == "manifest.json":
            continue
        content = file.read_bytes()
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        with pytest.raises(InputError, match=f"{file.name} differs"):
            verify_manifest(folder)
        file.write_bytes(content)
    verify_manifest(folder)


def test_a_missing_file_is_named(
    tiny_gpt2: GPT2LMHeadModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, no_process: None
) -> None:
    folder = export_student(student_of(tiny_gpt2, STOCK), tiny_tokenizer, tmp_path / "best", CARD)
    (folder / "generation_config.json").unlink()
    with pytest.raises(InputError, match=r"generation_config\.json"):
        verify_manifest(folder)


def change_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["transformer.ln_f.bias"][0] += 0.01
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def drop_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.ln_f.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:5]
    file.write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (change_weights, ExportError, "logits differ by up to"),
        (drop_weights, ValueError, r"transformer\.ln_f\.bias"),
        (change_tokenizer, ExportError, "gives other tokens"),
    ],
)
def test_what_is_not_the_student_is_refused(
    tiny_gpt2: GPT2LMHeadModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    in_process: None,
    damage: Callable[[Path], None],
    error: type[Exception],
    message: str,
) -> None:
    student = student_of(tiny_gpt2, STOCK)
    student.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    assert check_fresh_load(tmp_path, student, tiny_tokenizer) == (0, "AutoTokenizer")
    damage(tmp_path)
    with pytest.raises(error, match=message):
        check_fresh_load(tmp_path, student, tiny_tokenizer)


def test_what_needs_this_project_is_refused(
    tiny_gpt2: GPT2LMHeadModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    student = student_of(tiny_gpt2, CUSTOM)
    student.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    module = tmp_path / "modeling_pruned_gpt2.py"
    module.write_text(module.read_text().replace("import copy", "import copy\nimport trials", 1))
    with pytest.raises(ExportError, match=r"does not load in a fresh process.*'trials'"):
        check_fresh_load(tmp_path, student, tiny_tokenizer)


def test_a_refused_export_leaves_the_older_one(
    tiny_gpt2: GPT2LMHeadModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    in_process: None,
) -> None:
    student = student_of(tiny_gpt2, STOCK)
    folder = export_student(student, tiny_tokenizer, tmp_path / "best", CARD)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with torch.no_grad():
        student.transformer.ln_f.bias.add_(1)
    student.lm_head.register_forward_hook(lambda _, inputs, output: output + 1e-3)  # not in any file
    with pytest.raises(ExportError, match=r"differ by up to 0\.001"):
        export_student(student, tiny_tokenizer, folder, CARD)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["best"]


def test_an_older_export_is_replaced_whole(
    tiny_gpt2: GPT2LMHeadModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, no_process: None
) -> None:
    export_student(student_of(tiny_gpt2, CUSTOM), tiny_tokenizer, tmp_path / "best", CARD)
    folder = export_student(student_of(tiny_gpt2, STOCK), tiny_tokenizer, tmp_path / "best", CARD)
    assert not list(folder.glob("*.py"))
    verify_manifest(folder)


@pytest.mark.parametrize("place", ["a folder of the user", "an export with a file of the user", "a file"])
def test_nothing_but_an_export_is_replaced(
    tiny_gpt2: GPT2LMHeadModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, no_process: None, place: str
) -> None:
    directory, student = tmp_path / "best", student_of(tiny_gpt2, STOCK)
    thesis = directory / "deep" / "thesis.txt"
    if place == "a file":
        thesis = directory
    elif place == "an export with a file of the user":
        export_student(student, tiny_tokenizer, directory, CARD)
    thesis.parent.mkdir(parents=True, exist_ok=True)
    thesis.write_text("dear")
    with pytest.raises(InputError, match="choose another folder"):
        export_student(student, tiny_tokenizer, directory, CARD)
    assert thesis.read_text() == "dear"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_student_is_written_in_another_number_format_with_positions_in_float32(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, in_process: None, dtype: torch.dtype
) -> None:
    """A model in bfloat16 with rotary frequencies in bfloat16 too is not the one that others load."""
    student = student_of(make_decoder("qwen2"), Architecture.uniform(2, 40, 4, 64, 2))
    before = {name: weight.clone() for name, weight in student.named_parameters()}
    folder = export_student(student, tiny_tokenizer, tmp_path / "best", CARD, dtype)
    found = load_file(folder / "model.safetensors")
    assert all(torch.equal(found[name], weight.to(dtype)) for name, weight in before.items())
    name = str(dtype).removeprefix("torch.")
    assert json.loads((folder / "config.json").read_text())["dtype"] == name
    card = (folder / "README.md").read_text()
    assert (f"those of the float32 weights that were trained; {name} moves logits by at most 0.0" in card) == (
        dtype is not torch.float32
    )


def test_weights_that_a_number_format_does_not_hold_are_not_written(
    tiny_gpt2: GPT2LMHeadModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, in_process: None
) -> None:
    student = student_of(tiny_gpt2, STOCK)
    with torch.no_grad():
        student.transformer.ln_f.weight[3] = 1e6
    with pytest.raises(ExportError, match="export in float16: rounding moves logits by up to inf"):
        export_student(student, tiny_tokenizer, tmp_path / "best", CARD, torch.float16)
    assert not list(tmp_path.iterdir())
