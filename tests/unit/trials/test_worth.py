"""What units add to the stream, against a model in which one of them is silent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_decoder, make_gpt2
from torch import Tensor, nn
from transformers import PreTrainedModel

from search_spaces.allocation import Worth
from trials.cache import Cache
from trials.families import family_of
from trials.shapes import shape_of
from trials.teacher import load_teacher
from trials.worth import added_shares, load_worth

MODELS = {"gpt2": make_gpt2, **{name: lambda name=name: make_decoder(name) for name in ("llama", "gpt_neox")}}


def share_of(model: PreTrainedModel, layer: int, unit: slice, attention: bool, tokens: Tensor) -> float:
    """Mean square of what the output projection gives less without ``unit``, over that of the stream behind it."""
    family = family_of(model.config)
    block = family.layers(model)[layer]
    projection = family.attention_output(block) if attention else family.mlp_output(block)
    found: dict[str, Tensor] = {}

    def compare(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        silent = inputs[0].clone()
        silent[..., unit] = 0
        found["missing"] = output - module.forward(silent)

    handles = [
        projection.register_forward_hook(compare),
        block.register_forward_hook(lambda _, inputs, output: found.update(stream=output)),
    ]
    model(tokens)
    for handle in handles:
        handle.remove()
    return float(found["missing"].double().square().mean() / found["stream"].double().square().mean())


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("batch", [1, 4])
def test_a_unit_is_worth_what_is_missing_without_it(name: str, batch: int) -> None:
    model = MODELS[name]()
    family = family_of(model.config)
    size = shape_of(model.config).head_dim
    tokens = torch.randint(320, (3, 17), generator=torch.Generator().manual_seed(1))
    found = added_shares(model, family, tokens, batch)
    for layer, head in ((0, 1), (2, 3)):
        part = slice(head * size, (head + 1) * size)
        assert found["heads"][layer, head] == pytest.approx(share_of(model, layer, part, True, tokens), rel=1e-4)
    for layer, neuron in ((0, 5), (1, 95)):
        part = slice(neuron, neuron + 1)
        assert found["mlp"][layer, neuron] == pytest.approx(share_of(model, layer, part, False, tokens), rel=1e-4)
    assert not any(module._forward_hooks for module in model.modules())


def test_worth_is_of_whole_groups_and_comes_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: object
) -> None:
    model = make_decoder("llama")
    model.save_pretrained(tmp_path / "teacher")
    tiny_tokenizer.save_pretrained(tmp_path / "teacher")
    teacher, cache = load_teacher(tmp_path / "teacher", "cpu"), Cache(tmp_path / "cache")
    layers, text = np.array([3, 1, 2], np.float32), np.arange(60).reshape(2, 30) % 320
    found = load_worth(teacher, layers, text, cache)
    shares = added_shares(teacher.model, family_of(model.config), torch.from_numpy(text))
    groups = shares["heads"].reshape(3, 3, 2).sum(axis=2)
    assert found == Worth.of(layers.tolist(), groups.tolist(), shares["mlp"].tolist())
    monkeypatch.setattr("trials.worth.added_shares", None)
    assert load_worth(teacher, layers, text, cache) == found
    with pytest.raises(TypeError):
        load_worth(teacher, layers, text[:1], cache)
