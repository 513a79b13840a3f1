"""Writes things to a disk that is full, again and again with a little more space, until there is enough.

It runs as a process of its own, and mounts the disks that it fills: ``python filling.py FOLDER KIND ...``. It prints
JSON.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from nas.planning.errors import explained
from trials.storage.disk import free_bytes, is_full, mount_of

PAGE = 4096
PLACES = 1  # pages at first; each attempt has a fifth more than the one before
DISK = 64 * 2**20  # bytes of each disk
TRIES = 100  # to fill a disk to which something else writes

Write = Callable[[Path], Any]
"""Writes into a folder, and returns what the folder then holds, to be compared."""


def attempts(disk: Path, write: Write, damage: Callable[[Path], str], pages: int = PLACES) -> dict[str, Any]:
    """Let ``write`` fail until it does not. ``damage`` says what is wrong with the folder after a failure.

    The result has the number of failures, the problems, the last message, and what `write` returned.
    """
    folder, ballast, failures = disk / "work", disk / "ballast", 0
    folder.mkdir()
    problems, messages = set[str](), list[str]()
    while pages * PAGE < DISK:
        leave(disk, ballast, pages * PAGE)
        try:
            made = write(folder)
            return {"failures": failures, "problems": sorted(problems), "messages": messages[-1:], "made": made}
        except Exception as error:
            failures += 1
            messages.append(str(explained(error, str(folder))))
            if not is_full(error):
                problems.add(f"{type(error).__name__}: {error}")
                return {"failures": failures, "problems": sorted(problems), "messages": messages[-1:], "made": None}
            if f"the disk at {mount_of(disk)} (of {folder}" not in messages[-1]:
                problems.add(f"no disk in: {messages[-1]}")
            if problem := damage(folder):
                problems.add(problem)
        pages = max(pages + 1, pages * 6 // 5)
    return {"failures": failures, "problems": ["the disk is never enough"], "messages": messages[-1:], "made": None}


def leave(disk: Path, ballast: Path, size: int) -> None:
    """Fill the ``disk`` so that at most ``size`` bytes are left of it."""
    for left in range(TRIES, 0, -1):
        ballast.unlink(missing_ok=True)
        if (full := free_bytes(disk) - size) <= 0:
            return
        try:
            with ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, full)
            return
        except OSError as error:  # what else writes to the disk was faster
            if error.errno != errno.ENOSPC or left == 1:
                raise


def nothing_of(*names: str) -> Callable[[Path], str]:
    """Nothing but hidden files may be there under these ``names``, patterns below the folder."""

    def damage(folder: Path) -> str:
        found = [str(one.relative_to(folder)) for name in names for one in folder.glob(name)]
        shown = [one for one in found if not any(part.startswith(".") for part in Path(one).parts)]
        hidden = sum(one.stat().st_size for one in folder.rglob("*") if one.is_file()) if not shown else 0
        return f"visible: {shown}" if shown else f"{hidden} bytes are left for nothing" if hidden > PAGE else ""

    return damage


def cache(folder: Path) -> Any:
    import numpy as np

    from trials.storage.cache import Cache

    values = np.arange(100_000, dtype=np.float32)
    made = Cache(folder).build("kind", "key", lambda empty: np.save(empty / "values.npy", values))
    return float(np.load(made / "values.npy").sum())


def targets(way: Any) -> Write:
    def write(folder: Path) -> Any:
        from distilling import CORPUS, TEACHER

        from trials.storage.cache import Cache, file_sha256
        from trials.teacher.targets import load_targets

        load_targets(TEACHER, CORPUS, 16, Cache(folder), way=way)
        return sorted(file_sha256(one) for one in folder.rglob("*.npy"))

    return write


def streams(folder: Path) -> Any:
    from distilling import CORPUS, TEACHER

    from trials.storage.cache import Cache, file_sha256
    from trials.teacher.streams import load_streams
    from trials.text.corpus import windows

    load_streams(TEACHER, windows(CORPUS.train, 16), Cache(folder))
    return sorted(file_sha256(one) for one in folder.rglob("*.npy"))


def checkpoint(folder: Path) -> Any:
    import torch
    from distilling import same, student, weights

    from trials.distill.checkpoint import CheckpointWriter, Progress, load_checkpoint

    model, other = student().requires_grad_(True), student()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.arange(8)[None]).logits.sum().backward()
    optimizer.step()
    with CheckpointWriter(folder) as writer:
        writer.save(model, optimizer, Progress("this", step=1))
        writer.wait()
    progress = load_checkpoint(folder, other, torch.optim.AdamW(other.parameters()), "this")
    return progress.step, same(weights(model), weights(other))


def result(folder: Path) -> Any:
    from distilling import student

    from trials.distill.checkpoint import Rung
    from trials.distill.results import RESULT, STUDENT, save_student, write_result
    from trials.storage.durable import damage

    save_student(student(), folder / STUDENT)
    write_result(folder, "this", [Rung(n, {"val_loss": 1.0}) for n in range(1000)], {"val_loss": 1.0})
    return damage(folder / STUDENT), len(json.loads((folder / RESULT).read_text())["rungs"])


def export(folder: Path) -> Any:
    from conftest import make_gpt2
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from search_spaces.architecture import Architecture
    from trials.export import export
    from trials.storage.durable import damage

    card = export.ModelCard("t", 9, 2.0, "60%", Architecture.uniform(3, 48, 4, 96), 9, 9, 2.0, "text", "command")
    export.check_fresh_load = lambda *_: export.FreshLoad(0.0, "AutoTokenizer")  # that process writes elsewhere
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])), eos_token="a")
    return damage(export.export_student(make_gpt2(), tokenizer, folder / "best", card))


def outbox(folder: Path) -> Any:
    from tracking_reference import record

    from nas.tracking.messages import Artifacts, TrialChanged
    from nas.tracking.outbox import Outbox

    source = folder.parent.parent / "report.md"
    source.write_bytes(b"x" * 100_000)
    box = Outbox(folder / "outbox")
    if not box.waiting():
        box.add(TrialChanged("s", record(0)))
    name = box.add(Artifacts("s", (str(source),), "report"))
    return len(box.waiting()), [one.stat().st_size for one in box.files(name).iterdir()]


def tracker(folder: Path) -> Any:
    """Events that find no space wait in memory, and none is lost."""
    from tracking_reference import record

    from nas.tracking.messages import TrialChanged
    from nas.tracking.tracker import Tracker

    box = Tracker("http://127.0.0.1:9", "nas", folder / "outbox")
    for number in range(20):
        box.put(TrialChanged("s", record(number)))
    left, names = len(box._unstored), box.outbox.waiting()
    leave(folder.parent, folder.parent / "ballast", 2**20)
    box.put(TrialChanged("s", record(20)))
    numbers = [box.outbox.read(name).record.number for name in box.outbox.waiting()]  # type: ignore[union-attr]
    box.close(0)
    return len(names) + left, numbers == list(range(21))


def study(folder: Path) -> Any:
    from test_database import FEASIBLE
    from test_database import study as opened

    made = opened(folder)
    made.requeue()
    while made.finished() < len(FEASIBLE):
        candidate = made.ask()
        assert candidate is not None
        made.complete(candidate.number, float(FEASIBLE.index(candidate.architecture)), {"seconds": 1.0})
    return sorted(one.val_loss for one in made.records() if one.val_loss is not None)


def mlflow(folder: Path) -> Any:
    from mlflow import MlflowClient
    from tracking_reference import contents, search_events

    from nas.tracking.mlflow_delivery import MlflowDelivery

    uri, elsewhere = f"sqlite:///{folder / 'mlflow.db'}", folder.parent.parent / "events"
    delivery = MlflowDelivery(uri, "nas", folder / "artifacts")
    for number, event in enumerate(search_events("s", elsewhere)):
        files = elsewhere / f"{number}"
        if (paths := getattr(event, "paths", ())) or hasattr(event, "directory"):
            files.mkdir(exist_ok=True)
            for path in map(Path, paths or Path(event.directory).iterdir()):  # type: ignore[union-attr]
                (files / path.name).write_bytes(path.read_bytes())
        delivery.deliver(event, files)
    return contents(MlflowClient(uri, uri), "s", "nas")


def sound(name: str) -> Callable[[Path], str]:
    """A database may be there, and then it is whole."""

    def damage(folder: Path) -> str:
        if not (folder / name).exists():
            return ""
        if not (folder / name).stat().st_size:
            return f"{name} is empty"
        with closing(sqlite3.connect(folder / name)) as connection:
            found = connection.execute("pragma integrity_check(1)").fetchone()[0]
        return "" if found == "ok" else f"{name}: {found}"

    return damage


def whole_student(folder: Path) -> str:
    """A student may be there, and then it is whole. A result may not."""
    from trials.storage.durable import damage

    problem = damage(folder / "student") if (folder / "student").exists() else ""
    return problem or ("visible: result.json" if (folder / "result.json").exists() else "")


KINDS: dict[str, tuple[Write, Callable[[Path], str], int]] = {
    "cache": (cache, nothing_of("kind/*"), PLACES),
    "cached targets": (targets("cached"), nothing_of("targets/*"), PLACES),
    "drawn targets": (targets("drawn"), nothing_of("targets/*"), PLACES),
    "streams": (streams, nothing_of("streams/*"), PLACES),
    "checkpoint": (checkpoint, nothing_of("checkpoint*"), PLACES),
    "result": (result, whole_student, PLACES),
    "export": (export, nothing_of("best"), PLACES),
    "outbox": (outbox, nothing_of("outbox/*.files"), 4),
    "tracker": (tracker, nothing_of(), 8),
    "study": (study, sound("studies.db"), PLACES),
    "mlflow": (mlflow, sound("mlflow.db"), 100),
}


def main(disk: Path, kinds: list[str]) -> dict[str, Any]:
    """What came of each kind on a disk that is full at first, and what `Write` makes of it where there is space."""
    found = {}
    for kind in kinds:
        write, damage, pages = KINDS[kind]
        results = []
        for first in (pages, 10_000):
            own = disk / f"{kind.replace(' ', '-')}-{first}"
            own.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", own], check=True)
            results.append(attempts(own, write, damage, first))
        found[kind] = {**results[0], "expected": results[1]["made"]}
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2:])))
