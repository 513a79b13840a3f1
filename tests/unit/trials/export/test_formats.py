"""Other number formats: loaded again by who reads them, as near as the format allows, and nothing else is written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_decoder, make_gpt2
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from trials.export import export, fresh_load, onnx_file
from trials.export.compressed import ROUNDING
from trials.export.errors import ExportError
from trials.export.export import FreshLoad, ModelCard, export_student, verify_manifest
from trials.export.formats import NUMBERS, write_format
from trials.export.load import load_checkpoint
from trials.families.lookup import family_of
from trials.prune.importance import compute_importance
from trials.prune.prune import prune

BY_LAYER = {
    "gpt": Architecture(3, 40, (4, 2, 3), (64, 40, 96)),
    "": Architecture(3, 40, (4, 2, 3), (64, 40, 96), (2, 1, 3)),
}


def student_of(teacher: PreTrainedModel, architecture: Architecture) -> PreTrainedModel:
    scores = compute_importance(teacher, family_of(teacher.config), torch.arange(60).view(4, 15))
    return prune(teacher, scores, architecture)


@pytest.fixture(scope="module")
def source(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a llama with sizes by layer, whose matrices fit NF4 on a CPU."""
    folder = tmp_path_factory.mktemp("source") / "best"
    wide = {"hidden_size": 128, "head_dim": 16, "num_attention_heads": 8, "num_key_value_heads": 4}
    one = Architecture(2, 64, (4, 4), (128, 64), (2, 2))
    student = student_of(make_decoder("llama", intermediate_size=128, **wide), one)
    card = ModelCard("org/teacher", 100_000, 2.0, "60%", one, 60_000, 1_000, 2.25, "text", "python -m nas.search")
    with pytest.MonkeyPatch.context() as patch:  # what is written from it is loaded, so it need not be
        patch.setattr(export, "check_fresh_load", lambda *_: FreshLoad(0.0, "AutoTokenizer"))
        return export_student(student, tiny_tokenizer, folder, card)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the loading script in this process, because a fresh one takes seconds."""
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(export, "_run", lambda command, *_: fresh_load.main(Path(command[-1])))


def test_a_format_is_loaded_in_a_fresh_process(source: Path, tmp_path: Path) -> None:
    assert write_format(load_checkpoint(source), source, tmp_path / "other", "bf16").difference > 0


@pytest.mark.parametrize("name", [*NUMBERS, "int8", "nf4"])
def test_a_format_is_what_it_says(name: str, source: Path, tmp_path: Path, in_process: None) -> None:
    written = write_format(load_checkpoint(source), source, tmp_path / "other", name)
    verify_manifest(written.path)
    assert written.bytes == sum(file.stat().st_size for file in written.path.iterdir())
    assert written.difference <= ROUNDING.get(NUMBERS.get(name), 0.5) * written.largest
    kinds = {weight.dtype for weight in load_file(written.path / "model.safetensors").values()}
    coded = {"int8": torch.int8, "nf4": torch.uint8}
    assert (coded[name] in kinds) if name in coded else (kinds == {NUMBERS[name]})
    assert (written.path / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    card = (written.path / "README.md").read_text()
    assert 'from_pretrained("./other", trust_remote_code=True)' in card
    assert ("--format gguf" in card) == ("llama-server -m other-f16.gguf" in card) == (name in NUMBERS)
    assert re.search(rf"^- Number format of the weights: {formats_words(name)}.*; made from `best`", card, re.MULTILINE)


def formats_words(name: str) -> str:
    return {"fp16": "float16", "fp32": "float32", "bf16": "bfloat16"}.get(name, f"bfloat16; the matrices .* are {name}")


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama", "qwen3"])
def test_students_by_layer_are_read_and_written_again(
    kind: str, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, in_process: None
) -> None:
    teacher = make_gpt2() if kind == "gpt2" else make_decoder(kind)
    student_of(teacher, BY_LAYER["gpt" if "gpt" in kind else ""]).save_pretrained(tmp_path / "source")
    tiny_tokenizer.save_pretrained(tmp_path / "source")
    model = load_checkpoint(tmp_path / "source")
    assert write_format(model, tmp_path / "source", tmp_path / "other", "fp32").difference == 0


ONNX_CASES = [
    ("gpt2", Architecture.uniform(2, 36, 3, 64)),
    ("gpt2", BY_LAYER["gpt"]),
    ("gpt_neox", BY_LAYER["gpt"]),
    *((kind, BY_LAYER[""]) for kind in ("llama", "mistral", "qwen2", "qwen3")),
    ("qwen2", Architecture.uniform(2, 40, 4, 60, 2)),  # a seed_oss
]


@pytest.mark.parametrize(("kind", "sizes"), ONNX_CASES)
def test_onnxruntime_computes_what_transformers_does(kind: str, sizes: Architecture, tmp_path: Path) -> None:
    teacher = (
        make_gpt2() if kind == "gpt2" else make_decoder(kind, **({"sliding_window": 6} if kind == "mistral" else {}))
    )
    student = student_of(teacher, sizes).requires_grad_(False)
    assert onnx_file.write_onnx(student, tmp_path / "model.onnx") < 1e-4


def test_the_lines_of_the_card_run_the_onnx_file(source: Path, tmp_path: Path) -> None:
    written = write_format(load_checkpoint(source), source, tmp_path / "other", "onnx")
    verify_manifest(written.path)
    [lines] = re.findall(r"```python\n(.*?)```", (written.path / "README.md").read_text(), re.DOTALL)
    code = f"{lines}print(logits.shape)"
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert re.fullmatch(r"\(1, \d, 320\)\n", done.stdout), done.stderr
    card = (written.path / "README.md").read_text()
    assert "modelling file" not in card
    assert "Loaded again in onnxruntime" in card


def test_wrong_logits_are_refused_and_nothing_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: None
) -> None:
    monkeypatch.setattr(onnx_file, "positions_of", lambda mask: {"attention_mask": mask, "position_ids": mask})
    monkeypatch.setattr(onnx_file, "TOLERANCE", -1.0)
    with pytest.raises(ExportError, match="onnx: logits of 1 x 1 tokens differ"):
        write_format(load_checkpoint(source), source, tmp_path / "other", "onnx")
    monkeypatch.setattr(export, "ROUNDING", {torch.bfloat16: 1e-7})
    with pytest.raises(ExportError, match="export in bfloat16: rounding moves logits by up to"):
        write_format(load_checkpoint(source), source, tmp_path / "other", "bf16")
    assert not list(tmp_path.iterdir())


def test_a_format_that_does_not_hold_the_weights_is_refused(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    large = make_decoder("llama")
    with torch.no_grad():
        large.model.norm.weight[3] = 1e6
    for model, name, words in (
        (large, "fp16", r"fp16: model\.norm\.weight holds 1e\+06"),
        (make_decoder("llama"), "nf4", r"nf4: 21 of 21 matrices .*; take int8 or --format gguf"),
    ):
        model.save_pretrained(tmp_path / "source")
        tiny_tokenizer.save_pretrained(tmp_path / "source")
        with pytest.raises(InputError, match=words):
            write_format(load_checkpoint(tmp_path / "source"), tmp_path / "source", tmp_path / "other", name)
        assert not (tmp_path / "other").exists()


def test_what_cannot_be_read_is_refused_by_name(source: Path, tmp_path: Path, in_process: None) -> None:
    quantized = write_format(load_checkpoint(source), source, tmp_path / "int8", "int8").path
    with pytest.raises(InputError, match=r"its weights are quantized \(bitsandbytes, 8 bits\)"):
        load_checkpoint(quantized)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "empty")
    (quantized / "config.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match=r"config\.json differs from its checksum"):
        load_checkpoint(quantized)
    with pytest.raises(InputError, match="would be replaced"):
        write_format(load_checkpoint(source), source, tmp_path, "bf16")


def test_no_code_of_the_folder_runs(source: Path, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    (source / "manifest.json").rename(tmp_path / "manifest.json")
    module = next(source.glob("*.py"))
    text = module.read_text()
    try:
        module.write_text("raise SystemExit(1)")
        assert load_checkpoint(source).config.model_type == "pruned_llama"
    finally:
        module.write_text(text)
        (tmp_path / "manifest.json").rename(source / "manifest.json")
