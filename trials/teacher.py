"""The teacher: found in the package, in a folder or on the hub, and loaded ready to be read from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from search_spaces.errors import InputError
from search_spaces.shape import ModelShape
from trials.cache import digest
from trials.durable import MANIFEST, damage, file_sha256
from trials.families import family_of
from trials.gguf import unpacked

MINI = Path(__file__).parent / "mini"
GGUF = ".gguf"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
HUB_FILES = [
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    INDEX,
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.py",  # a model's own code, which nothing runs unless it is asked for
]
PROBE_SECONDS = 5.0  # the hub answers in well under one; without a route its client would retry for 46
WAYS_ON = "take mini, which needs no network, or a checkpoint of your own, such as ./folder"


@dataclass(frozen=True)
class Teacher:
    """A loaded teacher. ``model`` is in eval mode, without gradients; ``fingerprint`` is of weights and config."""

    path: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    shape: ModelShape
    fingerprint: str


def resolve_model(model: str, check: Callable[[Path], object] | None = None) -> Path:
    """The folder of ``model``: ``mini`` (in this package), a local folder or GGUF file, or a model id of the hub.

    A hub model that is already in the local hub cache needs no network; otherwise the hub is asked, for at most
    `PROBE_SECONDS`, and the config is checked before the weights are fetched. ``check`` looks at the config in a
    folder and raises InputError; by default it asks for an architecture that can be pruned.

    Raises InputError when the folder lacks a file, the id is malformed or unknown, the hub cannot be reached, or
    the check fails.
    """
    check = check or read_shape
    if model == "mini":
        return _checked(MINI, model, check)
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _checked(folder.resolve(), model, check)
    if folder.suffix == GGUF and folder.is_file():
        return _checked(unpacked(folder.resolve()), model, check)
    if folder.exists() or model.startswith((".", "~", os.sep)) or folder.suffix == GGUF:
        ways = "give a folder with a checkpoint, a .gguf file, a hub id, or mini"
        raise InputError(f"model {model!r}: not a folder; {ways}")
    return _from_hub(model, check)


def read_shape(path: Path) -> ModelShape:
    """The geometry of the model in folder ``path``, from its config alone. Raises InputError when unsupported."""
    config = read_config(path)
    return family_of(config).shape(config)


def load_teacher(path: Path, device: str) -> Teacher:
    """Load the checkpoint in folder ``path`` onto ``device`` ("cpu" in float32, "cuda" in bfloat16).

    Raises InputError when weights are damaged, missing or tied though they differ, or when the tokenizer has more
    entries than the model.
    """
    _check_manifest(path)
    shape = read_shape(path)
    tokenizer = load_tokenizer(path)
    check_vocabulary(path, tokenizer, shape.vocab)
    model = load_weights(path, torch.bfloat16 if device == "cuda" else torch.float32)
    _check_tied(path, model)
    model.to(device).eval().requires_grad_(False)
    return Teacher(path, model, tokenizer, shape, fingerprint(path))


def check_vocabulary(path: Path, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    """Raise InputError when the tokenizer has more entries than the ``vocabulary`` rows of the embedding."""
    if len(tokenizer) > vocabulary:
        raise InputError(
            f"model {path}: its tokenizer has {len(tokenizer):,} entries and its embedding {vocabulary:,}; "
            "take the tokenizer that belongs to the model"
        )


def fingerprint(path: Path) -> str:
    """A digest of the weights and the config in folder ``path``; files are read once a process."""
    files = [path / "config.json", *weight_files(path)]
    return digest(*(part for file in files for part in (file.name, _sha256_once(file))))


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of folder ``path``, in name order; empty when there are none or some are missing."""
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if not (path / INDEX).is_file():
        return []
    shards = sorted(set(json.loads((path / INDEX).read_text("utf-8"))["weight_map"].values()))
    files = [path / shard for shard in shards]
    return files if all(file.is_file() for file in files) else []


def _checked(folder: Path, model: str, check: Callable[[Path], object]) -> Path:
    if lacking := _lacking(folder):
        raise InputError(
            f"model {model!r}: {folder} has no {lacking}; save it with save_pretrained, weights and tokenizer"
        )
    check(folder)
    return folder


def _lacking(folder: Path) -> str | None:
    if not (folder / "config.json").is_file():
        return "config.json"
    if not weight_files(folder):
        return f"{WEIGHTS}, nor all shards of {INDEX} (pickled weights are not read)"
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return f"tokenizer ({', '.join(TOKENIZER_FILES)})"
    return None


def _from_hub(model: str, check: Callable[[Path], object]) -> Path:
    try:
        local = Path(snapshot_download(model, allow_patterns=HUB_FILES, local_files_only=True))
    except HFValidationError as error:
        raise InputError(f"model {model!r}: neither a folder nor a hub id such as openai-community/gpt2") from error
    except LocalEntryNotFoundError:  # not in the local hub cache
        return _download(model, check)
    return _checked(local, model, check) if _lacking(local) is None else _download(model, check)


def _download(model: str, check: Callable[[Path], object]) -> Path:
    try:
        HfApi().model_info(model, timeout=PROBE_SECONDS)
        check(Path(snapshot_download(model, allow_patterns=["config.json", "*.py"])))
        return _checked(Path(snapshot_download(model, allow_patterns=HUB_FILES)), model, check)
    except GatedRepoError as error:
        raise InputError(f"model {model!r}: the hub asks for a login (`hf auth login`); or {WAYS_ON}") from error
    except RepositoryNotFoundError as error:
        raise InputError(f"model {model!r}: no such folder here, and no such model on the hub; {WAYS_ON}") from error
    except (HTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        reason = type(error).__name__
        raise InputError(
            f"model {model!r}: not on this machine, and the hub is out of reach ({reason}); {WAYS_ON}"
        ) from error


def read_config(path: Path, own_code: bool = False) -> PretrainedConfig:
    """The configuration of the model in folder ``path``; ``own_code`` lets code that comes with it run.

    Raises InputError when transformers does not know it.
    """
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=own_code)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"model {path}: its config.json cannot be used: {_first_line(error)}") from error


def load_tokenizer(path: Path, own_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in folder ``path``. Raises InputError when there is none that can be used."""
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=own_code)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"model {path}: its tokenizer cannot be loaded: {_first_line(error)}") from error


def load_weights(path: Path, dtype: torch.dtype, own_code: bool = False) -> PreTrainedModel:
    """The causal language model in folder ``path``, on the CPU. Raises InputError for damaged or missing weights."""
    transformers_logging.disable_progress_bar()  # one bar for every file, in every worker's log
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, local_files_only=True, output_loading_info=True, trust_remote_code=own_code
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"model {path}: its weights cannot be loaded: {_first_line(error)}") from error
    if missing := sorted(loading["missing_keys"]):
        raise InputError(f"model {path}: its weights lack {len(missing)} tensors, the first is {missing[0]}")
    return model


def _check_manifest(path: Path) -> None:
    """A byte that flipped in a safetensors file loads without a word; what we exported can be checked."""
    if (path / MANIFEST).is_file() and (problem := damage(path)):
        raise InputError(f"model {path}: {problem}; export it again or copy it again")


def _check_tied(path: Path, model: PreTrainedModel) -> None:
    """transformers leaves an output projection untied when the weights differ, whatever the configuration says."""
    if model.config.tie_word_embeddings and (
        model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    ):
        raise InputError(
            f"model {path}: its weights hold an output projection of its own, but its config.json says "
            "tie_word_embeddings: true; set that to false, or save the model with its weights tied"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _sha256_once(path: Path) -> str:
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, modified: int) -> str:
    return file_sha256(path)
