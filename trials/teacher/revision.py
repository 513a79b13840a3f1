"""Revisions of models of the hub: a commit, a tag or a branch, written behind the name as ``org/name@revision``."""

from __future__ import annotations

import os
import re
from pathlib import Path

from search_spaces.errors import InputError
from trials.text.text_source import local_path

REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)  # also the name of a file in the cache of the hub
LONGEST = 200  # characters
COMMIT = re.compile(r"[0-9a-f]{40}")
GGUF = ".gguf"


def split_revision(model: str) -> tuple[str, str | None]:
    """The name and the revision of ``org/name@revision``. What is on this machine has no revision."""
    name, at, revision = model.rpartition("@")
    return (name, revision) if at and not _is_local(model) else (model, None)


def with_revision(model: str, revision: str) -> str:
    """``org/name@revision``. Raises InputError for a model of this machine, or with a revision, and for a wrong one."""
    rule = ""
    if model == "mini" or _is_local(model):
        rule = f"model {model!r} is on this machine, and has no revisions; leave --revision out"
    elif split_revision(model)[1] is not None:
        rule = f"model {model!r} names a revision already; leave one of them out"
    elif not is_revision(revision):
        rule = "give a commit, a tag or a branch of the model on the hub"
    if rule:
        raise InputError(f"--revision {revision[:LONGEST]!r}: {rule}")
    return f"{model}@{revision}"


def is_revision(text: str) -> bool:
    """Whether ``text`` can be a commit, a tag or a branch. No part of it leads to another folder."""
    return len(text) <= LONGEST and REVISION.fullmatch(text) is not None


def commit_of(folder: Path) -> str | None:
    """The commit of a model's ``folder`` in the cache of the hub; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" and COMMIT.fullmatch(folder.name) else None


def at_commit(model: str, folder: Path) -> str:
    """``model`` with the commit of its ``folder`` in place of its revision, if it has one."""
    (name, revision), commit = split_revision(model), commit_of(folder)
    return f"{name}@{commit}" if revision is not None and commit else model


def _is_local(model: str) -> bool:
    path = local_path(model)
    return model.startswith((".", "~", os.sep)) or path.suffix == GGUF or (model != "" and os.path.exists(path))
