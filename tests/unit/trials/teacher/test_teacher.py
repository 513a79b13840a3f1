"""Finding and loading a teacher: all kinds of sources, and a clear error for each failure."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_decoder, make_gpt2
from fake_hub import COMMIT, FakeHub, tagged_commit
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertConfig, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from search_spaces.compression import Compression, Quantization
from search_spaces.errors import InputError
from trials.compress.compress import round_weights
from trials.compress.matrices import layer_matrices
from trials.export.compressed import as_exported, write_compressed
from trials.storage.durable import write_sealed
from trials.teacher.causal_lm import load_causal_lm, resolve_causal_lm
from trials.teacher.config_file import ACTIVATIONS, ROTARY_TYPES
from trials.teacher.revision import at_commit, commit_of
from trials.teacher.source import HUB_FILES, MINI, fingerprint, read_shape, resolve_model
from trials.teacher.teacher import load_teacher, load_tokenizer


@pytest.fixture
def folder(tiny_teacher_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny teacher that a test may change."""
    return shutil.copytree(tiny_teacher_folder, tmp_path / "teacher")


@pytest.fixture
def llama(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """The folder of a tiny Llama."""
    return saved(make_decoder("llama"), tiny_tokenizer, tmp_path / "llama")


def saved(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def change(file: Path, **values: object) -> None:
    """Set ``values`` in a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_loaded_teacher_is_the_saved_model(tiny_teacher_folder: Path, tiny_gpt2: GPT2LMHeadModel) -> None:
    teacher = load_teacher(resolve_model(str(tiny_teacher_folder)), "cpu")
    tokens = torch.arange(60).reshape(2, 30)
    assert torch.equal(teacher.model(tokens).logits, tiny_gpt2(tokens).logits)
    assert not teacher.model.training
    assert not any(weight.requires_grad for weight in teacher.model.parameters())
    assert teacher.model.config._attn_implementation == "sdpa"
    assert teacher.shape == read_shape(tiny_teacher_folder)
    assert teacher.shape.parameters(teacher.shape.full) == sum(weight.numel() for weight in tiny_gpt2.parameters())
    assert teacher.tokenizer.decode(teacher.tokenizer.encode("a layer")) == "a layer"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_on_a_cpu(folder: Path, tiny_gpt2: GPT2LMHeadModel, dtype: torch.dtype) -> None:
    save_file(
        {name: weight.to(dtype) for name, weight in load_file(folder / "model.safetensors").items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": str(dtype).removeprefix("torch.")}))
    model = load_teacher(folder, "cpu").model
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert torch.equal(model.transformer.wte.weight, tiny_gpt2.transformer.wte.weight.to(dtype).float())


def test_sharded_weights(folder: Path, tiny_gpt2: GPT2LMHeadModel) -> None:
    before = fingerprint(folder)
    (folder / "model.safetensors").unlink()
    tiny_gpt2.save_pretrained(folder, max_shard_size="100KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert torch.equal(load_teacher(resolve_model(str(folder)), "cpu").model.lm_head.weight, tiny_gpt2.lm_head.weight)
    assert fingerprint(folder) != before
    shards[0].unlink()
    with pytest.raises(InputError, match="nor all shards"):
        resolve_model(str(folder))


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_fingerprint_changes_with_one_byte_and_not_with_the_place(folder: Path, tmp_path: Path, file: str) -> None:
    before = fingerprint(folder)
    assert fingerprint(shutil.copytree(folder, tmp_path / "elsewhere")) == before
    content = bytearray((folder / file).read_bytes())
    content[-3] ^= 1
    (folder / file).write_bytes(content)
    assert fingerprint(folder) != before


def test_packaged_teacher_is_complete() -> None:
    shape = read_shape(resolve_model("mini"))
    assert resolve_model("mini") == MINI
    assert shape.layers >= 8
    assert shape.heads >= 8
    assert sum(file.stat().st_size for file in MINI.iterdir()) <= 16 * 2**20


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_folder_which_lacks_a_file(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(InputError, match=r"has no .*" + file.split(".")[0]):
        resolve_model(str(folder))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "./nowhere",
        "/nowhere/model",
        "~/nowhere-at-all",
        "README.md",
        "~nobody-here/model",
        "./a\0b",
        "./" + "n" * 300,
        "~\0",
    ],
)
def test_path_which_is_no_folder(name: str) -> None:
    with pytest.raises(InputError, match="not a folder"):
        resolve_model(name)


def test_unsupported_model_type(folder: Path) -> None:
    BertConfig().save_pretrained(folder)
    with pytest.raises(InputError, match=r"'bert'.*gpt2"):
        resolve_model(str(folder))


QUANTIZED = {
    "bitsandbytes, 4 bits": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "bitsandbytes, 8 bits": {"load_in_8bit": True},
    "gptq, 4 bits": {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True},
    "awq, 4 bits": {"quant_method": "awq", "w_bit": 4},
    "compressed-tensors": {"quant_method": "compressed-tensors", "config_groups": {}},
    "fp8": {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None},
    "torchao": {"quant_method": "torchao", "bits": "x"},
    "of-tomorrow": {"quant_method": "of-tomorrow"},
    "unknown method": {"a": 1},
}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_weights_are_refused_from_the_configuration_alone(
    llama: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(llama / "config.json", quantization_config=QUANTIZED[kind])
    monkeypatch.chdir(llama.parent)
    with pytest.raises(InputError) as error:
        resolve_model("llama")
    refused = f"model llama: its weights are quantized ({kind}), and quantized matrices cannot be"
    assert str(error.value) == f"{refused} sliced; take the unquantized checkpoint"
    if QUANTIZED[kind].get("quant_method") in ("bitsandbytes", "torchao"):
        resolve_causal_lm("llama", False)
        return
    with pytest.raises(InputError) as error:
        resolve_causal_lm("llama", False)
    assert str(error.value) == f"{refused} read here; take the unquantized checkpoint"


@pytest.mark.parametrize("scheme", ["nf4", "int8", "int8wo"])
def test_a_quantized_student_is_evaluated_with_the_weights_that_its_codes_stand_for(
    scheme: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    how = Compression(quantization=Quantization(scheme))
    model = make_decoder("llama") if scheme == "int8wo" else make_gpt2(n_embd=64, n_inner=128)
    tokens = torch.arange(40)[None]
    as_exported(model, how, None).save_pretrained(tmp_path)
    write_compressed(model, how, tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    loaded, _ = load_causal_lm(resolve_causal_lm(str(tmp_path), False), "cpu", "float32", False)
    expected, matrices = copy.deepcopy(model), {f"{one.name}.weight" for one in layer_matrices(model)}
    for name, weight in expected.named_parameters():
        weight.data = weight.data if name in matrices else weight.data.bfloat16().float()
    round_weights(expected, how)
    torch.testing.assert_close(loaded(tokens).logits, expected(tokens).logits, rtol=0, atol=2e-3)
    assert not torch.allclose(model(tokens).logits, expected(tokens).logits, atol=0.02)


@pytest.mark.parametrize("place", [{"compression_config": {"quant_method": "sparseml"}}, {"text_config": {}}])
def test_quantized_weights_are_found_in_all_places(llama: Path, place: dict[str, dict[str, object]]) -> None:
    if "text_config" in place:
        place = {"text_config": {"quantization_config": QUANTIZED["gptq, 4 bits"]}}
    change(llama / "config.json", **place)
    with pytest.raises(InputError, match="its weights are quantized"):
        resolve_model(str(llama))


@pytest.mark.parametrize("gpu", [False, True])
def test_weights_in_block_fp8_are_dequantized(llama: Path, gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a GPU multiplies FP8, and transformers would leave it as it is."""
    weights, expected, size = load_file(llama / "model.safetensors"), {}, 12
    for name in [name for name in weights if "_proj" in name]:
        rows, columns = (side // size for side in weights[name].shape)
        blocks = weights[name].reshape(rows, size, columns, size)
        scale = blocks.abs().amax((1, 3)) / 448
        weights[name] = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn).reshape(weights[name].shape)
        weights[f"{name}_scale_inv"] = scale
        expected[name] = (weights[name].float().reshape(blocks.shape) * scale[:, None, :, None]).reshape(
            weights[name].shape
        )
    save_file(weights, llama / "model.safetensors", metadata={"format": "pt"})
    fp8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [size, size], "fmt": "e4m3"}
    change(llama / "config.json", quantization_config={**fp8, "modules_to_not_convert": ["lm_head"]})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    model = load_teacher(resolve_model(str(llama)), "cpu").model
    for name, weight in expected.items():
        torch.testing.assert_close(model.get_parameter(name), weight)


@pytest.fixture
def merged(llama: Path) -> Path:
    """A model whose folder still has the adapter that was merged into it."""
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(
        make_decoder("llama"), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(llama)
    assert (llama / "adapter_model.safetensors").is_file()
    return llama


def test_an_adapter_beside_its_merged_model_is_not_put_on_top(merged: Path) -> None:
    tokens, expected = torch.arange(20)[None], make_decoder("llama")
    teacher = load_teacher(resolve_model(str(merged)), "cpu")
    assert torch.equal(teacher.model(tokens).logits, expected(tokens).logits)
    model, _ = load_causal_lm(resolve_causal_lm(str(merged), False), "cpu", "float32", False)
    assert torch.equal(model(tokens).logits, expected(tokens).logits)


def test_an_adapter_alone_is_named(merged: Path, tmp_path: Path) -> None:
    (merged / "config.json").unlink()
    for base, named in (("acme/base", "acme/base"), (None, "another model")):
        change(merged / "adapter_config.json", base_model_name_or_path=base)
        with pytest.raises(InputError, match=rf"is an adapter of {named}; merge it \(merge_and_unload\) first"):
            resolve_model(str(merged))


def test_shards_of_distributed_training_are_not_loaded_instead(llama: Path) -> None:
    shutil.copy(llama / "model.safetensors", llama / "shard-00000-model-00001-of-00001.safetensors")
    with pytest.raises(InputError, match=r"shard-00000\S* beside its weights would be loaded instead"):
        resolve_model(str(llama))


def test_chat_templates_are_fetched_with_a_model() -> None:
    files = ["chat_template.jinja", "additional_chat_templates/tools.jinja", "pytorch_model.bin"]
    assert list(filter_repo_objects(files, allow_patterns=HUB_FILES)) == files[:2]


def test_a_tokenizer_is_what_its_file_says(own_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    folder = saved(make_decoder("qwen2"), own_tokenizer, tmp_path / "qwen2")
    written = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("In 1984 there were 13888 of them", "a\n\n  b\tc don't", "naïve 日本 🙂"):
        assert load_tokenizer(folder)(text)["input_ids"] == written.encode(text).ids
    teacher = load_teacher(folder, "cpu")
    again = PreTrainedTokenizerFast.from_pretrained(saved(teacher.model, teacher.tokenizer, tmp_path / "again"))
    assert again.backend_tokenizer.to_str() == teacher.tokenizer.backend_tokenizer.to_str()


def test_a_tokenizer_that_agrees_with_its_file_keeps_its_class(tiny_teacher_folder: Path) -> None:
    assert type(load_tokenizer(tiny_teacher_folder)) is type(AutoTokenizer.from_pretrained(tiny_teacher_folder))


CONFIG = {
    "null": ("null", "holds null instead of an object"),
    "a list": ("[]", r"holds \[\] instead of an object"),
    "3,000 deep": ('{"a":' * 3000 + "1" + "}" * 3000, "nested more than 50 deep"),
    "100 deep": ('{"model_type": "llama", "a": ' + "[" * 100 + "]" * 100 + "}", "nested more than 50 deep"),
    "5,000 digits": ('{"model_type": "llama", "a": ' + "9" * 5000 + "}", "Exceeds the limit"),
    "a list of types": ('{"model_type": ["llama"]}', 'model_type is \\["llama"\\], and must be a name'),
    "a key of two lines": ('{"model_type": "llama", "a\\nb": 1}', r'"a\\nb" is not a name'),
    "no UTF-8": (b"\xff\xfe", "can't decode"),
}


@pytest.mark.parametrize(("content", "message"), CONFIG.values(), ids=CONFIG)
def test_a_configuration_that_is_junk_is_one_short_line(folder: Path, content: str | bytes, message: str) -> None:
    (folder / "config.json").write_bytes(content.encode() if isinstance(content, str) else content)
    for resolve in (resolve_model, lambda name: resolve_causal_lm(name, False)):
        with pytest.raises(InputError, match=r"its config\.json cannot be used: .*" + message) as error:
            resolve(str(folder))
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500


NO_SIZE = (None, "48", 48.0, 48.5, [48], True, 0, -1, 2**40, 10**400, float("nan"), float("inf"))


@pytest.mark.parametrize("name", ["n_layer", "n_embd", "n_head", "n_inner", "vocab_size", "n_positions", "hidden_size"])
def test_a_size_that_no_model_has_is_refused_by_name(folder: Path, name: str) -> None:
    before = (folder / "config.json").read_text()
    for value in NO_SIZE if name != "n_inner" else NO_SIZE[1:]:
        (folder / "config.json").write_text(before)
        change(folder / "config.json", **{name: value})
        with pytest.raises(InputError, match=rf"{name} is \S+, and must be a whole number from 1 to [\d,]+;") as error:
            resolve_model(str(folder))
        assert len(str(error.value)) < 500


WRONG = [
    ("dtype", "float99"),
    ("dtype", ["float32"]),
    ("torch_dtype", 5),
    ("hidden_act", "magic"),
    ("hidden_act", 5),
    ("rms_norm_eps", -1.0),
    ("rms_norm_eps", float("nan")),
    ("rms_norm_eps", "1e-5"),
    ("rope_theta", 0),
    ("rope_theta", float("inf")),
    ("rope_theta", 10**400),
    ("attention_dropout", float("nan")),
    ("auto_map", None),
    ("layer_types", 3),
    ("rope_parameters", "x"),
    ("transformers_weights", "other.safetensors"),
    ("quantization_config", "nf4"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_value_that_no_model_has_is_refused_by_name(llama: Path, name: str, value: object) -> None:
    change(llama / "config.json", **{name: value})
    with pytest.raises(InputError, match=rf"config\.json cannot be used: {name} is .*, and must be ") as error:
        resolve_model(str(llama))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError) as again:
        load_causal_lm(llama, "cpu", "float32", False)
    assert "\n" not in str(again.value)


@pytest.mark.parametrize("rope", [{"rope_type": "magic"}, {"type": ["x"]}, {"rope_type": "linear", "factor": -2}])
def test_rotary_positions_that_no_model_has_are_refused(llama: Path, rope: dict[str, object]) -> None:
    change(llama / "config.json", rope_parameters={"rope_theta": 10_000.0, **rope})
    with pytest.raises(InputError, match=r"(rope_type|factor) is .*, and must be "):
        resolve_model(str(llama))


def test_the_names_that_a_configuration_may_have_are_those_of_transformers() -> None:
    assert {*ROTARY_TYPES} <= {"default", *ROPE_INIT_FUNCTIONS}
    assert {name for name in ACT2FN if ACTIVATIONS.fullmatch(name)} >= {"gelu_new", "gelu", "silu", "gelu_pytorch_tanh"}
    assert {name for name in ACT2FN if not ACTIVATIONS.fullmatch(name)} <= {"prelu", "xielu", "sqrtsoftplus"}


def test_heads_that_do_not_divide_are_refused(llama: Path) -> None:
    change(llama / "config.json", num_key_value_heads=4)
    with pytest.raises(InputError, match=r"num_attention_heads=6: not a multiple of its num_key_value_heads=4"):
        resolve_model(str(llama))


def test_layers_that_no_weights_are_for_are_not_made_up(folder: Path) -> None:
    """They would take memory for 1,000 layers before the missing ones are found."""
    change(folder / "config.json", n_layer=1000)
    with pytest.raises(InputError, match=r"they have [\d,]+ bytes, and config\.json describes [\d,]+ parameters"):
        load_teacher(folder, "cpu")


WEIGHT_MAPS = [
    None,
    [],
    {},
    {"a": 5},
    {"a": None},
    {"a": ["x"]},
    {"a": "../x"},
    {"a": "/etc/passwd"},
    {"a": "b/c"},
    "x",
]


@pytest.mark.parametrize("weight_map", WEIGHT_MAPS)
def test_an_index_of_no_shards(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors").rename(folder / "x")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match=r"index\.json has no weight_map that names a file of this folder"):
        resolve_model(str(folder))


@pytest.mark.parametrize("content", ["null", "[1]", "{", "[" * 100_000])
def test_an_index_that_is_junk(folder: Path, content: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(InputError, match=r"index\.json cannot be used"):
        resolve_model(str(folder))


@pytest.mark.parametrize("content", ["null", "[1]", "{", "5", "[" * 100_000])
@pytest.mark.parametrize(
    "file",
    [
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ],
)
def test_a_file_of_the_tokenizer_or_generation_that_is_junk(folder: Path, file: str, content: str) -> None:
    (folder / file).write_text(content)
    for load in (
        lambda: load_teacher(resolve_model(str(folder)), "cpu"),
        lambda: load_causal_lm(resolve_causal_lm(str(folder), False), "cpu", "float32", False),
    ):
        with pytest.raises(InputError, match=file.replace(".", r"\.") + " cannot be used") as error:
            load()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "values", [{"eos_token": 5}, {"added_tokens_decoder": []}, {"tokenizer_class": 5}, {"model_max_length": "x"}]
)
def test_a_tokenizer_with_values_of_other_types(folder: Path, values: dict[str, object]) -> None:
    change(folder / "tokenizer_config.json", **values)
    with pytest.raises(InputError, match="its tokenizer cannot be loaded: ") as error:
        load_teacher(folder, "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite(folder: Path, value: float, dtype: torch.dtype) -> None:
    weights = {name: weight.to(dtype) for name, weight in load_file(folder / "model.safetensors").items()}
    weights["transformer.h.1.mlp.c_fc.weight"][3, 5] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    message = r"its weight transformer\.h\.1\.mlp\.c_fc\.weight holds NaN or infinity in float32; take an undamaged"
    with pytest.raises(InputError, match=message):
        load_teacher(folder, "cpu")
    with pytest.raises(InputError, match=message):
        load_causal_lm(folder, "cpu", "float32", False)


def test_weights_that_half_precision_cannot_hold(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["transformer.wte.weight"][0, 0] = 1e5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="holds NaN or infinity in float16"):
        load_causal_lm(folder, "cpu", "float16", False)


def test_logits_that_are_not_finite(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["transformer.ln_f.weight"] *= 1e38
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for load in (load_teacher, lambda path, device: load_causal_lm(path, device, "float32", False)):
        with pytest.raises(InputError, match="it gives logits that are not finite"):
            load(folder, "cpu")


@pytest.mark.parametrize("config", ["{", '{"model_type": "no-such-model"}', "{}"])
def test_unusable_config(folder: Path, config: str) -> None:
    (folder / "config.json").write_text(config)
    with pytest.raises(InputError, match=r"config\.json"):
        resolve_model(str(folder))


def test_truncated_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.raises(InputError, match="weights cannot be loaded"):
        load_teacher(folder, "cpu")


def test_missing_tensor_is_not_made_up(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 tensors.*h\.1\.mlp\.c_fc\.weight"):
        load_teacher(folder, "cpu")


def test_weights_of_another_size(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_inner": 64}))
    with pytest.raises(InputError, match="weights cannot be loaded"):
        load_teacher(folder, "cpu")


def test_an_output_projection_of_its_own_is_not_dropped_for_a_tied_one(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    for change, refused in ((0.0, False), (1.0, True)):
        untied = {**weights, "lm_head.weight": weights["transformer.wte.weight"] + change}
        save_file(untied, folder / "model.safetensors", metadata={"format": "pt"})
        if refused:
            with pytest.raises(InputError, match=r"an output projection of its own.*tie_word_embeddings"):
                load_teacher(folder, "cpu")
        else:
            load_teacher(folder, "cpu")


def test_a_flipped_byte_in_an_export_is_found(folder: Path, tiny_teacher_folder: Path) -> None:
    write_sealed(folder, lambda empty: shutil.copytree(tiny_teacher_folder, empty, dirs_exist_ok=True))
    load_teacher(folder, "cpu")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model.safetensors differs from its checksum"):
        load_teacher(folder, "cpu")


def test_tokenizer_larger_than_the_embedding(folder: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    larger = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str()))
    larger.add_tokens([f"<{number}>" for number in range(100)])
    larger.save_pretrained(folder)
    with pytest.raises(InputError, match=r"tokenizer has \d+ entries and its embedding 320"):
        load_teacher(folder, "cpu")


RESOLVE = """
import sys, time
from search_spaces.errors import InputError
from trials.teacher.revision import at_commit, commit_of
from trials.teacher.source import resolve_model
for model in map(str.strip, sys.stdin):
    started = time.monotonic()
    try:
        answer = resolve_model(model)
    except InputError as error:
        answer = error
    print(f"{time.monotonic() - started:.1f}|{answer}", flush=True)
"""


class Elsewhere:
    """Another process, which uses ``hub`` and stores downloads below ``home``."""

    def __init__(self, hub: FakeHub, home: Path) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        settings = {"HF_HOME": str(home), "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", RESOLVE],
            env=inherited | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )

    def resolve(self, model: str) -> str:
        """The folder of ``model``, or the message of the error."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{model}\n")
        seconds, answer = self.process.stdout.readline().strip().split("|")
        assert float(seconds) < 40  # the client's own retries would take 46; a few seconds are usual
        return answer


def assert_names_ways_on(message: str, model: str) -> None:
    for words in (model, "out of reach", "take mini", "./folder"):
        assert words in message


def test_hub(tmp_path: Path, tiny_teacher_folder: Path) -> None:
    """One test of several steps, because the other process takes seconds to start."""
    bert = tmp_path / "bert"
    BertConfig().save_pretrained(bert)
    (bert / "model.safetensors").write_bytes(b"large")
    folders = {"some/model": tiny_teacher_folder, "a/bert": bert}
    folders["some/chat"] = shutil.copytree(tiny_teacher_folder, tmp_path / "chat")
    (folders["some/chat"] / "chat_template.jinja").write_text("{{ messages[0].content }}")
    folders["an/adapter"] = tmp_path / "adapter"
    folders["an/adapter"].mkdir()
    (folders["an/adapter"] / "adapter_config.json").write_text('{"base_model_name_or_path": "acme/base"}')
    folders["a/quantized"] = shutil.copytree(tiny_teacher_folder, tmp_path / "quantized")
    change(folders["a/quantized"] / "config.json", quantization_config=QUANTIZED["gptq, 4 bits"])
    tagged = Path(shutil.copytree(tiny_teacher_folder, tmp_path / "tagged"))
    change(tagged / "config.json", bos_token_id=1)
    with FakeHub(folders, {("some/model", "v1"): tagged}).running() as hub:
        elsewhere = Elsewhere(hub, tmp_path / "home")
        at_tag = Path(elsewhere.resolve("some/model@v1"))
        assert commit_of(at_tag) == tagged_commit("v1")
        assert fingerprint(at_tag) == fingerprint(tagged)
        assert not [one for one in hub.requests if one.startswith("/some/model/resolve/") and at_tag.name not in one]
        assert "'some/model': has no revision 'v2' on the hub" in elsewhere.resolve("some/model@v2")
        assert "may have a revision, org/name@REVISION" in elsewhere.resolve("some/model@../../v1")
        assert "is an adapter of acme/base" in elsewhere.resolve("an/adapter")
        assert "are quantized (gptq, 4 bits)" in elsewhere.resolve("a/quantized")
        assert not [path for path in hub.requests if path.startswith("/a/quantized") and "safetensors" in path]
        assert load_tokenizer(Path(elsewhere.resolve("some/chat"))).chat_template == "{{ messages[0].content }}"
        assert "no such model on the hub" in elsewhere.resolve("no/model")
        assert "asks for a login" in elsewhere.resolve("gated/model")
        assert "'bert'" in elsewhere.resolve("a/bert")
        assert not [path for path in hub.requests if path.startswith("/a/bert") and "safetensors" in path]
        assert_names_ways_on(elsewhere.resolve("silent/model"), "silent/model")
        folder = Path(elsewhere.resolve("some/model"))
    assert fingerprint(folder) == fingerprint(tiny_teacher_folder)
    assert elsewhere.resolve("some/model") == str(folder)  # without the hub
    assert elsewhere.resolve("some/model@v1") == elsewhere.resolve(f"some/model@{at_tag.name}") == str(at_tag)
    assert at_commit("some/model@v1", at_tag) == f"some/model@{at_tag.name}"
    assert commit_of(folder) == COMMIT
    assert at_commit("some/model", folder) == "some/model"
    assert_names_ways_on(elsewhere.resolve("openai-community/gpt2-medium"), "openai-community/gpt2-medium")
    (folder / "model.safetensors").unlink()  # an interrupted download: only the hub has the rest
    assert_names_ways_on(elsewhere.resolve("some/model"), "some/model")
    elsewhere.process.communicate()
    assert elsewhere.process.returncode == 0


def test_hub_switched_off() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"  # by conftest.py
    with pytest.raises(InputError) as caught:
        resolve_model("no/model")
    assert_names_ways_on(str(caught.value), "no/model")


def test_incomplete_snapshot_is_not_taken_for_a_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients before 2.0 return the files of an interrupted download."""
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr("trials.teacher.source.snapshot_download", lambda *_, **__: str(folder))
    with pytest.raises(InputError) as caught:
        resolve_model("no/model")
    assert_names_ways_on(str(caught.value), "no/model")


@pytest.mark.parametrize(
    "name", ["a/b/c", "bad name", "-gpt2", "gpt2--x", "n" * 300, "a\0b", "\ud83d", "a/" + "b" * 300]
)
def test_malformed_hub_id(name: str) -> None:
    with pytest.raises(InputError, match="neither a folder nor a hub id"):
        resolve_model(name)
