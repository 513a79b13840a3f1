"""The teacher's residual stream on calibration text, kept on disk: what `trials.prune.refit` brings a student back to."""

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
from trials.teacher.second_moments import second_moments
from trials.teacher.teacher import Teacher

VERSION = 3  # of what is kept and how: raise it, and streams of before are not taken up
TOKENS = 65_536  # at most; a projection is a few thousand inputs wide
LIMIT_BYTES = 8 * 2**30  # on disk
ACTIVATION_BYTES = {"cpu": 2**29, "cuda": 2**31}  # of all neurons of one MLP: a refit holds a few times as much
NAMES, COMPONENTS = ("inputs", "attention"), "components.npz"

Keep = Callable[[str, int, Tensor], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Streams:
    """What a teacher of L layers adds up on ``windows`` (n, T) of token ids; N = n * T rows, memory-mapped.

    ``inputs`` (L + 1, N, H) are what each layer reads, then what the final norm reads; ``attention`` (L, N, H) what
    each attention adds. In float32, or bfloat16 as its bits. ``directions`` (H, H) are the principal components of
    the ``inputs`` of all layers alike, each row scaled to norm 1 as a norm does - and centred, for a LayerNorm -, as
    columns, the strongest first; ``shares`` (H,) of their square lie in each.
    """

    windows: Tensor
    inputs: Stored
    attention: Stored
    directions: Tensor
    shares: Tensor

    def first(self, count: int) -> Streams:
        """Those on the first ``count`` windows alone."""
        rows = self.windows[:count].numel()
        inputs, attention = self.inputs[:, :rows], self.attention[:, :rows]
        return replace(self, windows=self.windows[:count], inputs=inputs, attention=attention)

    def before(self, layer: int, device: torch.device | str = "cpu") -> Tensor:
        """The stream (N, H) in float32 on ``device`` that ``layer`` reads, or for L the final norm."""
        return to_tensor(self.inputs[layer]).to(device).float()

    def after_attention(self, layer: int, device: torch.device | str = "cpu") -> Tensor:
        """The stream (N, H) in float32 on ``device`` when the attention of ``layer`` has added its part."""
        return self.before(layer, device) + to_tensor(self.attention[layer]).to(device).float()


def load_streams(teacher: Teacher, windows: NDArray[np.integer], cache: Cache) -> Streams:
    """The streams of ``teacher`` on the first of ``windows`` (n, T), from the cache or computed.

    See `most_windows` for how many.
    """
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
    """How many windows of ``length`` tokens are read for a refit at most.

    `TOKENS` tokens, or as many as `LIMIT_BYTES` and `ACTIVATION_BYTES` allow, but at least one window.
    """
    dtype, _ = training_precision(device)
    stored = (2 * shape.layers + 1) * shape.hidden * dtype.itemsize
    return max(1, min(TOKENS, LIMIT_BYTES // stored, ACTIVATION_BYTES[device] // (4 * shape.mlp)) // length)


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

    handles = [family.norms(model)[-1].register_forward_pre_hook(_reading(keep, shape.layers))]
    for number, layer in enumerate(family.layers(model)):
        handles.append(layer.register_forward_pre_hook(_reading(keep, number)))
        handles.append(family.attention_output(layer).register_forward_hook(_writing(keep, number)))
    device, length = model.device.type, windows.shape[1]
    batch = max(1, BATCH_TOKENS[device] // length)
    try:
        for start in range(0, len(windows), batch):
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


def _reading(keep: Keep, layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda _, inputs: keep("inputs", layer, inputs[0])


def _writing(keep: Keep, layer: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    return lambda _, inputs, output: keep("attention", layer, output)
