"""A registered winner is what its folder is, loaded by MLflow itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from nas.tracking.messages import ModelExported, SearchStarted
from nas.tracking.mlflow_delivery import MlflowDelivery
from nas.tracking.mlflow_flavour import write_flavour
from nas.tracking.outbox import Outbox, RejectedError
from trials.families.modeling_pruned_gpt2 import PrunedGPT2Config, PrunedGPT2LMHeadModel

SIZES = {"n_layer": 2, "n_embd": 24, "n_head": 2, "head_dim": 12, "vocab_size": 320, "n_positions": 64}


@pytest.fixture
def custom_folder(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A student with sizes by layer, which brings its modelling file."""
    config = PrunedGPT2Config(**SIZES, layer_heads=[2, 1], layer_mlp=[16, 96], bos_token_id=0, eos_token_id=0)
    PrunedGPT2LMHeadModel(config).save_pretrained(tmp_path / "custom")
    tiny_tokenizer.save_pretrained(tmp_path / "custom")
    return tmp_path / "custom"


@pytest.mark.parametrize("kind", ["stock", "custom"])
def test_mlflow_loads_the_winner(
    kind: str,
    tiny_teacher_folder: Path,
    custom_folder: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    best = tmp_path / "best"
    shutil.copytree(tiny_teacher_folder if kind == "stock" else custom_folder, best)
    uri, outbox = f"sqlite:///{tmp_path / 'mlflow.db'}", Outbox(tmp_path / "outbox")
    delivery = MlflowDelivery(uri, "nas", tmp_path / "artifacts")
    for event in (SearchStarted("s", {}, {}), ModelExported("s", "winner", str(best), "text")):
        delivery.deliver(event, outbox.files(outbox.add(event)))
    mlflow.set_tracking_uri(uri)
    loaded = mlflow.transformers.load_model("models:/winner@best")
    expected = AutoModelForCausalLM.from_pretrained(best, trust_remote_code=kind == "custom")
    tokens = torch.arange(20)[None]
    assert torch.equal(loaded.model(tokens).logits, expected(tokens).logits)
    assert loaded.tokenizer("a layer or a head").input_ids == tiny_tokenizer("a layer or a head").input_ids
    assert loaded("The teacher", max_new_tokens=2)[0]["generated_text"].startswith("The teacher")
    version = MlflowClient(uri, uri).get_model_version_by_alias("winner", "best")
    assert version.description == "text"
    assert version.run_id
    assert sorted(one.name for one in best.iterdir()) == sorted(
        one.name for one in (tiny_teacher_folder if kind == "stock" else custom_folder).iterdir()
    ), "the exported folder itself stays as it is"


def test_a_folder_without_a_class_is_refused_for_good(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RejectedError, match="architectures"):
        write_flavour(tmp_path, "run", "model")
