"""Arrays of activations in ``.npy`` files. The bits of bfloat16 are stored as int16, because numpy has no bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trials.storage.disk import allocate

Stored = NDArray[np.float32] | NDArray[np.int16]


def create(path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A new ``.npy`` file of ``shape`` for values in ``dtype``, float32 or bfloat16; otherwise as `create_array`."""
    return create_array(path, np.int16 if dtype is torch.bfloat16 else np.float32, shape)


def create_array(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A new ``.npy`` file, mapped to memory. Call `flush` when it is full. Raises OSError when it has no room."""
    array: np.memmap[Any, Any] = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    allocate(path)
    return array


def to_array(values: Tensor, dtype: torch.dtype) -> Stored:
    """``values`` converted to ``dtype``, in the storage format of `create`."""
    values = values.to(dtype).cpu()
    array: Stored = (values.view(torch.int16) if dtype is torch.bfloat16 else values).numpy()
    return array


def to_tensor(array: Stored) -> Tensor:
    """A copy of a stored array as float32 or bfloat16 values."""
    values = torch.from_numpy(np.array(array))
    return values.view(torch.bfloat16) if values.dtype is torch.int16 else values


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """``values`` copied from the host to ``device``. Pinned memory lets a GPU continue to work during the copy."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
