"""Finds a model's folder and reads its configuration, without importing model code."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from tqdm import tqdm

from search_spaces.errors import InputError, one_line
from search_spaces.shape import ModelShape
from trials.families.shapes import shape_of
from trials.storage.cache import digest
from trials.storage.node_digests import sha256_on_node
from trials.teacher.config_file import INDEX, WEIGHTS, check_config, check_weights, read_object
from trials.teacher.inside import check_inside
from trials.teacher.revision import GGUF, is_revision, split_revision
from trials.text.text_source import local_path

if TYPE_CHECKING:  # takes seconds to import, and the checks of a command line need none of it
    from transformers import PretrainedConfig

MINI = Path(__file__).parents[1] / "mini"
ADAPTER = "adapter_config.json"
SHARD = re.compile(r"[^/\\\0]+\.safetensors")  # the name of a file, not a path
SHARDS_OF_RANKS = "shard-*-model-*-of-*.safetensors"  # as distributed training saves them
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
OBJECTS = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
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
    "chat_template.jinja",
    "additional_chat_templates/*",
    "README.md",  # its licence and languages are named on the card of a student
    "*.py",  # a model's own code, which runs only with --trust-remote-code
]
CONFIG_FILES = ["config.json", ADAPTER, "*.py"]  # what is checked before the weights are downloaded
PROBE_SECONDS = 5.0  # the hub answers in under a second; without a network its client would retry for 46 seconds
WAYS_ON = "take mini, which needs no network, or a checkpoint of your own, such as ./folder"
# What transformers raises for a file with values that it cannot use.
UNUSABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    ImportError,
    StrictDataclassError,
)

log = logging.getLogger(__name__)


def resolve_model(model: str, check: Callable[[Path], object] | None = None) -> Path:
    """The folder of ``model``: ``mini`` (in this package), a local folder or GGUF file, or a model of the hub.

    A model of the hub is ``org/name``, or ``org/name@revision`` for a commit, a tag or a branch.

    A hub model in the local hub cache needs no network. Otherwise the hub must answer within `PROBE_SECONDS`, and the
    config is checked before the weights are downloaded. ``check`` inspects the config in a folder and raises
    InputError. By default it requires an architecture that can be pruned.

    Raises InputError when the folder lacks a file, the id is malformed or unknown, the hub cannot be reached, or
    the check fails.
    """
    check = check or read_shape
    if model == "mini":
        return _checked(MINI, model, check)
    folder = local_path(model)
    if model and os.path.isdir(folder):  # the path of an empty name is the current folder
        return _checked(folder.resolve(), model, check)
    if folder.suffix == GGUF and os.path.isfile(folder):
        from trials.teacher.gguf import unpacked  # imported here because it imports model code, which takes seconds

        return _checked(unpacked(folder.resolve()), model, check)
    if os.path.exists(folder) or model.startswith((".", "~", os.sep)) or folder.suffix == GGUF:
        ways = "give a folder with a checkpoint, a .gguf file, a hub id, or mini"
        raise InputError(f"model {model!r}: not a folder; {ways}")
    name, revision = split_revision(model)
    if name == "mini" or not (revision is None or is_revision(revision)):
        raise InputError(
            f"model {model!r}: a model of the hub may have a revision, org/name@REVISION; give one, or none"
        )
    return _from_hub(name, revision, check)


def read_shape(path: Path) -> ModelShape:
    """The shape of the model in folder ``path``, from its config alone. Raises InputError when it is unsupported."""
    return shape_of(read_config(path))


def read_config(path: Path, own_code: bool = False) -> PretrainedConfig:
    """The configuration of the model in folder ``path``. ``own_code`` allows the model's own code to run.

    Raises InputError when it cannot be used, see also `check_config`.
    """
    check_config(path, str(path))
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=own_code)  # nosec B615
    except UNUSABLE as error:
        raise InputError(f"model {path}: its config.json cannot be used: {one_line(error)}") from error


def fingerprint(path: Path) -> str:
    """A digest of the weights and the config in folder ``path``. Each file is read once on each node."""
    files = [path / "config.json", *weight_files(path)]
    return digest(*(part for file in files for part in (file.name, _sha256_once(file))))


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of folder ``path``, sorted by name; empty when there are none or a shard is missing.

    Raises InputError when the index of the shards is damaged.
    """
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if not (path / INDEX).is_file():
        return []
    shards = read_object(path / INDEX, str(path)).get("weight_map")
    named = list(shards.values()) if isinstance(shards, dict) else []
    names = {name for name in named if isinstance(name, str) and SHARD.fullmatch(name)}
    if not names or len(names) < len(set(map(str, named))):
        raise InputError(
            f"model {path}: its {INDEX} has no weight_map that names a file of this folder (.safetensors) for each "
            "weight; copy it from the model again"
        )
    files = [path / name for name in sorted(names)]
    return files if all(os.path.isfile(file) for file in files) else []


