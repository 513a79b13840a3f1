"""Teachers in GGUF files: unpacked once, equal to the written model, and a clear one-line error for a bad file."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import gguf
import pytest
import torch
from conftest import make_decoder
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from trials.export.export import ModelCard, export_student
from trials.export.gguf.writer import write_gguf
from trials.export.load import load_checkpoint
from trials.teacher import gguf as unpacking
from trials.teacher.source import resolve_model
from trials.teacher.teacher import load_teacher, load_tokenizer

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_decoder("llama", tie_word_embeddings=True)


@pytest.fixture
def file(
    model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A GGUF file of the model as llama.cpp writes it, in float32."""
    monkeypatch.setattr(unpacking, "HF_HOME", str(tmp_path / "cache"))
    unpacking._unpacked.cache_clear()
    path, config = tmp_path / "model.gguf", model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, tiny_tokenizer, config.vocab_size)
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight":  # tied
            writer.add_tensor(*_as_in_gguf(name, weight, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, size: int) -> None:
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    merges = tokenizer.backend_tokenizer.to_str()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary + [f"<unused{place}>" for place in range(size - len(vocabulary))])
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (size - 1))
    writer.add_token_merges([" ".join(pair) for pair in json.loads(merges)["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def _as_in_gguf(name: str, weight: torch.Tensor, config: object) -> tuple[str, object]:
    """A weight in llama.cpp's form: its name, and queries and keys with interleaved halves for its rotary embedding."""
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in fixed:
        return fixed[name], weight.numpy()
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    module = rest.removesuffix(".weight")
    if module in ("self_attn.q_proj", "self_attn.k_proj"):
        heads = weight.unflatten(0, (-1, 2, config.head_dim // 2))  # type: ignore[attr-defined]
        weight = heads.transpose(1, 2).flatten(0, 2)
    return f"blk.{layer}.{NAMES[module]}.weight", weight.contiguous().numpy()


def test_unpacked_model_is_what_was_written(file: Path, model: PreTrainedModel) -> None:
    teacher = load_teacher(resolve_model(str(file)), "cpu")
    tokens = torch.arange(60).reshape(2, 30)
    torch.testing.assert_close(teacher.model(tokens).logits, model(tokens).logits, rtol=0, atol=1e-5)
    assert teacher.shape.parameters(teacher.shape.full) == sum(weight.numel() for weight in model.parameters())
    assert teacher.tokenizer.decode(teacher.tokenizer.encode("a layer")) == "a layer"


def test_what_lies_beside_the_file_changes_nothing(file: Path, model: PreTrainedModel) -> None:
    (file.parent / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "acme/base"}')
    (file.parent / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "eos_token": "a"}')
    (file.parent / "config.json").write_text("null")
    teacher = load_teacher(resolve_model(str(file)), "cpu")
    tokens = torch.arange(60).reshape(2, 30)
    torch.testing.assert_close(teacher.model(tokens).logits, model(tokens).logits, rtol=0, atol=1e-5)
    assert teacher.tokenizer.eos_token_id == 0
    assert teacher.tokenizer.decode(teacher.tokenizer.encode("a layer")) == "a layer"


def test_it_is_unpacked_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve_model(str(file))
    unpacking._unpacked.cache_clear()  # as in another process
    monkeypatch.setattr(unpacking, "_unpack", lambda *_: pytest.fail("unpacked again"))
    assert resolve_model(str(file)) == first


@pytest.mark.parametrize("keep", [8, 2000, -100_000])
def test_a_truncated_file_is_refused_in_one_line(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"model.gguf: its GGUF content cannot be used") as refused:
        resolve_model(str(file))
    assert "\n" not in str(refused.value)


def test_contents_that_no_model_has_are_refused_in_one_line(
    file: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    merge = " ".join(json.loads(tiny_tokenizer.backend_tokenizer.to_str())["model"]["merges"][0]).encode()
    heads = b"llama.attention.head_count"
    content = file.read_bytes()
    for old, new in (
        (merge, merge.replace(b" ", b"x")),
        (heads + struct.pack("<II", 4, 6), heads + struct.pack("<II", 4, 5)),
    ):
        assert old in content
        file.write_bytes(content.replace(old, new))
        with pytest.raises(InputError, match=r"model.gguf: its GGUF content cannot be used") as refused:
            resolve_model(str(file))
        assert "\n" not in str(refused.value)


def test_a_file_of_another_kind_is_refused(file: Path) -> None:
    file.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(InputError, match=r"model.gguf: not a GGUF file"):
        resolve_model(str(file))


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(InputError, match=r"'nowhere.gguf': not a folder"):
        resolve_model("nowhere.gguf")


def test_the_fields_of_its_tokenizer_come_back_in_the_gguf_file_of_a_student(
    model: PreTrainedModel, file: Path, tmp_path: Path
) -> None:
    folder = resolve_model(str(file))
    one = Architecture.uniform(3, 48, 6, 96, 3)
    card = ModelCard("t", 100, 2.0, "60%", one, 60, 10, 2.25, "text", "python -m nas.search")
    export = export_student(model, load_tokenizer(folder), tmp_path / "best", card, tokenizer_folder=folder)
    written = write_gguf(load_checkpoint(export), export, tmp_path / "student.gguf", "q8_0")
    before, after = (gguf.GGUFReader(one).fields for one in (file, written.path))
    own = [name for name in after if name.startswith("tokenizer.")]
    assert set(own) == {name for name in before if name.startswith("tokenizer.")}
    assert all(
        (before[name].contents(), before[name].types) == (after[name].contents(), after[name].types) for name in own
    )
