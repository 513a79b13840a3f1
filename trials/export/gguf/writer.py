"""Writes a model as a GGUF file, reads it back, and puts it in place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gguf import GGML_QUANT_VERSION, GGUFReader, GGUFWriter
from torch import Tensor
from transformers import PreTrainedModel

from search_spaces.errors import InputError
from trials.export.gguf.by_layer import BY_LAYER
from trials.export.gguf.families import UNIFORM, Layout
from trials.export.gguf.tensors import ROUNDING, TYPES, Coded, coded, error_of
from trials.export.gguf.tokenizer import write_tokenizer_fields
from trials.families.lookup import OWN
from trials.storage.durable import sync, temporary_sibling
from trials.teacher.gguf_header import MAGIC

LAYOUTS = {**UNIFORM, **BY_LAYER}


@dataclass(frozen=True)
class GGUFFile:
    """A written file: llama.cpp's architecture, tensors and bytes in all, and those whose rows did not fit the type."""

    path: Path
    architecture: str
    tensors: int
    bytes: int
    left_tensors: int
    left_bytes: int


def layout_of(model: PreTrainedModel) -> Layout:
    """How llama.cpp wants ``model``. Raises InputError when it has no way to hold it."""
    kind = model.config.model_type
    if kind not in LAYOUTS:
        raise InputError(
            f"GGUF: a {kind.removeprefix(OWN)} with sizes by layer, or with heads that do not add up to its width: "
            "llama.cpp has no architecture for it; export best_stock"
        )
    layout = LAYOUTS[kind]
    layout.check(model.config)
    return layout


def refusal(model: PreTrainedModel, folder: Path) -> str | None:
    """Why ``model`` with the tokenizer in ``folder`` cannot be a GGUF file; None if it can."""
    try:
        layout = layout_of(model)
        write_tokenizer_fields(GGUFWriter(None, layout.name), folder, model.config.vocab_size)
    except InputError as error:
        return str(error)
    return None


def write_gguf(model: PreTrainedModel, folder: Path, path: Path, kind: str) -> GGUFFile:
    """Write ``model``, loaded from ``folder``, with the tokenizer of that folder to the file ``path`` in type ``kind``.

    ``kind`` is a key of `trials.export.gguf.tensors.TYPES`. The file is read back before it replaces an older one.

    Raises InputError for what llama.cpp cannot hold, and when ``path`` is something other than a GGUF file.
    """
    _check_replaceable(path)
    layout = layout_of(model)
    temporary = temporary_sibling(path)
    writer = GGUFWriter(temporary, layout.name)
    writer.add_name(path.stem)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_file_type(TYPES[kind][1])
    layout.describe(writer, model.config)
    write_tokenizer_fields(writer, folder, model.config.vocab_size)
    every = {name: (coded(name, weight, kind), weight) for name, weight in layout.tensors(model)}
    _check_rounding(every, kind)
    for name, (one, _) in every.items():
        writer.add_tensor(name, one.content, raw_dtype=one.kind)
    try:
        _put(writer, temporary, {name: one for name, (one, _) in every.items()}, path)
    finally:
        temporary.unlink(missing_ok=True)
    left = [one for one, _ in every.values() if one.fallback]
    size = path.stat().st_size
    return GGUFFile(path, layout.name, len(every), size, len(left), sum(one.content.nbytes for one in left))


def _put(writer: GGUFWriter, temporary: Path, every: dict[str, Coded], path: Path) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = {one.name: one for one in GGUFReader(temporary).tensors}
    wrong = [name for name, one in every.items() if found[name].data.tobytes() != one.content.tobytes()]
    if wrong or set(found) != set(every):
        raise InputError(
            f"GGUF: {path.name}: {[*wrong, *(set(found) ^ set(every))][0]} was not written as it is; write it again"
        )
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


def _check_rounding(every: dict[str, tuple[Coded, Tensor]], kind: str) -> None:
    """Raise InputError when a tensor differs from its weight by more than its type rounds."""
    for name, (one, weight) in every.items():
        error, limit = error_of(one, weight), max(ROUNDING[kind], ROUNDING["f16"] if one.fallback else 0)
        if not error <= limit:
            raise InputError(
                f"GGUF: {name} differs by {error:.3g} of its largest number in {one.kind.name}, over {limit:.3g}; "
                "take another --type"
            )


def _check_replaceable(path: Path) -> None:
    if not path.exists():
        return
    if path.is_dir() or not _is_gguf(path):
        raise InputError(f"output {path}: is no GGUF file and would be replaced; choose another --output")


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC
