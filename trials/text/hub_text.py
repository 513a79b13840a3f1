"""Text from datasets of the hub: a corpus is streamed as far as it is read, a text for evaluation is downloaded."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from search_spaces.errors import InputError, one_line
from trials.storage.cache import digest
from trials.storage.durable import from_json, write_file
from trials.text.text_source import HELD_OUT, TextSource

WIKITEXT = "Salesforce/wikitext"
ALIASES = {
    "wikitext-2": f"{WIKITEXT}:wikitext-2-raw-v1",
    "wikitext-103": f"{WIKITEXT}:wikitext-103-raw-v1",
}
NAME = re.compile(r"(?P<dataset>[\w.-]+/[\w.-]+)(@(?P<revision>\w[\w.-]*(/\w[\w.-]*)*))?(:(?P<config>[\w.-]+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
ARTICLE = re.compile(r" = [^=].* = \n")
PROBE_SECONDS = 5.0  # the hub answers in under a second; without a network, `datasets` would retry for minutes
WAYS_ON = "use --corpus stdlib, which needs no network, or --corpus FILE.txt with text of your own"


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the hub. Error messages about it begin with ``asked_for`` and end with ``ways_on``."""

    asked_for: str
    ways_on: str
    dataset: str
    config: str | None
    revision: str | None = None


def is_hub_name(source: str) -> bool:
    """Whether ``source`` is an alias, ``org/name`` or ``org/name:config``; a revision may follow the name: ``@v1``."""
    return source in ALIASES or NAME.fullmatch(source) is not None


def from_hub(source: str, pins: Path | None = None) -> TextSource:
    """The text source with the column ``text`` of a dataset's ``train`` and ``validation`` splits.

    The rows are streamed, as far as they are read, unless the whole dataset is on this machine. Of a dataset without a
    ``validation`` split, a hash of each document holds 5 % of the ``train`` split out.

    The folder ``pins`` keeps the revision of a dataset at its first use. From then on the text is of that revision, and
    the hub is asked only if the text is read. So all processes of a search have the same text, also days later.

    Raises InputError when there is no such dataset, configuration, split or column, and within seconds when the hub is
    out of reach and the dataset is not on this machine.
    """
    wanted = _wanted(source)
    pinned = _pinned(wanted, pins / f"{digest(source)}.json") if pins else _found(wanted)
    wanted = replace(wanted, config=pinned.config, revision=pinned.revision)
    group = articles if wanted.dataset == WIKITEXT else documents

    def texts(split: str) -> Iterator[str]:
        return group(_strings(wanted, _splits(wanted, _builder(wanted))[split]))

    if pinned.has_validation:
        return TextSource(source, pinned.identity, lambda: texts("train"), lambda: texts("validation"))
    return TextSource(
        source,
        f"{pinned.identity} held out",
        train=lambda: (one for one in texts("train") if not is_held_out(one)),
        validation=lambda: (one for one in texts("train") if is_held_out(one)),
    )


@dataclass(frozen=True)
class _Found:
    """What the hub says of a dataset: a name for its text, its configuration and revision, and whether it has a
    validation split. A dataset that was found on this machine, without the hub, may have no revision."""

    identity: str
    config: str
    revision: str | None
    has_validation: bool


def _pinned(wanted: HubDataset, file: Path) -> _Found:
    """What ``file`` keeps, or what the hub says now, which ``file`` then keeps. Raises InputError."""
    try:
        return _Found(**from_json(file.read_bytes()))
    except (OSError, ValueError, TypeError):  # missing or damaged
        found = _found(wanted)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, json.dumps(asdict(found)).encode())
        return found


def _found(wanted: HubDataset) -> _Found:
    """Ask the hub, or look on this machine if it is out of reach. Raises InputError."""
    builder = _builder(wanted)
    splits = _splits(wanted, builder)
    identity = f"hub {wanted.dataset} {builder.config.name} {builder.hash}"
    revision = builder.hash if COMMIT.fullmatch(builder.hash) else None
    return _Found(identity, builder.config.name, revision, "validation" in splits)


def check_hub(source: str) -> bool:
    """Whether the hub answers. Raises InputError when it answers that it has no dataset ``source``."""
    return _silence(_wanted(source)) is None


def _wanted(source: str) -> HubDataset:
    match = NAME.fullmatch(ALIASES.get(source, source))
    if match is None:
        raise InputError(
            f"corpus {source!r}: a dataset of the hub is named org/name, org/name:config or org/name@revision:config; "
            f"or {WAYS_ON}"
        )
    return HubDataset(f"corpus {source!r}", WAYS_ON, match["dataset"], match["config"], match["revision"])


