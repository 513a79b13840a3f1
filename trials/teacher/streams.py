"""The teacher's residual stream on calibration text, stored on disk. It is the target of `trials.prune.refit`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search_spaces.shape import ModelShape
from trials.families.base import centres
from trials.families.lookup import family_of
from trials.losses.precision import autocast, training_precision
from trials.losses.window_losses import BATCH_TOKENS
from trials.storage.activation_files import Stored, create, to_array, to_tensor
from trials.storage.cache import Cache, digest
from trials.storage.progress import counted
from trials.teacher.second_moments import second_moments
from trials.teacher.teacher import Teacher

VERSION = 3  # part of the cache key: raise it whenever the stored values or their format change
TOKENS = 65_536  # at most; a fit needs many more tokens than a projection has inputs, which are a few thousand
LIMIT_BYTES = 8 * 2**30  # on disk
ACTIVATION_BYTES = {"cpu": 2**29, "cuda": 2**31}  # of all neurons of one MLP; a refit uses a few times as much memory
NAMES, COMPONENTS = ("inputs", "attention"), "components.npz"

Keep = Callable[[str, int, Tensor], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Streams:
    """The residual stream of a teacher with L layers on ``windows`` (n, T) of token ids, N = n * T rows.

    - ``inputs`` (L + 1, N, H) holds the input of each layer, then of the final norm.
    - ``attention`` (L, N, H) holds the output of each attention.
    - ``directions`` (H, H) holds the principal components of the inputs of all layers and the final norm together, as
      columns, strongest first. Each row was scaled to norm 1 as a norm does, and first centred for a LayerNorm.
    - ``shares`` (H,) is the share of the total square along each direction.

    The first two are memory-mapped, in float32 or as the bits of bfloat16.
    """

    windows: Tensor
    inputs: Stored
    attention: Stored
    directions: Tensor
    shares: Tensor

    def first(self, count: int) -> Streams:
        """The streams on the first ``count`` windows."""
        rows = self.windows[:count].numel()
        inputs, attention = self.inputs[:, :rows], self.attention[:, :rows]
        return replace(self, windows=self.windows[:count], inputs=inputs, attention=attention)

    def before(self, layer: int, device: torch.device | str = "cpu") -> Tensor:
        """The input (N, H) of ``layer``, or for L of the final norm, in float32 on ``device``."""
        return to_tensor(self.inputs[layer]).to(device).float()

    def after_attention(self, layer: int, device: torch.device | str = "cpu") -> Tensor:
        """The stream (N, H) after the attention of ``layer``, in float32 on ``device``."""
        return self.before(layer, device) + to_tensor(self.attention[layer]).to(device).float()


def load_streams(teacher: Teacher, windows: NDArray[np.integer], cache: Cache) -> Streams:
    """The streams of ``teacher`` on the first `most_windows` of ``windows`` (n, T), from the cache or computed now."""
    dtype, _ = training_precision(teacher.model.device.type)
    count = most_windows(teacher.shape, windows.shape[1], teacher.model.device.type)
    tokens = np.ascontiguousarray(windows[:count], np.int64)
    key = digest(teacher.fingerprint, str(dtype), *tokens.shape, tokens.tobytes(), VERSION)
    folder = cache.build("streams", key, lambda empty: _write(empty, teacher, torch.from_numpy(tokens), dtype))
    inputs, attention = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in NAMES)
    with np.load(folder / COMPONENTS) as components:
        directions, shares = (torch.from_numpy(components[name]) for name in ("directions", "shares"))
    return Streams(torch.from_numpy(tokens), inputs, attention, directions, shares)


def most_windows(shape: ModelShape, length: int, device: str) -> int:
    """The largest number of windows of ``length`` tokens that a refit uses.

    It is `TOKENS` tokens, or fewer where `LIMIT_BYTES` or `ACTIVATION_BYTES` require it, but at least one window.
    """
    most = min(TOKENS, LIMIT_BYTES // bytes_per_token(shape, device), ACTIVATION_BYTES[device] // (4 * shape.mlp))
    return max(1, most // length)


def bytes_per_token(shape: ModelShape, device: str) -> int:
    """What the streams of one token take on disk."""
    dtype, _ = training_precision(device)
    return (2 * shape.layers + 1) * shape.hidden * dtype.itemsize


@torch.no_grad()
def _write(folder: Path, teacher: Teacher, windows: Tensor, dtype: torch.dtype) -> None:
    log.info("computing the teacher's streams for %s tokens", f"{windows.numel():,}")
    model, family, shape = teacher.model, family_of(teacher.model.config), teacher.shape
    counts = dict(zip(NAMES, (shape.layers + 1, shape.layers), strict=True))
    sizes = {name: (count, windows.numel(), shape.hidden) for name, count in counts.items()}
    arrays = {name: create(folder / f"{name}.npy", dtype, size) for name, size in sizes.items()}
    rows = slice(0, 0)

    def keep(name: str, layer: int, values: Tensor) -> None:
        arrays[name][layer, rows] = to_array(values.flatten(0, 1), dtype)

    handles = [family.norms(model)[-1].register_forward_pre_hook(_input_hook(keep, shape.layers))]
    for number, layer in enumerate(family.layers(model)):
        handles.append(layer.register_forward_pre_hook(_input_hook(keep, number)))
        handles.append(family.attention_output(layer).register_forward_hook(_attention_hook(keep, number)))
    device, length = model.device.type, windows.shape[1]
    batch = max(1, BATCH_TOKENS[device] // length)
    try:
        starts = range(0, len(windows), batch)
        for start in counted(starts, windows.numel(), "the teacher's streams, tokens", batch * length):
            part = windows[start : start + batch]
            rows = slice(start * length, start * length + part.numel())
            with autocast(device):
                family.backbone(model, part.to(model.device))
    finally:
        for handle in handles:
            handle.remove()
    for array in arrays.values():
        array.flush()
    centred = centres(family.norms(model)[-1])
    directions, shares = _components(arrays["inputs"], centred, device)
    np.savez(folder / COMPONENTS, directions=directions.numpy(), shares=shares.numpy())


def _components(inputs: Stored, centred: bool, device: str) -> tuple[Tensor, Tensor]:
    total = torch.zeros(inputs.shape[-1], inputs.shape[-1], device=device)
    for layer in inputs:
        stream = to_tensor(layer).to(device).float()
        if centred:
            stream -= stream.mean(dim=1, keepdim=True)
        total += second_moments(nn.functional.normalize(stream, dim=1))
    values, vectors = torch.linalg.eigh(total.double())
    return vectors.flip(1).float().cpu(), (values / values.sum()).flip(0).float().cpu()


def _input_hook(keep: Keep, layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda _, inputs: keep("inputs", layer, inputs[0])


def _attention_hook(keep: Keep, layer: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    return lambda _, inputs, output: keep("attention", layer, output)
