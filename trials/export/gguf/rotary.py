"""Rotary positions as llama.cpp wants them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from gguf import GGUFWriter, RopeScalingType
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from search_spaces.errors import InputError

FACTORS = "rope_freqs.weight"
READ_FACTORS = ("llama", "deci")  # the architectures of llama.cpp that read `FACTORS`


def check_rotary(config: Any, architecture: str, turned: int) -> None:
    """Raise InputError when llama.cpp's ``architecture`` has other positions than ``config``, which turn ``turned``
    channels of a head.
    """
    kind = config.rope_parameters["rope_type"]
    known = ("default", "linear", "llama3") if architecture in READ_FACTORS else ("default", "linear")
    if kind not in known:
        raise InputError(
            f"GGUF: rotary positions of type {kind!r} are not written for llama.cpp's {architecture}; "
            "export another format"
        )
    if turned % 2:
        raise InputError(
            f"GGUF: positions turn {turned} channels of a head, and llama.cpp pairs; export another format"
        )


def describe_rotary(writer: GGUFWriter, config: Any, turned: int) -> None:
    """Write the settings of ``config``, of whose heads ``turned`` channels are turned."""
    parameters = config.rope_parameters
    writer.add_rope_dimension_count(turned)
    writer.add_rope_freq_base(parameters["rope_theta"])
    if parameters["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(parameters["factor"])


def rotary_factors(config: Any, turned: int) -> Iterator[tuple[str, Tensor]]:
    """Yields what llama.cpp divides the frequencies of a ``llama3`` by, (turned / 2,)."""
    parameters = config.rope_parameters
    if parameters["rope_type"] == "llama3":
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        plain = parameters["rope_theta"] ** (-torch.arange(0, turned, 2, dtype=torch.float64) / turned)
        yield FACTORS, (plain / scaled.double()).float()


def interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """``weight`` (heads * head_dim, ...) with the rows of each head in the order of llama.cpp's ``llama`` and ``deci``.

    transformers turns row i with row i + head_dim / 2. These turn row 2 i with row 2 i + 1.
    """
    return weight.reshape(-1, 2, head_dim // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
