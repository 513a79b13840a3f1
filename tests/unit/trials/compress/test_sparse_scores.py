"""Which weights stay: exact counts, fours, and SparseGPT's updates against Wanda and against its own definition."""

from __future__ import annotations

import pytest
import torch
from conftest import make_decoder, make_gpt2
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from trials.compress import sparse_scores
from trials.compress.matrices import layer_matrices
from trials.compress.sparse_scores import layer_inputs, sparse_gpt, stays
from trials.families.lookup import family_of
from trials.teacher.second_moments import second_moments

TOKENS = torch.randint(320, (6, 32), generator=torch.Generator().manual_seed(5))
seeds, sizes = st.integers(0, 99), st.tuples(st.integers(1, 9), st.integers(1, 20))


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(seed: int, rows: int, width: int) -> Tensor:
    return random(seed, rows, width) @ random(seed + 1, width, width) + random(seed + 2, width)


@given(seeds, sizes, st.floats(0, 0.95), st.booleans())
def test_exactly_the_lowest_go_ties_included(seed: int, size: tuple[int, int], level: float, by_row: bool) -> None:
    scores = random(seed, *size).mul(2).round().abs()
    gone = round(level * scores.numel())
    mask = stays(scores, gone, "unstructured", by_row)
    assert int((~mask).sum()) == gone
    for row, stay in zip(scores, mask, strict=True) if by_row else [(scores, mask)]:
        if stay.any() and not stay.all():
            assert row[~stay].max() <= row[stay].min()
    if by_row:
        counts = (~mask).sum(dim=1)
        assert counts.max() - counts.min() <= 1
        assert bool((~mask <= ~stays(scores, min(gone + 1, scores.numel()), "unstructured", by_row)).all())


@given(seeds, st.integers(1, 9), st.integers(1, 5), st.floats(0, 0.5), st.booleans())
def test_at_most_two_of_four_go(seed: int, rows: int, fours: int, level: float, by_row: bool) -> None:
    scores = random(seed, rows, 4 * fours).abs()
    for gone in (round(level * scores.numel()), scores.numel() // 2):
        mask = stays(scores, gone, "2:4", by_row)
        assert int((~mask).sum()) == gone
        assert (~mask).reshape(-1, 4).sum(dim=1).max() <= 2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("block", [4, 16, 32])
@pytest.mark.parametrize(("kind", "level"), [("unstructured", 0.5), ("unstructured", 0.8), ("2:4", 0.5)])
def test_sparse_gpt_loses_no_more_of_the_output_than_wanda(
    kind: str, level: float, block: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, weight = correlated(seed, 400, 64), random(seed + 3, 48, 64)
    gone = round(level * weight.numel())
    monkeypatch.setattr(sparse_scores, "BLOCK", block)
    updated, mask = sparse_gpt(weight, second_moments(inputs), gone, kind)
    wanda = weight * stays(weight.abs() * inputs.norm(dim=0), gone, kind, by_row=True)
    assert int((~mask).sum()) == int((updated == 0).sum()) == gone
    if kind == "2:4":
        assert bool((mask.reshape(-1, 4).sum(dim=1) == 2).all())
    lost = [float((inputs @ (weight - one).T).square().sum()) for one in (updated, wanda)]
    assert lost[0] <= lost[1]


@given(seeds)
def test_the_last_column_alone_is_removed_without_an_update(seed: int) -> None:
    weight = random(seed, 6, 8)
    weight[:, -1] = 0.0
    updated, mask = sparse_gpt(weight, second_moments(correlated(seed, 60, 8)), 6, "unstructured")
    torch.testing.assert_close(updated, weight)
    assert not mask[:, -1].any()


@given(seeds, st.integers(0, 7))
def test_a_removed_column_is_made_up_for_by_least_squares(seed: int, place: int) -> None:
    """All later columns of the row take the least-squares update for the damped inputs; the earlier ones none."""
    inputs, weight = correlated(seed, 60, 8), 1 + random(seed + 3, 1, 8).abs()
    weight[0, place] = 1e-3
    moments = second_moments(inputs)
    updated, mask = sparse_gpt(weight, moments, 1, "unstructured")
    out = int((~mask[0]).nonzero())
    later = slice(out + 1, None)
    hessian = moments.double()
    hessian += sparse_scores.DAMPING * hessian.diagonal().mean() * torch.eye(8)
    wanted = torch.linalg.solve(hessian[later, later], hessian[later, out]) * weight[0, out].double()
    torch.testing.assert_close((updated - weight)[0, later].double(), wanted, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(updated[:, :out], weight[:, :out])


def test_inputs_without_any_signal_do_no_harm() -> None:
    updated, mask = sparse_gpt(random(0, 4, 8), torch.zeros(8, 8), 16, "unstructured")
    assert bool(updated.isfinite().all())
    assert int(mask.sum()) == 16


@pytest.mark.parametrize("products", [True, False])
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gpt_neox"])
def test_inputs_are_those_of_the_model_with_what_was_changed_before(model_type: str, products: bool) -> None:
    model = make_gpt2() if model_type == "gpt2" else make_decoder(model_type)
    matrices, found = layer_matrices(model), {}
    for group, moments in layer_inputs(model, TOKENS, matrices, products):
        for one in group:
            found[one.name] = moments
            one.module.weight.mul_(0.5)
    assert found.keys() == {one.name for one in matrices}
    for place in range(3):
        last = {one.name: inputs_of(fresh(model_type, place), one.name) for one in matrices if f".{place}." in one.name}
        for name, rows in last.items():
            wanted = rows.T @ rows if products else rows.square().sum(dim=0)
            torch.testing.assert_close(found[name], wanted / TOKENS.numel(), rtol=0.05, atol=0.05)


def fresh(model_type: str, halved: int) -> PreTrainedModel:
    """The model with the matrices of its first layers halved."""
    model = make_gpt2() if model_type == "gpt2" else make_decoder(model_type)
    for one in layer_matrices(model):
        if any(f".{place}." in one.name for place in range(halved)):
            one.module.weight.mul_(0.5)
    return model


def inputs_of(model: PreTrainedModel, name: str) -> Tensor:
    """All inputs (N, n) of the module ``name`` on `TOKENS`."""
    seen: list[Tensor] = []
    model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, 1)))
    family_of(model.config).backbone(model, TOKENS)
    return seen[0].float()
