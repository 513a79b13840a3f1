"""The files of a checkpoint are inside its folder: none is a link that leaves it, and none names a file elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from search_spaces.errors import InputError
from trials.teacher.config_file import read_object

READ = (  # what this project and transformers read in the folder of a checkpoint
    *("*.json", "*.safetensors", "*.py", "*.model", "*.tiktoken", "*.jinja", "*.gguf", "merges.txt", "vocab.*"),
    *("tokenizer*", "additional_chat_templates", "additional_chat_templates/*", "README.md"),
)
TOKENIZER = "tokenizer_config.json"
LISTED = "fast_tokenizer_files"  # key of the files that transformers chooses a tokenizer from
CODE = re.compile(r"\w+\.\w+", re.ASCII)  # module.Class


def check_inside(folder: Path, model: str) -> None:
    """Check that the files in ``folder``, and those that its tokenizer names, are inside it.

    In the cache of the hub, the files of a model are links to another folder of the same model, which is allowed.

    Raises InputError that begins with the name ``model``, and names the file and where it leads.
    """
    roots = _roots(folder)
    for file in sorted({file for pattern in READ for file in folder.glob(pattern)}):
        if not is_inside(file, roots):
            raise InputError(
                f"model {model}: {file.relative_to(folder)} in its folder is a link to {file.resolve()}, outside of "
                "it; put the file itself there"
            )
    for key, name in _named(folder, model):
        if not is_inside(folder / name, roots) and (key == LISTED or os.path.exists(folder / name)):
            raise InputError(
                f"model {model}: its {TOKENIZER} names {name[:200]!r} ({key}), outside of its folder; leave it out"
            )


def check_code(folder: Path, model: str) -> None:
    """Check that the classes of the model's own code are in files of ``folder``. Raises InputError, one line."""
    for file in ("config.json", TOKENIZER):
        if not (folder / file).is_file():
            continue
        for name in _classes(read_object(folder / file, model).get("auto_map")):
            if not CODE.fullmatch(name):
                raise InputError(
                    f"model {model}: the code {name[:200]!r} that its {file} names is in no file of its folder; copy "
                    "the code there and name it module.Class, or take the model that it belongs to"
                )


def is_inside(file: Path, roots: tuple[Path, ...]) -> bool:
    """Whether ``file``, with all links followed, is in one of ``roots``, which have no links."""
    try:
        real = file.resolve()
    except (OSError, RuntimeError, ValueError):  # links in a circle, a name that is too long, a character no path has
        return False
    return any(real.is_relative_to(root) for root in roots)


def _roots(folder: Path) -> tuple[Path, ...]:
    real = folder.resolve()
    return (real, real.parent.parent / "blobs") if real.parent.name == "snapshots" else (real,)


def _named(folder: Path, model: str) -> Iterator[tuple[str, str]]:
    """The keys and names of files in the configuration of the tokenizer."""
    if not (folder / TOKENIZER).is_file():
        return
    for key, value in read_object(folder / TOKENIZER, model).items():
        names = value if key == LISTED and isinstance(value, list) else [value] if key.endswith("_file") else []
        yield from ((key, name) for name in names if isinstance(name, str))


def _classes(auto_map: Any) -> Iterator[str]:
    """The names of classes in the value of ``auto_map``."""
    values = auto_map.values() if isinstance(auto_map, dict) else auto_map if isinstance(auto_map, list) else [auto_map]
    for value in values:
        yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str))
