"""The chunked loss equals the plain one in value and gradients, without tensors of tokens x vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trials.losses.kl import ALIGNED, CHUNK_BYTES, chunk_tokens, chunked_cross_entropy, chunked_drawn_kl, chunked_kl


def inputs(tokens: int, vocabulary: int, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, ...]:
    """Student hidden (N, 12) and weight (V, 12), teacher hidden (N, 20) and weight (V, 20)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((tokens, 12), (vocabulary, 12), (tokens, 20), (vocabulary, 20))
    hidden, weight, *teacher = (scale * torch.randn(shape, generator=generator) for shape in shapes)
    return hidden.requires_grad_(), weight.requires_grad_(), *teacher


def plain(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor) -> Tensor:
    own, target = hidden @ weight.T, teacher_hidden @ teacher_weight.T
    return F.kl_div(own.log_softmax(-1), target.log_softmax(-1), reduction="batchmean", log_target=True)


def with_gradients(loss: Tensor, hidden: Tensor, weight: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(3.0 * loss, (hidden, weight))]


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 40),
    vocabulary=st.integers(2, 50),
    chunk=st.integers(1, 50),
    scale=st.sampled_from([0.1, 1.0, 3.0]),
    seed=st.integers(0, 99),
)
def test_equals_the_plain_loss(tokens: int, vocabulary: int, chunk: int, scale: float, seed: int) -> None:
    given_to_it = inputs(tokens, vocabulary, seed, scale)
    expected = with_gradients(plain(*given_to_it), *given_to_it[:2])
    for found, wanted in zip(with_gradients(chunked_kl(*given_to_it, chunk), *given_to_it[:2]), expected, strict=True):
        largest = float(wanted.abs().max())
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * largest + 1e-6)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_rows_that_only_align_count_for_nothing(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """With a vocabulary of 41, products have 64 rows, as on CUDA. Value and gradients are those of 41 rows."""
    given_to_it = inputs(30, 41, scale=scale)
    ids, likelihoods = torch.arange(30)[:, None] % 41, torch.zeros(30)

    def both() -> list[Tensor]:
        losses = chunked_kl(*given_to_it, 7), chunked_drawn_kl(*given_to_it[:2], ids, likelihoods, 7)
        return [one for loss in losses for one in with_gradients(loss, *given_to_it[:2])]

    expected = both()
    monkeypatch.setitem(ALIGNED, "cpu", 64)
    for found, wanted in zip(both(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6 * float(wanted.abs().max()))


def test_is_nought_for_the_teacher_itself() -> None:
    hidden, weight, *_ = inputs(30, 40)
    loss, *gradients = with_gradients(chunked_kl(hidden, weight, hidden.detach(), weight.detach(), 7), hidden, weight)
    assert abs(float(loss)) < 1e-7
    assert all(float(gradient.abs().max()) < 1e-7 for gradient in gradients)


def test_is_the_forward_direction() -> None:
    """KL(teacher || student) is large when the student excludes a token that the teacher allows, not in reverse."""
    weight = torch.eye(2)
    sure, unsure = torch.tensor([[60.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert float(chunked_kl(sure, weight, unsure, weight, 1)) == pytest.approx(30 - 0.6931, abs=1e-3)
    assert float(chunked_kl(unsure, weight, sure, weight, 1)) == pytest.approx(0.6931, abs=1e-3)


def test_tied_weights_add_up() -> None:
    """A tied embedding is used twice, and its gradient is the sum of both uses."""
    _, weight, teacher_hidden, teacher_weight = inputs(9, 30)
    tokens = torch.arange(9)
    (found,) = torch.autograd.grad(chunked_kl(weight[tokens], weight, teacher_hidden, teacher_weight, 4), weight)
    (wanted,) = torch.autograd.grad(plain(weight[tokens], weight, teacher_hidden, teacher_weight), weight)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_under_autocast_products_are_rounded_and_sums_are_not() -> None:
    given_to_it = inputs(64, 50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = with_gradients(chunked_kl(*given_to_it, 16), *given_to_it[:2])
    expected = with_gradients(plain(*given_to_it), *given_to_it[:2])
    assert {tensor.dtype for tensor in found} == {torch.float32}
    for one, other in zip(found, expected, strict=True):
        assert not torch.equal(one, other)
        assert float((one - other).norm() / other.norm()) < 0.02


def drawn(teacher_hidden: Tensor, teacher_weight: Tensor, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens (N, ``count``) drawn from a teacher, and the means (N,) of their log-probabilities."""
    logs = (teacher_hidden @ teacher_weight.T).log_softmax(-1)
    ids = logs.exp().multinomial(count, replacement=True, generator=torch.Generator().manual_seed(seed))
    return ids, logs.gather(1, ids).mean(dim=1)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 40),
    vocabulary=st.integers(2, 50),
    count=st.integers(1, 20),
    chunk=st.integers(1, 50),
    seed=st.integers(0, 99),
)
def test_drawn_equals_the_plain_loss_on_the_tokens_drawn(
    tokens: int, vocabulary: int, count: int, chunk: int, seed: int
) -> None:
    hidden, weight, *teacher = inputs(tokens, vocabulary, seed)
    ids, likelihoods = drawn(*teacher, count, seed)
    own = (hidden @ weight.T).log_softmax(-1).gather(1, ids).mean(dim=1)
    expected = with_gradients((likelihoods - own).mean(), hidden, weight)
    found = with_gradients(chunked_drawn_kl(hidden, weight, ids, likelihoods, chunk), hidden, weight)
    for one, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()) + 1e-6)


def test_drawn_is_the_whole_distribution_in_the_mean() -> None:
    """The error of value and gradients falls with the square root of the draws, so the estimate is unbiased."""
    hidden, weight, *teacher = inputs(30, 40)
    expected = with_gradients(chunked_kl(hidden, weight, *teacher, 7), hidden, weight)
    for count in (64, 1_024, 16_384):
        found = with_gradients(chunked_drawn_kl(hidden, weight, *drawn(*teacher, count), 7), hidden, weight)
        for one, wanted in zip(found, expected, strict=True):
            assert float((one - wanted).norm() / wanted.norm()) < 6 / count**0.5


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_cross_entropy_is_the_plain_one(chunk: int) -> None:
    hidden, weight, *_ = inputs(30, 40)
    ids = torch.arange(30) % 11
    expected = with_gradients(F.cross_entropy(hidden @ weight.T, ids), hidden, weight)
    found = with_gradients(chunked_cross_entropy(hidden, weight, ids, chunk), hidden, weight)
    for one, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(returned) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return returned


def test_no_tensor_of_tokens_by_vocabulary_is_made() -> None:
    tokens, vocabulary, chunk = 256, 512, 16
    given_to_it = inputs(tokens, vocabulary)
    with Largest() as largest:
        with_gradients(chunked_kl(*given_to_it, chunk), *given_to_it[:2])
    assert largest.elements == max(chunk * vocabulary, vocabulary * 20)
    with Largest() as largest:
        with_gradients(plain(*given_to_it), *given_to_it[:2])
    assert largest.elements == tokens * vocabulary  # so the measurement would detect it


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_chunks_fit_their_memory(device: str) -> None:
    for vocabulary in (300, 4096, 50257, 10**9):
        tokens = chunk_tokens(vocabulary, device)
        more = tokens + 1 if device == "cpu" else 2 * tokens
        assert tokens == 1 or tokens * vocabulary * 4 <= CHUNK_BYTES[device] < more * vocabulary * 4
        assert device == "cpu" or tokens & (tokens - 1) == 0
