"""What a model card says of the teacher, from the teacher's own card where it has one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load

from trials.teacher.revision import commit_of, split_revision

CARD = "README.md"
TEXTS, LISTS = ("license", "license_name", "license_link"), ("language", "datasets")

log = logging.getLogger(__name__)


def about_teacher(model: str, folder: Path) -> dict[str, Any]:
    """The metadata of the card of a student of ``model``, whose files are in ``folder``, as the hub knows it.

    ``base_model`` is the teacher's name on the hub, and ``base_model_revision`` its commit. For a folder, the first is
    what its card says that it was made from. Licence,
    languages and data sets are those of the teacher's card. What is not known is left out.
    """
    own = _metadata(folder / CARD)
    name, commit = split_revision(model)[0], commit_of(folder)
    of_hub = _is_of_hub(name, folder)
    base = name if of_hub else own.get("base_model")
    found: dict[str, Any] = {"base_model": base, "base_model_relation": "finetune"} if isinstance(base, str) else {}
    found |= {"base_model_revision": commit} if of_hub and commit else {}
    found |= {name: own[name] for name in TEXTS if isinstance(own.get(name), str)}
    for name in LISTS:
        value = own.get(name)
        if isinstance(value, str) or (value and isinstance(value, list) and all(isinstance(one, str) for one in value)):
            found[name] = value
    return found


def _is_of_hub(model: str, folder: Path) -> bool:
    """Whether ``folder`` is the hub's own copy of ``model``, in its cache."""
    return folder.parent.name == "snapshots" and folder.parents[1].name == f"models--{model.replace('/', '--')}"


def _metadata(card: Path) -> dict[str, Any]:
    if not card.is_file():
        return {}
    try:
        return metadata_load(card) or {}
    except (yaml.YAMLError, ValueError) as error:
        log.warning("card %s: its metadata cannot be read (%s), so the new card says nothing of it", card, error)
        return {}
