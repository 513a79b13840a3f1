"""Exports of compressed students: as small as counted, and the same model after another process has loaded them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_decoder, make_gpt2
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

from search_spaces.architecture import Architecture
from search_spaces.compression import Compression, Quantization, Sparsity
from search_spaces.stored_size import stored_bytes
from trials.compress.compress import compressor, round_weights
from trials.export.compressed import as_exported, write_compressed
from trials.export.export import ExportError, ModelCard, export_student
from trials.export.packed import PACKED, unpack
from trials.families.lookup import family_of
from trials.families.shapes import shape_of
from trials.prune.importance import compute_importance
from trials.prune.prune import prune
from trials.teacher.source import resolve_model

INT8, NF4, HALF = Quantization("int8"), Quantization("nf4"), Sparsity(0.5)
EVERY = [
    Compression(quantization=INT8),
    Compression(quantization=NF4),
    Compression(quantization=Quantization("nf4", 128, double=False)),
    Compression(quantization=replace(NF4, matrices=("mlp",))),
    Compression(HALF),
    Compression(Sparsity(0.8, matrices=("mlp",))),
    Compression(Sparsity(0.5, "2:4")),
    Compression(HALF, INT8),
    Compression(HALF, NF4),
    Compression(replace(HALF, matrices=("mlp",)), replace(NF4, matrices=("attention",))),
]
MINI = resolve_model("mini")


def compressed(student: PreTrainedModel, compression: Compression) -> PreTrainedModel:
    """``student`` with the zeros of ``compression``, as a trial saves it: before its weights are rounded."""
    compressing = compressor(student, compression, torch.arange(64).view(4, 16).numpy())
    assert compressing is not None
    with compressing.measured(1, 1):
        pass
    compressing.leave()
    return student


@pytest.mark.parametrize("compression", EVERY, ids=lambda one: one.key)
def test_bytes_are_counted_within_one_per_cent(compression: Compression, tmp_path: Path) -> None:
    student = compressed(AutoModelForCausalLM.from_pretrained(MINI).eval(), compression)
    shape = shape_of(student.config)
    as_exported(student, compression, None).save_pretrained(tmp_path)
    write_compressed(student, compression, tmp_path)
    file = tmp_path / (PACKED if compression.sparsity.level else "model.safetensors")
    counted = stored_bytes(shape, replace(shape.full, compression=compression))
    assert counted == pytest.approx(file.stat().st_size, rel=0.01)
    assert counted < 0.85 * stored_bytes(shape, shape.full)


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox"])
@pytest.mark.parametrize("sparsity", [Sparsity(), HALF], ids=["dense", "sparse"])
def test_bytes_of_torchao_are_counted_within_one_per_cent(model_type: str, sparsity: Sparsity, tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 8}
    grouped = {"num_key_value_heads": 4, "head_dim": 32} if model_type == "llama" else {}
    compression = Compression(sparsity, Quantization("int8wo"))
    student = compressed(make_decoder(model_type, **sizes, **grouped), compression)
    shape = shape_of(student.config)
    as_exported(student, compression, None).save_pretrained(tmp_path)
    write_compressed(student, compression, tmp_path)
    file = tmp_path / (PACKED if sparsity.level else "model.safetensors")
    counted = stored_bytes(shape, replace(shape.full, compression=compression))
    assert counted == pytest.approx(file.stat().st_size, rel=0.01)


def test_bytes_of_a_plain_student_are_counted(tmp_path: Path) -> None:
    student = AutoModelForCausalLM.from_pretrained(MINI, dtype=torch.bfloat16)
    student.save_pretrained(tmp_path)
    shape = shape_of(student.config)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert stored_bytes(shape, shape.full) == pytest.approx(size, rel=0.01)


@pytest.mark.parametrize("compression", [one for one in EVERY if one.sparsity.level], ids=lambda one: one.key)
def test_a_packed_file_holds_the_weights_of_the_model(compression: Compression, tmp_path: Path) -> None:
    student = compressed(make_decoder("llama"), compression)
    as_exported(student, compression, None).save_pretrained(tmp_path)
    write_compressed(student, compression, tmp_path)
    round_weights(student, compression)
    found = unpack(tmp_path / PACKED)
    for name, weight in student.named_parameters():
        assert torch.equal(found[name], weight.bfloat16()), name


def test_a_packed_file_of_other_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = compressed(make_decoder("llama"), Compression(HALF))
    monkeypatch.setattr("trials.export.compressed.unpack", lambda path: {**unpack(path), "more": torch.ones(1)})
    with pytest.raises(ValueError, match="more differs"):
        write_compressed(student, Compression(HALF), tmp_path)


@pytest.mark.parametrize(
    ("family", "sizes", "done"),
    [
        ("wide gpt2", Architecture.uniform(2, 64, 4, 64), Compression(quantization=NF4)),
        ("gpt2", Architecture(2, 40, (4, 1), (10, 96)), Compression(HALF, INT8)),
        ("llama", Architecture.uniform(2, 48, 4, 64, 2), Compression(quantization=INT8)),
        ("llama", Architecture.uniform(2, 48, 4, 64, 2), Compression(HALF, Quantization("int8wo"))),
        ("llama", Architecture(2, 48, (4, 2), (64, 48), (2, 1)), Compression(quantization=Quantization("int8wo"))),
    ],
    ids=["stock-nf4", "custom-sparse-int8", "llama-int8", "llama-torchao", "custom-llama-torchao"],
)
def test_a_fresh_process_loads_the_same_model(
    family: str,
    sizes: Architecture,
    done: Compression,
    tiny_gpt2: GPT2LMHeadModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    wide = {"n_embd": 128, "n_head": 8, "n_inner": 128}
    makers = {"gpt2": lambda: tiny_gpt2, "wide gpt2": lambda: make_gpt2(**wide), "llama": lambda: make_decoder("llama")}
    teacher = makers[family]()
    scores = compute_importance(teacher, family_of(teacher.config), torch.arange(60).view(4, 15))
    one = replace(sizes, compression=done)
    student = compressed(prune(teacher, scores, one), done)
    folder = export_student(student, tiny_tokenizer, tmp_path / "best", card(one))
    text = (folder / "README.md").read_text("utf-8")
    assert done.quantization.scheme in text
    assert ("packed.safetensors" in text) == bool(done.sparsity.level)


def test_wrong_codes_are_found(
    tiny_gpt2: GPT2LMHeadModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = Compression(quantization=INT8)

    def damaged(student: PreTrainedModel, compression: Compression, folder: Path) -> None:
        write_compressed(student, compression, folder)
        state = load_file(folder / "model.safetensors")
        state["transformer.h.0.mlp.c_fc.weight"] = state["transformer.h.0.mlp.c_fc.weight"].flip(0)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr("trials.export.export.write_compressed", damaged)
    one = replace(Architecture.uniform(3, 48, 4, 96), compression=done)
    with pytest.raises(ExportError, match="reloaded logits differ"):
        export_student(tiny_gpt2, tiny_tokenizer, tmp_path / "best", card(one))


def card(one: Architecture) -> ModelCard:
    """A model card of the architecture ``one``."""
    return ModelCard("teacher", 100_000, 2.0, "40%B", one, 60_000, 1_000, 2.25, "text", "python -m nas.search")


def test_a_sparse_file_says_what_it_is(tmp_path: Path) -> None:
    write_compressed(compressed(make_decoder("llama"), Compression(HALF)), Compression(HALF), tmp_path)
    with safe_open(tmp_path / PACKED, "pt") as file:
        assert {"layout", "compression"} <= set(file.metadata())
