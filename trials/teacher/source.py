"""Finds a model's folder and reads its configuration, without importing model code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from search_spaces.errors import InputError
from search_spaces.shape import ModelShape
from trials.families.shapes import shape_of
from trials.storage.cache import digest
from trials.storage.durable import file_sha256

if TYPE_CHECKING:  # takes seconds to import, and the checks of a command line need none of it
    from transformers import PretrainedConfig

MINI = Path(__file__).parents[1] / "mini"
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
    "*.py",  # a model's own code, which runs only with --trust-remote-code
]
PROBE_SECONDS = 5.0  # the hub answers in under a second; without a network its client would retry for 46 seconds
WAYS_ON = "take mini, which needs no network, or a checkpoint of your own, such as ./folder"


def resolve_model(model: str, check: Callable[[Path], object] | None = None) -> Path:
    """The folder of ``model``: ``mini`` (in this package), a local folder or GGUF file, or a model id of the hub.

    A hub model in the local hub cache needs no network. Otherwise the hub must answer within `PROBE_SECONDS`, and the
    config is checked before the weights are downloaded. ``check`` inspects the config in a folder and raises
    InputError. By default it requires an architecture that can be pruned.

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
        from trials.teacher.gguf import unpacked  # imported here because it imports model code, which takes seconds

        return _checked(unpacked(folder.resolve()), model, check)
    if folder.exists() or model.startswith((".", "~", os.sep)) or folder.suffix == GGUF:
        ways = "give a folder with a checkpoint, a .gguf file, a hub id, or mini"
        raise InputError(f"model {model!r}: not a folder; {ways}")
    return _from_hub(model, check)


def read_shape(path: Path) -> ModelShape:
    """The shape of the model in folder ``path``, from its config alone. Raises InputError when it is unsupported."""
    return shape_of(read_config(path))


def read_config(path: Path, own_code: bool = False) -> PretrainedConfig:
    """The configuration of the model in folder ``path``. ``own_code`` allows the model's own code to run.

    Raises InputError when transformers cannot load it.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=own_code)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"model {path}: its config.json cannot be used: {first_line(error)}") from error


def fingerprint(path: Path) -> str:
    """A digest of the weights and the config in folder ``path``. Each file is read once per process."""
    files = [path / "config.json", *weight_files(path)]
    return digest(*(part for file in files for part in (file.name, _sha256_once(file))))


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of folder ``path``, sorted by name; empty when there are none or a shard is missing."""
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
            f"model {model!r}: {folder} has no {lacking}; save model and tokenizer there with save_pretrained"
        )
    check(folder)
    return folder


def _lacking(folder: Path) -> str | None:
    if not (folder / "config.json").is_file():
        return "config.json"
    if not weight_files(folder):
        return f"{WEIGHTS}, nor all shards of {INDEX} (pickled weights are not supported)"
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return f"tokenizer ({', '.join(TOKENIZER_FILES)})"
    return None


def _from_hub(model: str, check: Callable[[Path], object]) -> Path:
    try:
        local = Path(snapshot_download(model, allow_patterns=HUB_FILES, local_files_only=True))
    except HFValidationError as error:
        raise InputError(
            f"model {model!r}: neither a folder nor a hub id such as openai-community/gpt2; give one of them, or mini"
        ) from error
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


def _sha256_once(path: Path) -> str:
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, modified: int) -> str:
    return file_sha256(path)


def first_line(error: Exception) -> str:
    """The first line of the message of ``error``, or its class name if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
