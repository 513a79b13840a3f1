"""What bitsandbytes 0.50 does to NF4 weights on a CPU with AVX512-BF16: the first forward pass repacks them in place.

Older versions saved the repacked bytes. This one unpacks them first, and that is right for the codes but not for the
scales. So the rule stands: save before the first forward pass, and train without the repacking.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

bnb = pytest.importorskip("bitsandbytes")
if not bnb.functional.has_avx512bf16():
    pytest.skip("the CPU repacks nothing", allow_module_level=True)

X = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))


def layer(double: bool, repacks: bool = True) -> Any:
    """A quantized layer whose rows have different scales, so that scales in a wrong order show."""
    plain = nn.Linear(256, 64, bias=False)
    with torch.no_grad():
        plain.weight.normal_(generator=torch.Generator().manual_seed(1)).mul_(torch.arange(1, 65)[:, None])
    made = bnb.nn.Linear4bit(256, 64, bias=False, compress_statistics=double, quant_type="nf4")
    made.load_state_dict(plain.state_dict())
    made = made.to("cpu").eval()
    made.support_avx512bf16_for_cpu = repacks
    return made


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: one.clone() for name, one in state.items()}


def loaded(state: dict[str, Tensor]) -> Tensor:
    """The weights (64, 256) that somebody gets who loads ``state``."""
    further = {name.removeprefix("weight."): one for name, one in state.items() if name != "weight"}
    weight = bnb.nn.Params4bit.from_prequantized(state["weight"], further, device="cpu")
    found: Tensor = bnb.functional.dequantize_4bit(weight.data, weight.quant_state).float()
    return found


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@torch.no_grad()
def first_pass(made: Any) -> None:
    made(X)


def test_the_first_pass_changes_the_weights_in_place() -> None:
    made = layer(double=True)
    before = made.weight.data.clone()
    first_pass(made)
    assert made.weight.data.shape != before.shape
    assert made.weight.quant_state.packing_format_for_cpu


@pytest.mark.parametrize("double", [True, False])
def test_a_save_before_the_first_pass_is_right(double: bool) -> None:
    made = layer(double)
    wanted = bnb.functional.dequantize_4bit(made.weight.data, made.weight.quant_state).float()
    assert torch.equal(loaded(copied(made.state_dict())), wanted)


def test_a_later_save_is_silently_corrupt_without_double_quantisation() -> None:
    """The scales are saved in the order of the kernel; nothing says so."""
    made = layer(double=False)
    wanted = loaded(copied(made.state_dict()))
    first_pass(made)
    assert error(loaded(copied(made.state_dict())), wanted) > 0.3


def test_a_later_save_rounds_the_scales_again_with_double_quantisation() -> None:
    made = layer(double=True)
    before = copied(made.state_dict())
    first_pass(made)
    later = copied(made.state_dict())
    assert torch.equal(before["weight"], later["weight"])
    assert not torch.equal(before["weight.absmax"], later["weight.absmax"])
    assert 0 < error(loaded(later), loaded(before)) < 0.05


def test_no_gradient_passes_repacked_weights() -> None:
    made, start = layer(double=True), X.clone().requires_grad_()
    first_pass(made)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns, once in a process
        made(start).sum().backward()
    assert start.grad is None


@pytest.mark.parametrize("double", [True, False])
def test_without_repacking_a_later_save_and_gradients_are_right(double: bool) -> None:
    made, start = layer(double, repacks=False), X.clone().requires_grad_()
    wanted = loaded(copied(made.state_dict()))
    first_pass(made)
    made(start).sum().backward()
    assert torch.equal(loaded(copied(made.state_dict())), wanted)
    assert start.grad is not None
    assert torch.allclose(start.grad[0], wanted.sum(0), rtol=1e-3, atol=1e-2)
