"""Finding and loading a teacher: all kinds of sources, and a clear error for each failure."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_hub import FakeHub
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import BertConfig, GPT2LMHeadModel, PreTrainedTokenizerFast

from search_spaces.errors import InputError
from trials.storage.durable import write_sealed
from trials.teacher.source import MINI, fingerprint, read_shape, resolve_model
from trials.teacher.teacher import load_teacher


@pytest.fixture
def folder(tiny_teacher_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny teacher that a test may change."""
    return shutil.copytree(tiny_teacher_folder, tmp_path / "teacher")


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


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model", "~/nowhere-at-all", "README.md"])
def test_path_which_is_no_folder(name: str) -> None:
    with pytest.raises(InputError, match="not a folder"):
        resolve_model(name)


def test_unsupported_model_type(folder: Path) -> None:
    BertConfig().save_pretrained(folder)
    with pytest.raises(InputError, match=r"'bert'.*gpt2"):
        resolve_model(str(folder))


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
    with FakeHub(folders).running() as hub:
        elsewhere = Elsewhere(hub, tmp_path / "home")
        assert "no such model on the hub" in elsewhere.resolve("no/model")
        assert "asks for a login" in elsewhere.resolve("gated/model")
        assert "'bert'" in elsewhere.resolve("a/bert")
        assert not [path for path in hub.requests if path.startswith("/a/bert") and "safetensors" in path]
        assert_names_ways_on(elsewhere.resolve("silent/model"), "silent/model")
        folder = Path(elsewhere.resolve("some/model"))
    assert fingerprint(folder) == fingerprint(tiny_teacher_folder)
    assert elsewhere.resolve("some/model") == str(folder)  # without the hub
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


@pytest.mark.parametrize("name", ["a/b/c", "bad name", "-gpt2", "gpt2--x"])
def test_malformed_hub_id(name: str) -> None:
    with pytest.raises(InputError, match="neither a folder nor a hub id"):
        resolve_model(name)