def _checked(folder: Path, model: str, check: Callable[[Path], object]) -> Path:
    _check_no_adapter(folder, model)
    if lacking := _lacking(folder):
        raise InputError(
            f"model {model!r}: {folder} has no {lacking}; save model and tokenizer there with save_pretrained"
        )
    if other := next(folder.glob(SHARDS_OF_RANKS), None):
        raise InputError(
            f"model {model}: {other.name} beside its weights would be loaded instead of them; move it to another folder"
        )
    check_inside(folder, model)
    check_config(folder, model)
    check_weights(folder, model, pruned=check is read_shape)
    for name in OBJECTS:
        if (folder / name).is_file():
            read_object(folder / name, model)
    check(folder)
    return folder


def _check_no_adapter(folder: Path, model: str) -> None:
    """Raise InputError for an adapter without its base. Beside a whole model, an adapter's files are not read."""
    if (folder / ADAPTER).is_file() and not (folder / "config.json").is_file():
        base = read_object(folder / ADAPTER, model).get("base_model_name_or_path")
        raise InputError(
            f"model {model}: is an adapter of {base or 'another model'}; merge it (merge_and_unload) first, and save "
            "model and tokenizer"
        )


def _lacking(folder: Path) -> str | None:
    if not (folder / "config.json").is_file():
        return "config.json"
    if not weight_files(folder):
        return f"{WEIGHTS}, nor all shards of {INDEX} (pickled weights are not supported)"
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return f"tokenizer ({', '.join(TOKENIZER_FILES)})"
    return None


def _from_hub(model: str, revision: str | None, check: Callable[[Path], object]) -> Path:
    try:
        local = Path(snapshot_download(model, revision=revision, allow_patterns=HUB_FILES, local_files_only=True))
    except HFValidationError as error:
        raise InputError(
            f"model {model!r}: neither a folder nor a hub id such as openai-community/gpt2; give one of them, or mini"
        ) from error
    except LocalEntryNotFoundError:  # not in the local hub cache
        return _download(model, revision, check)
    return _checked(local, model, check) if _lacking(local) is None else _download(model, revision, check)


class _Bar(tqdm):
    """The progress bar of a download. It is shown on a terminal only, and is gone at the end."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "disable": None, "leave": False})


def _download(model: str, revision: str | None, check: Callable[[Path], object]) -> Path:
    try:
        HfApi().model_info(model, revision=revision, timeout=PROBE_SECONDS)
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=CONFIG_FILES))
        _check_no_adapter(folder, model)
        check_config(folder, model)
        check_weights(folder, model, pruned=check is read_shape)
        check(folder)
        log.info("downloading the weights of %s from the hub", model)
        files = snapshot_download(model, revision=revision, allow_patterns=HUB_FILES, tqdm_class=_Bar)
        return _checked(Path(files), model, check)
    except RevisionNotFoundError as error:
        raise InputError(
            f"model {model!r}: has no revision {revision!r} on the hub; give a commit, a tag or a branch of it"
        ) from error
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
    return sha256_on_node(path)