def is_held_out(document: str) -> bool:
    """Whether a document of a dataset without a validation split is validation text."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big") < HELD_OUT * 2**64


def _splits(wanted: HubDataset, builder: Any) -> Mapping[str, Any]:
    """The splits of a dataset by name, with the rows of each: from this machine, or streamed."""
    local = os.path.isdir(builder.cache_dir)
    splits: Mapping[str, Any] = builder.as_dataset() if local else _asked(wanted, builder.as_streaming_dataset)
    if "train" not in splits:
        raise _no_split(wanted, "train", splits)
    for split in splits.keys() & {"train", "validation"}:
        rows = splits[split]
        names = rows.column_names or list(_asked(wanted, lambda: next(iter(rows), {})))  # noqa: B023 (called at once)
        if names and "text" not in names:
            raise _no_column(wanted, "text", names)
    return splits


def _strings(wanted: HubDataset, rows: Iterable[dict[str, str]]) -> Iterator[str]:
    """The texts of ``rows``. Raises InputError when the hub stops to answer on the way."""
    iterator = iter(rows)
    while (row := _asked(wanted, lambda: next(iterator, None))) is not None:
        yield row["text"] or ""


def documents(rows: Iterable[str]) -> Iterator[str]:
    """The rows that are not empty, each as one document."""
    return (row for row in rows if row.strip())


def articles(lines: Iterable[str]) -> Iterator[str]:
    """The articles of WikiText, which has one line per row. An article begins with its title, `` = Title = ``."""
    article: list[str] = []
    for line in lines:
        if ARTICLE.fullmatch(line) and article:
            yield "".join(article)
            article = []
        if line.strip():
            article.append(line)
    if article:
        yield "".join(article)


def prepared(wanted: HubDataset) -> Any:
    """The builder of a dataset, after the dataset is downloaded to this machine.

    Raises InputError when there is no such dataset, and within seconds when the hub is out of reach.
    """
    builder = _builder(wanted)
    _asked(wanted, builder.download_and_prepare)
    return builder


def column(wanted: HubDataset, builder: Any, split: str, name: str) -> Iterable[str]:
    """The strings in column ``name`` of a split. Raises InputError when there is no such split or column."""
    if split not in builder.info.splits:
        raise _no_split(wanted, split, builder.info.splits)
    rows = builder.as_dataset(split=split)
    if name not in rows.column_names:
        raise _no_column(wanted, name, rows.column_names)
    strings: Iterable[str] = rows[name]
    return strings


def _no_split(wanted: HubDataset, split: str, splits: Iterable[str]) -> InputError:
    there = ", ".join(sorted(splits))
    return InputError(
        f"{wanted.asked_for}: it has no {split} split (only {there}), and other splits are not used instead; "
        f"{wanted.ways_on}"
    )


def _no_column(wanted: HubDataset, name: str, names: Iterable[str]) -> InputError:
    return InputError(f"{wanted.asked_for}: no column {name!r} (only {', '.join(names)}); {wanted.ways_on}")


def _builder(wanted: HubDataset) -> Any:
    from datasets import load_dataset_builder

    _reach(wanted)
    return _asked(wanted, lambda: load_dataset_builder(wanted.dataset, wanted.config, revision=wanted.revision))


def _asked(wanted: HubDataset, ask: Callable[[], Any]) -> Any:
    """What ``ask`` returns. Raises InputError when `datasets` or the hub cannot answer."""
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    try:
        return ask()
    except (ValueError, OSError, RuntimeError, HTTPError, DatasetNotFoundError, DatasetGenerationError) as error:
        raise InputError(
            f"{wanted.asked_for}: cannot be loaded from the hub: {one_line(error, 300)}; {wanted.ways_on}"
        ) from error


def _reach(wanted: HubDataset) -> None:
    """Ask the hub once. Without an answer, use the local copy of the dataset. Raises InputError if there is none."""
    import datasets

    silence = _silence(wanted)
    if silence is not None:
        copy = Path(datasets.config.HF_DATASETS_CACHE) / wanted.dataset.replace("/", "___")
        if not copy.is_dir():
            reason = f"not on this machine, and the hub is out of reach ({type(silence).__name__})"
            raise InputError(f"{wanted.asked_for}: {reason}; {wanted.ways_on}") from silence
        datasets.config.HF_HUB_OFFLINE = True  # so that `datasets` does not retry many times


def _silence(wanted: HubDataset) -> Exception | None:
    """Ask the hub for a dataset. Returns the error of a hub that does not answer. Raises InputError for a refusal."""
    asked_for, ways_on = wanted.asked_for, wanted.ways_on
    try:
        HfApi().dataset_info(wanted.dataset, revision=wanted.revision, timeout=PROBE_SECONDS)
    except RevisionNotFoundError as error:
        raise InputError(
            f"{asked_for}: no revision {wanted.revision!r} on the hub; give a commit, a tag or a branch"
        ) from error
    except GatedRepoError as error:
        raise InputError(f"{asked_for}: the hub asks for a login (`hf auth login`); or {ways_on}") from error
    except HFValidationError as error:
        raise InputError(f"{asked_for}: neither a file here nor a name of the hub; {ways_on}") from error
    except RepositoryNotFoundError as error:
        raise InputError(f"{asked_for}: no such file here and no such dataset on the hub; {ways_on}") from error
    except (HTTPError, OfflineModeIsEnabled) as error:
        silence: Exception = error
        return silence
    return None
