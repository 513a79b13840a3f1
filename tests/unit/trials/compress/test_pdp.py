"""PDP: the soft mask, its gradient against numbers, its thresholds, and its three extensions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from search_spaces.compression import Quantization, Sparsity
from trials.compress.matrices import Matrix
from trials.compress.pdp import SoftMask, soft_mask, squared_cut
from trials.compress.quantize import rounded

seeds, levels = st.integers(0, 99), st.floats(0.05, 0.95)


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def masked(seed: int, sparsity: Sparsity, conv: bool, scheme: str = "none") -> tuple[SoftMask, Tensor]:
    """A soft mask at the full level and the stored weight (8 outputs, 12 inputs) in float64 that it is for."""
    module = (Conv1D(8, 12) if conv else nn.Linear(12, 8)).double()
    module.weight = nn.Parameter(random(seed, 12, 8) if conv else random(seed, 8, 12))
    mask = SoftMask(Matrix("one", "mlp", module), sparsity, Quantization(scheme))
    mask.update(module.weight.detach(), sparsity.level)
    return mask, module.weight


@pytest.mark.parametrize("conv", [True, False])
@pytest.mark.parametrize("beta", [0.0, 3.0])
@pytest.mark.parametrize("kind", ["unstructured", "2:4"])
def test_the_gradient_through_the_mask_is_the_numerical_one(conv: bool, beta: float, kind: str) -> None:
    mask, weight = masked(3, Sparsity(0.5, kind, method="pdp", tau=0.3, beta=beta), conv)
    assert torch.autograd.gradcheck(mask, (weight,))
    (slope,) = torch.autograd.grad(mask(weight).sum(), weight)
    assert bool(((slope - mask.soft(weight)).abs() > 0.1).any())  # it is more than the mask: weights near t are pushed


@given(seeds, levels, st.sampled_from([1e-3, 1e-2, 0.1]), st.sampled_from([0.0, 0.7, 5.0]))
def test_the_mask_is_the_softmax_of_the_paper(seed: int, level: float, tau: float, beta: float) -> None:
    weight, cut = 0.3 * random(seed, 6, 8), squared_cut(0.3 * random(seed, 6, 8).abs(), level, "unstructured")
    sharp = torch.stack([weight.square(), cut.expand_as(weight)]) / tau
    plain = sharp.softmax(dim=0)[0]
    torch.testing.assert_close(soft_mask(weight, cut, tau, 0.0), plain)
    improved = 0.7 * plain + 0.3 * (1 + torch.tanh(beta * (sharp[0] - sharp[1]))) / 2
    torch.testing.assert_close(soft_mask(weight, cut, tau, beta), improved if beta else plain)


@given(seeds, levels)
def test_thresholds_lie_between_the_last_that_goes_and_the_first_that_stays(seed: int, level: float) -> None:
    magnitudes = random(seed, 6, 8).abs()
    threshold, ordered = (
        float(squared_cut(magnitudes, level, "unstructured").sqrt()),
        magnitudes.flatten().sort().values,
    )
    gone = round(level * 48)
    assert float(ordered[gone - 1]) < threshold < float(ordered[gone])
    fours, cuts = magnitudes.reshape(-1, 4).sort().values, squared_cut(magnitudes, 0.5, "2:4").sqrt().reshape(-1, 4)
    assert bool(((fours[:, 1:2] < cuts) & (cuts < fours[:, 2:3])).all())
    assert bool((squared_cut(magnitudes, 0.25, "2:4").sqrt().reshape(-1, 4) < cuts).all())


def test_before_anything_goes_the_model_is_unchanged() -> None:
    for kind in ("unstructured", "2:4"):
        mask, weight = masked(0, Sparsity(0.5, kind, method="pdp"), conv=True)
        mask.update(weight.detach(), 0.0)
        assert torch.equal(mask(weight), weight)
        (slope,) = torch.autograd.grad(mask(weight).sum(), weight)
        assert torch.equal(slope, torch.ones_like(weight))


@given(seeds, levels, st.sampled_from(["unstructured", "2:4"]), st.booleans(), st.sampled_from(["none", "nf4", "int8"]))
def test_the_hard_mask_is_where_the_soft_one_is_above_a_half(
    seed: int, level: float, kind: str, conv: bool, scheme: str
) -> None:
    mask, weight = masked(seed, Sparsity(0.5 if kind == "2:4" else level, kind, method="pdp"), conv, scheme)
    mask.choose(weight.detach(), int(mask.gone))
    soft = mask.soft(weight)
    assert int((~mask.mask).sum()) == int(mask.gone)
    assert bool((soft[mask.mask] >= 0.5).all())
    assert bool((soft[~mask.mask] <= 0.5).all())


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
@pytest.mark.parametrize("conv", [True, False])
def test_the_mask_sees_what_the_codes_stand_for(conv: bool, scheme: str) -> None:
    mask, weight = masked(1, Sparsity(0.5, method="pdp", tau=0.3), conv, scheme)
    seen = mask.seen(weight).detach()
    assert torch.equal(mask.turned(seen), rounded(mask.turned(weight).detach(), Quantization(scheme)))
    soft = mask.soft(weight)
    (slope,) = torch.autograd.grad(mask(weight).sum(), weight)
    wanted = soft + weight * 2 * seen / 0.3 * soft * (1 - soft)
    torch.testing.assert_close(slope, wanted)


def test_the_mask_sees_plain_weights_where_others_are_quantized() -> None:
    sparsity, module = Sparsity(0.5, method="pdp"), nn.Linear(12, 8)
    mask = SoftMask(Matrix("one", "mlp", module), sparsity, Quantization("int8", matrices=("attention",)))
    assert mask.seen(module.weight) is module.weight


@pytest.mark.parametrize("hard", [False, True])
def test_a_mask_aware_optimizer_scales_gradients_and_moments_by_the_mask(hard: bool) -> None:
    plain, weight = masked(2, Sparsity(0.5, method="pdp", tau=0.3), conv=True)
    aware, same = masked(2, Sparsity(0.5, method="pdp", tau=0.3, mask_aware=True), conv=True)
    assert torch.equal(aware(same), plain(weight))
    slopes = [torch.autograd.grad(mask(one).square().sum(), one)[0] for mask, one in ((plain, weight), (aware, same))]
    soft = plain.soft(weight).detach()
    torch.testing.assert_close(slopes[1], soft * slopes[0])

    aware.choose(same.detach(), int(aware.gone))
    aware.hard = hard
    moment = random(5, *same.shape)
    state = {"step": torch.tensor(3.0), "exp_avg": moment.clone(), "exp_avg_sq": moment.square()}
    with torch.no_grad():
        aware.after_step(same, state)
    scale = aware.mask if hard else soft
    torch.testing.assert_close(state["exp_avg"], scale * moment)
    torch.testing.assert_close(state["exp_avg_sq"], scale * moment.square())
    assert state["step"] == 3
