"""Quantized weights: what is trained, what is exported, and what transformers loads are the same numbers."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from conftest import make_decoder, make_gpt2
from torch.nn.utils import parametrize

from search_spaces.compression import Compression, Quantization
from search_spaces.errors import InputError
from trials.compress.compress import compressor, round_weights
from trials.compress.matrices import layer_matrices
from trials.compress.quantize import decoded, encoded, from_tensors, rounded, to_tensors
from trials.compress.quantized_modules import allow_repacking, with_codes

SCHEMES = [
    Quantization("int8"),
    Quantization("int8wo"),
    Quantization("nf4"),
    Quantization("nf4", 128),
    Quantization("nf4", double=False),
]
WINDOWS = torch.arange(60).view(4, 15).numpy()


@pytest.mark.parametrize("how", SCHEMES, ids=lambda one: one.key)
def test_tensors_of_a_file_give_the_rounded_weight(how: Quantization) -> None:
    weight = torch.randn(24, 40)
    again = decoded(from_tensors("a", to_tensors("a", encoded(weight, how)), how), how)
    assert torch.equal(again.float().view(24, 40), rounded(weight, how))
    error = (rounded(weight, how) - weight).abs().max() / weight.abs().max()
    assert 0 < error < (0.01 if how.bits == 8 else 0.2)


@pytest.mark.parametrize("how", SCHEMES, ids=lambda one: one.key)
def test_zeros_stay_zeros(how: Quantization) -> None:
    weight = torch.randn(16, 64) * (torch.rand(16, 64) < 0.5)
    assert torch.equal(rounded(weight, how)[weight == 0], weight[weight == 0])


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_measured_student_has_the_weights_of_the_export(model_type: str) -> None:
    student = make_gpt2() if model_type == "gpt2" else make_decoder(model_type)
    other = make_gpt2() if model_type == "gpt2" else make_decoder(model_type)
    compression, tokens = Compression(quantization=Quantization("nf4")), torch.arange(20)[None]
    compressing = compressor(student, compression, WINDOWS)
    assert compressing is not None
    plain = student(tokens).logits
    round_weights(other, compression)
    with compressing.measured(1, 1):
        torch.testing.assert_close(student(tokens).logits, other(tokens).logits, rtol=0, atol=1e-5)
    assert not torch.allclose(plain, other(tokens).logits, atol=1e-3)
    compressing.leave()
    assert torch.equal(student(tokens).logits, plain)
    assert not any(parametrize.is_parametrized(one.module) for one in layer_matrices(student))


def test_gradients_pass_straight_through_the_rounding() -> None:
    student = make_gpt2().requires_grad_(True)
    compressing = compressor(student, Compression(quantization=Quantization("int8")), WINDOWS)
    assert compressing is not None
    compressing.before_step(0, 1)
    (first, *_) = layer_matrices(student)
    weight = first.module.get_parameter("parametrizations.weight.original")
    first.module.weight.square().sum().backward()  # type: ignore[operator, union-attr]
    torch.testing.assert_close(weight.grad, 2 * first.module.weight.detach())  # type: ignore[operator, arg-type]


def test_only_the_named_matrices_are_quantized() -> None:
    student, before = make_gpt2(), make_gpt2()
    round_weights(student, Compression(quantization=Quantization("nf4", matrices=("mlp",))))
    pairs = zip(layer_matrices(student), layer_matrices(before), strict=True)
    changed = {(one.part, bool((one.weight != other.weight).any())) for one, other in pairs}
    assert changed == {("mlp", True), ("attention", False)}


def test_without_the_library_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"bitsandbytes is not installed; install llm-nas\[quant\]"):
        rounded(torch.ones(4, 4), Quantization("nf4"))


@pytest.mark.parametrize(
    "how",
    [
        Quantization("int8"),
        Quantization("int8wo"),
        Quantization("nf4", matrices=("mlp",)),
        Quantization("nf4", 128, False, ("mlp",)),
    ],
    ids=lambda one: one.key,
)
def test_modules_of_the_library_compute_with_the_rounded_weights(how: Quantization) -> None:
    make = partial(make_decoder, "llama") if how.scheme == "int8wo" else partial(make_gpt2, n_embd=64, n_inner=128)
    model, other, tokens = make(), make(), torch.arange(20)[None]
    round_weights(other, Compression(quantization=how))
    plain = model(tokens).logits
    with_codes(model, how)
    allow_repacking(model)
    expected, found = other(tokens).logits, model(tokens).logits
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()  # it multiplies in half precision
    assert (plain - expected).abs().max() > 0
    kinds = {type(one).__name__ for name, one in model.named_modules() if name.endswith(("c_fc", "c_attn"))}
    assert kinds == {"int8": {"Linear8bitLt"}, "int8wo": set(), "nf4": {"Linear4bit", "Conv1D"}}[how.scheme]
    if how.scheme == "int8wo":
        assert {type(one.weight).__name__ for one in layer_matrices(model)} == {"Int8Tensor"}
