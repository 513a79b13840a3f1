"""The stages of a compression, each on or off, and what they cost, as pure values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from search_spaces.errors import InputError


@dataclass(frozen=True)
class Stages:
    """The stages of a compression, each on or off.

    - ``distil``: the model is a smaller student of the teacher. Off, it is the teacher itself, trained on text alone.
    - ``lora``: only adapters train (LoRA, arXiv 2106.09685).
    - ``pruned``: the smallest weights of the adapters are 0 in the second half of the training.
    - ``nf4``: the layers' matrices are 4-bit NormalFloat with double quantization (QLoRA, arXiv 2305.14314).
    - ``flash``: attention is one fused kernel, PyTorch's `scaled_dot_product_attention`. Off, it is matrix products
      and a softmax.

    Raises InputError for ``pruned`` without ``lora``.
    """

    distil: bool = False
    lora: bool = False
    pruned: bool = False
    nf4: bool = False
    flash: bool = False

    def __post_init__(self) -> None:
        if self.pruned and not self.lora:
            raise InputError("stages pruned: there are no adapters to prune without lora; add lora")

    @property
    def key(self) -> str:
        """The stages that are on, such as ``distil+lora``; ``none`` for none."""
        return "+".join(one.name for one in fields(self) if getattr(self, one.name)) or "none"

    @classmethod
    def from_key(cls, key: str) -> Stages:
        """The inverse of `key`. Raises InputError for an unknown stage."""
        names, known = [] if key == "none" else key.split("+"), [one.name for one in fields(cls)]
        if unknown := [name for name in names if name not in known]:
            raise InputError(f"stages {key!r}: unknown stage {unknown[0]!r}; known are {', '.join(known)}, or none")
        return cls(**dict.fromkeys(names, True))


@dataclass(frozen=True)
class TrainingCosts:
    """The costs of a training of ``steps`` batches.

    ``seconds`` and ``seconds_sd`` are mean and standard deviation of a batch. ``bytes`` is the memory of the model, its
    gradients, the optimizer and activations at the peak. ``trained`` counts the weights that
    train and are not held at 0.
    """

    steps: int
    seconds: float
    seconds_sd: float
    bytes: int
    trained: int


@dataclass(frozen=True)
class InferenceCosts:
    """The costs of a trained model.

    - ``weights`` counts its weights, those of adapters too; ``weight_bytes`` are the bytes of all its tensors.
    - ``bytes`` is the memory of the model and its activations at the peak.
    - ``tokens_per_second`` is the throughput of a forward pass over ``batch`` sequences of ``prompt`` tokens.
    - ``forward_ms`` is one such pass with one sequence, ``generation_ms`` a greedy generation of ``generated`` tokens
      after it, with a cache; each a mean, with its standard deviation.
    - ``loss`` is the validation loss in nats per token.
    """

    weights: int
    weight_bytes: int
    bytes: int
    batch: int
    prompt: int
    generated: int
    tokens_per_second: float
    forward_ms: float
    forward_ms_sd: float
    generation_ms: float
    generation_ms_sd: float
    loss: float

    @property
    def perplexity(self) -> float:
        """The exponential of the loss."""
        return math.exp(self.loss)


@dataclass(frozen=True)
class StageCosts:
    """The costs of ``stages`` on the architecture called ``architecture``."""

    stages: Stages
    architecture: str
    training: TrainingCosts
    inference: InferenceCosts

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> StageCosts:
        """The inverse of `to_dict`."""
        training, inference = TrainingCosts(**value["training"]), InferenceCosts(**value["inference"])
        return cls(Stages(**value["stages"]), value["architecture"], training, inference)
