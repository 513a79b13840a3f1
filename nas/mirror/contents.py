"""Which files of a search its mirror holds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from nas.planning.plan import Plan
from trials.prune.importance import SCORES_FILE, ImportanceScores
from trials.storage.durable import damage

DISPOSABLE = ("tune", "outbox")  # in the folder of a study; the study has the same facts
DRIVER = "driver."  # begins the names of files about the process that runs the search here
LOCKS = (".lock", ".lease")
HELD = ".mirror"  # in the folder of a study: what is on its way to the mirror
CHECKPOINT = "checkpoint-"
COPIED_BYTES = 2**20  # a file up to this size may be written in place; larger ones get their names when they are whole
TRIES = 20  # to find all files in place: a checkpoint is replaced by the next one at any moment


def hold(plan: Plan, scores: Path | None, folder: Path) -> dict[str, Path]:
    """Keep all files of the mirror as they are now below ``folder``, by their paths in the output folder.

    ``scores`` is the entry of the importance scores in the cache (`scores_of`). Links keep the content of files that
    the search deletes meanwhile. Raises FileNotFoundError when files disappear again and again.
    """
    for place in range(TRIES):
        kept = folder / str(place)
        kept.mkdir(parents=True)
        try:
            found = enumerate(_files(plan, scores))
            return {path.relative_to(plan.output).as_posix(): _kept(path, kept / str(at)) for at, path in found}
        except FileNotFoundError:
            if place == TRIES - 1:
                raise
    raise AssertionError("the last try returns or raises")


def scores_of(cache: Path, key: str) -> Path | None:
    """The entry of ``cache`` that holds the importance scores with the digest ``key``; None when it is gone."""
    for folder in sorted((cache / "importance").glob("[!.]*")):
        if damage(folder) is None and ImportanceScores.load(folder / SCORES_FILE).key == key:
            return folder
    return None


def superseded(path: Path) -> bool:
    """Whether ``path`` is of a checkpoint that its trial or final no longer needs here."""
    for folder in path.parents:
        if folder.name.startswith(CHECKPOINT):
            newer = any(one.name > folder.name for one in folder.parent.glob(f"{CHECKPOINT}*"))
            return newer or (folder.parent / "result.json").exists()
    return False


def _files(plan: Plan, scores: Path | None) -> Iterator[Path]:
    roots = [plan.folder, *([scores] if scores else [])]
    for root in roots:
        for parent, folders, names in os.walk(root):
            top = parent == str(plan.folder)
            disposable = DISPOSABLE if top else ()
            folders[:] = _newest([one for one in folders if one not in disposable and not _is_temporary(one)])
            kept = (one for one in names if not _is_temporary(one) and not one.endswith(LOCKS))
            yield from (Path(parent) / one for one in kept if not (top and one.startswith(DRIVER)))


def _newest(folders: list[str]) -> list[str]:
    """The ``folders`` of one folder without its checkpoints but the newest."""
    old = sorted(one for one in folders if one.startswith(CHECKPOINT))[:-1]
    return [one for one in folders if one not in old]


def _is_temporary(name: str) -> bool:
    return name == HELD or (name.startswith(".") and ".tmp" in name)


def _kept(path: Path, name: Path) -> Path:
    if path.stat().st_size <= COPIED_BYTES or not _linked(path, name):
        shutil.copy2(path, name)
    return name


def _linked(path: Path, name: Path) -> bool:
    """Whether ``name`` is a hard link to ``path`` now; False on a file system without hard links."""
    try:
        os.link(path, name)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True
