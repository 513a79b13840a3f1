"""Teachers in GGUF files, llama.cpp's format. Each file is unpacked once to an ordinary checkpoint folder."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gguf import GGUFReader, GGUFWriter
from huggingface_hub.constants import HF_HOME
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from search_spaces.errors import InputError, one_line
from trials.storage.cache import Cache, digest
from trials.storage.node_digests import sha256_on_node
from trials.teacher.config_file import first_problem
from trials.teacher.gguf_header import MAGIC, header_elements
from trials.teacher.teacher import parameters_of

FORMAT = 4  # part of the cache key: raise it whenever the same file gives a different folder
TOKENIZER_FIELDS = "tokenizer.gguf"  # the tokenizer's fields as they were, for students that become GGUF files again
PREFIX = "tokenizer."


def unpacked(file: Path) -> Path:
    """A checkpoint folder with the weights (dequantised, float32), config and tokenizer of a GGUF ``file``.

    The tokenizer's fields are also kept as they are, in `TOKENIZER_FIELDS`.

    The folder is made once, in the Hugging Face cache. Raises InputError when the file is not GGUF, is truncated, or
    holds a model that transformers cannot read.
    """
    status = file.stat()
    return _unpacked(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _unpacked(file: Path, size: int, modified: int) -> Path:
    with file.open("rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise InputError(
                f"model {file}: not a GGUF file (it does not begin with {MAGIC.decode()}); give one, or a folder"
            )
    key = digest("gguf", FORMAT, sha256_on_node(file))
    return Cache(Path(HF_HOME) / "llm-nas").build("gguf", key, lambda folder: _unpack(file, folder))


def _unpack(file: Path, folder: Path) -> None:
    transformers_logging.disable_progress_bar()
    try:
        elements = header_elements(file)
        with TemporaryDirectory() as alone:  # what lies beside the file, such as an adapter, would be read with it
            (Path(alone) / file.name).symlink_to(file)
            model = _load(Path(alone) / file.name, elements)
            tokenizer = AutoTokenizer.from_pretrained(  # nosec B615
                alone, gguf_file=file.name, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # tokenizers raises no other class, and the readers raise a dozen
        reason = one_line(error)[:200]
        raise InputError(
            f"model {file}: its GGUF content cannot be used ({reason}); convert or copy it again"
        ) from error
    model.hf_quantizer.remove_quantization_config(model)  # the weights are dequantised
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    writer = GGUFWriter(folder / TOKENIZER_FIELDS, "tokenizer")
    copy_tokenizer(file, writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def _load(file: Path, elements: int) -> PreTrainedModel:
    """The model in ``file``, whose tensors have so many ``elements``. Raises ValueError when the two do not agree.

    transformers would make up every weight that the file lacks, as large as the config says.
    """
    here: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    config = AutoConfig.from_pretrained(file.parent, trust_remote_code=False, **here)  # nosec B615
    if problem := first_problem(json.loads(config.to_json_string())):
        raise ValueError(problem)
    if (described := parameters_of(config)) > 2 * elements:  # tied weights count twice
        raise ValueError(f"its tensors have {elements:,} weights, and its header describes {described:,}")
    model, loading = AutoModelForCausalLM.from_pretrained(  # nosec B615  # a file of this machine
        file.parent, config=config, trust_remote_code=False, output_loading_info=True, **here
    )
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"it lacks {len(missing)} tensors, the first is that of {missing[0]}")
    return model


def copy_tokenizer(source: Path, writer: GGUFWriter) -> int:
    """Copy the fields of the tokenizer in the GGUF file ``source`` to ``writer``, and return its number of tokens.

    Raises InputError when it cannot be read.
    """
    try:
        header_elements(source)
        return _copy_tokenizer(source, writer)
    except (ValueError, LookupError) as error:
        raise InputError(
            f"tokenizer {source}: its GGUF content cannot be used ({one_line(error)[:200]}); copy it again"
        ) from error


def _copy_tokenizer(source: Path, writer: GGUFWriter) -> int:
    fields = {name: one for name, one in GGUFReader(source).fields.items() if name.startswith(PREFIX)}
    for name, field in fields.items():
        kind, *inner = field.types
        writer.add_key_value(name, field.contents(), kind, inner[-1] if inner else None)
    return len(fields[f"{PREFIX}ggml.tokens"].data)
