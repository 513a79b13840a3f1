"""What heads and neurons add to the stream, layer by layer: by it they are spread over the layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from search_spaces.allocation import Worth
from trials.cache import Cache, digest
from trials.families import Family, family_of
from trials.families.base import matrix_of
from trials.importance import BATCH
from trials.shapes import shape_of
from trials.teacher import Teacher

VERSION = 1  # part of the cache key
WORTH_FILE = "worth.npz"


@torch.inference_mode()
def added_shares(
    model: PreTrainedModel, family: Family, windows: Tensor, batch: int = BATCH
) -> dict[str, NDArray[np.float32]]:
    """Of every head and neuron, E |W_i a_i|^2 / E |x|^2 over all tokens of ``windows`` (n, T): (L, A) and (L, M).

    a_i are the outputs of head i, or the activation of neuron i, W_i the columns of the output projection that read
    them, x the stream behind the layer. By what a unit adds to the stream Wanda (arXiv 2306.11695) scores single
    weights; the share of the stream makes layers comparable, whose streams differ in size. docs/results.md, "Sizes by
    layer", has what students gain. ``model`` must be in eval mode.
    """
    head_dim, layers = shape_of(model.config).head_dim, family.layers(model)
    sums = {name: [torch.zeros((), device=model.device)] * len(layers) for name in ("heads", "mlp", "stream")}

    def add(name: str, layer: int, values: Tensor) -> None:
        sums[name][layer] = sums[name][layer] + values

    def heads(layer: int, gram: Tensor) -> Callable[..., None]:
        def read(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            each = inputs[0].float().reshape(-1, len(gram), head_dim)
            add("heads", layer, (torch.einsum("nai,aij->naj", each, gram) * each).sum(dim=(0, 2)))

        return read

    def neurons(layer: int, norms: Tensor) -> Callable[..., None]:
        return lambda _, inputs, output: add("mlp", layer, inputs[0].float().square().sum(dim=(0, 1)) * norms)

    def stream(layer: int) -> Callable[..., None]:
        return lambda _, inputs, output: add("stream", layer, output.float().square().sum())

    handles = []
    for number, layer in enumerate(layers):
        attention, mlp = family.attention_output(layer), family.mlp_output(layer)
        blocks = matrix_of(attention).float()
        blocks = blocks.reshape(len(blocks), -1, head_dim)
        gram = torch.einsum("mai,maj->aij", blocks, blocks)
        handles += [
            attention.register_forward_hook(heads(number, gram)),
            mlp.register_forward_hook(neurons(number, matrix_of(mlp).float().square().sum(dim=0))),
            layer.register_forward_hook(stream(number)),
        ]
    try:
        for start in range(0, len(windows), batch):
            family.backbone(model, windows[start : start + batch].to(model.device))
    finally:
        for handle in handles:
            handle.remove()
    found = {name: torch.stack(rows).cpu() for name, rows in sums.items()}
    return {name: (found[name] / found["stream"][:, None]).numpy() for name in ("heads", "mlp")}


def load_worth(teacher: Teacher, layers: NDArray[np.float32], windows: NDArray[np.integer], cache: Cache) -> Worth:
    """The worth of the units of ``teacher`` on calibration ``windows`` (n, T), from the cache or computed.

    ``layers`` (L,) are the scores by which whole layers stay.
    """
    tokens = np.ascontiguousarray(windows, dtype=np.int64)
    key = digest(teacher.fingerprint, *tokens.shape, tokens.tobytes(), VERSION)

    def write(folder: Path) -> None:
        family = family_of(teacher.model.config)
        shares = added_shares(teacher.model, family, torch.from_numpy(tokens))
        np.savez(folder / WORTH_FILE, heads=shares["heads"], mlp=shares["mlp"])

    with np.load(cache.build("worth", key, write) / WORTH_FILE) as shares:
        heads, mlp = shares["heads"], shares["mlp"]
    groups = heads.reshape(len(heads), -1, teacher.shape.group).sum(axis=2)
    return Worth.of(layers.tolist(), groups.tolist(), mlp.tolist())
