"""The packed file of a sparse student: a bit for each weight that says whether it stays, and the weights that stay.

No server reads sparse weights from disk today, so the file is beside a checkpoint that all of them read. `unpack` gives
the checkpoint's weights back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from search_spaces.compression import Compression, Quantization
from trials.compress.matrices import Matrix, layer_matrices
from trials.compress.quantize import DTYPE, codes_name, decoded, encoded, from_tensors, to_tensors

PACKED = "packed.safetensors"
MASK, VALUES = "mask", "values"


def write_packed(student: PreTrainedModel, compression: Compression, folder: Path) -> None:
    """Write `PACKED` to ``folder``. ``student`` holds the weights before they are rounded, with their zeros."""
    state = {name: one.detach().to(DTYPE) for name, one in student.named_parameters()}
    layout: dict[str, object] = {}
    for matrix in layer_matrices(student, compression.sparsity.matrices):
        coded = matrix.part in compression.quantization.matrices and compression.quantization.scheme != "none"
        del state[f"{matrix.name}.weight"]
        state |= _packed(matrix, compression.quantization if coded else None)
        layout[matrix.name] = {"shape": list(matrix.weight.shape), "turned": matrix.inputs_first, "coded": coded}
    for matrix in layer_matrices(student, compression.quantization.matrices):
        if matrix.name not in layout and compression.quantization.scheme != "none":
            del state[f"{matrix.name}.weight"]
            state |= to_tensors(matrix.name, encoded(matrix.weight.detach(), compression.quantization))
            layout[matrix.name] = {"shape": list(matrix.weight.shape), "turned": matrix.inputs_first, "coded": True}
    about = {"format": "pt", "layout": json.dumps(layout), "compression": json.dumps(compression.to_dict())}
    save_file({name: one.contiguous() for name, one in state.items()}, folder / PACKED, metadata=about)


def unpack(path: Path) -> dict[str, Tensor]:
    """The weights in the packed file ``path`` by name, in bfloat16, as the student computes with them."""
    with safe_open(path, "pt") as file:
        about = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    how = Compression.from_dict(json.loads(about["compression"])).quantization
    for name, one in json.loads(about["layout"]).items():
        parts = {key: state.pop(key) for key in list(state) if key.startswith(f"{name}.") and key != f"{name}.bias"}
        weight = _unpacked(name, parts, tuple(one["shape"]), how if one["coded"] else None)
        state[f"{name}.weight"] = weight.T.contiguous() if one["turned"] else weight
    return state


def _packed(matrix: Matrix, how: Quantization | None) -> dict[str, Tensor]:
    """The tensors of one sparse matrix by name."""
    weight = matrix.weight.detach()
    stays = (weight != 0).flatten()
    found = {f"{matrix.name}.{MASK}": torch.from_numpy(np.packbits(stays.numpy()))}
    if how is None:
        return found | {f"{matrix.name}.{VALUES}": weight.flatten()[stays].to(DTYPE)}
    tensors = to_tensors(matrix.name, encoded(weight, how))
    codes = tensors.pop(codes_name(matrix.name, how))
    every = _nibbles(codes) if how.scheme == "nf4" else codes.flatten()
    kept = every[: len(stays)][stays]
    return found | tensors | {f"{matrix.name}.{VALUES}": _bytes(kept) if how.scheme == "nf4" else kept}


def _unpacked(name: str, parts: Mapping[str, Tensor], shape: tuple[int, ...], how: Quantization | None) -> Tensor:
    if f"{name}.{MASK}" not in parts:
        assert how is not None, "a dense matrix is in the file under its own name"
        return decoded(from_tensors(name, parts, how), how).to(DTYPE).view(shape)
    count = int(np.prod(shape))
    stays = torch.from_numpy(np.unpackbits(parts[f"{name}.{MASK}"].numpy(), count=count).astype(bool))
    values = parts[f"{name}.{VALUES}"]
    if how is None:
        return torch.zeros(count, dtype=DTYPE).masked_scatter(stays, values).view(shape)
    nothing = 7 if how.scheme == "nf4" else 0  # the code of 0
    kept = _nibbles(values)[: int(stays.sum())] if how.scheme == "nf4" else values
    every = torch.full((count,), nothing, dtype=values.dtype).masked_scatter(stays, kept)
    codes = _bytes(every)[:, None] if how.scheme == "nf4" else every.view(shape)
    scales = {key: one for key, one in parts.items() if not key.endswith((f".{MASK}", f".{VALUES}"))}
    return decoded(from_tensors(name, {codes_name(name, how): codes, **scales}, how), how).to(DTYPE).view(shape)


def _nibbles(codes: Tensor) -> Tensor:
    """Four-bit codes (2n,) from bytes (n,), the high half first, as bitsandbytes stores them."""
    flat = codes.flatten()
    return torch.stack([flat >> 4, flat & 15], dim=1).flatten()


def _bytes(codes: Tensor) -> Tensor:
    """The inverse of `_nibbles`. An odd number of codes is filled up with 0."""
    even = torch.cat([codes, codes.new_zeros(len(codes) % 2)]).view(-1, 2)
    return (even[:, 0] << 4) | even[:, 1]
