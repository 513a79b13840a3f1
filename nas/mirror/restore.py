"""From the mirror back to the disk: on a machine that has lost a search, or never had it."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from nas.mirror.contents import superseded
from nas.mirror.manifest import OBJECTS, Entry, Manifest, Standing, read_manifest
from nas.mirror.store import Store
from nas.mirror.study_copy import discard, found_study, put_back, standing_of, study_id
from nas.planning.plan import Plan
from search_spaces.errors import InputError
from trials.storage.durable import file_sha256, sync, temporary_sibling

UNFINISHED = ".restoring"  # in the folder of a study: the study is being put back

log = logging.getLogger(__name__)


def restore(plan: Plan, store: Store, say: Callable[[str], None]) -> Manifest | None:
    """Bring back what the mirror ``store`` of the study has and this machine has not; returns its manifest.

    Only missing files are written, each after its digest is checked; the study comes last. A file that is damaged in
    the mirror is left out with a warning. Call this before the study is opened, and under the lock of the driver.

    Raises InputError when the study here is older than the mirror's, or another one of the same name, and when the
    mirror cannot be used.
    """
    mark = plan.folder / UNFINISHED
    if mark.exists():
        discard(plan.study, plan.storage)
        mark.unlink()
    manifest = read_manifest(store, plan.study)
    if manifest is None:
        say(f"mirror {store.url}: empty, and filled from now on")
        return None
    study = found_study(plan.storage, plan.study)
    if study is not None:
        _check(plan, store, manifest, study_id(study), standing_of(study))
    elif manifest.database is None:
        raise InputError(_no_study(plan, store, manifest))
    missing = {name: one for name, one in manifest.files.items() if not _is_here(plan.output / name)}
    if missing:
        size = sum(one.size for one in missing.values())
        say(f"mirror {store.url}: bringing back {len(missing)} files of {size / 1e6:,.1f} MB ...")
    restored = _fetch(store, plan.output, missing)
    if study is None and manifest.database is not None:
        mark.touch()
        _fetch_study(plan, store, manifest.database)
        mark.unlink()
    what = f"the study with {manifest.standing} and " if study is None else ""
    if what or restored:
        say(f"mirror {store.url}: brought back {what}{restored} files")
    return manifest


def _check(plan: Plan, store: Store, manifest: Manifest, own: str, here: Standing) -> None:
    """Raise InputError when the study here must not go on beside the one in the mirror."""
    if own != manifest.study_id:
        raise InputError(
            f"--mirror {store.url}: holds another study of the name {plan.study!r}; give another --mirror or --study"
        )
    if here < manifest.standing:
        raise InputError(
            f"study {plan.study!r}: here it has {here}, its mirror {store.url} has {manifest.standing}; move the older "
            f"one away ({plan.folder} and its entry in {plan.storage}), or go on without --mirror"
        )


def _no_study(plan: Plan, store: Store, manifest: Manifest) -> str:
    return (
        f"study {plan.study!r}: its mirror {store.url} was made beside a database server, which has the study with "
        f"{manifest.standing}; {plan.storage} has not; give the --storage of that server"
    )


def _is_here(path: Path) -> bool:
    return path.exists() or superseded(path)


def _fetch(store: Store, output: Path, files: Mapping[str, Entry]) -> int:
    """Download ``files`` into ``output``. Returns how many were whole."""
    done = 0
    for name, entry in files.items():
        path = output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if _download(store, entry, path):
            done += 1
        else:
            log.warning("mirror %s: %s is missing or damaged there; what it holds is computed again", store.url, name)
    return done


def _download(store: Store, entry: Entry, path: Path) -> bool:
    """Whether ``path`` has the content of ``entry`` now. Otherwise it is as it was."""
    temporary = temporary_sibling(path)
    try:
        store.download(f"{OBJECTS}/{entry.sha256}", temporary)
        if temporary.stat().st_size != entry.size or file_sha256(temporary) != entry.sha256:
            return False
        sync(temporary)
        os.replace(temporary, path)
    except FileNotFoundError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _fetch_study(plan: Plan, store: Store, entry: Entry) -> None:
    copy = plan.output / f".{plan.study}.{uuid.uuid4().hex}.tmp"  # on the file system of the database, by default
    try:
        if not _download(store, entry, copy):
            raise InputError(
                f"--mirror {store.url}: its copy of the study {plan.study!r} is missing or damaged; give another "
                "--study to begin anew"
            )
        put_back(copy, plan.study, plan.storage)
    finally:
        copy.unlink(missing_ok=True)
