"""Text from datasets of the hub. `datasets` downloads each once and uses its local copy afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from search_spaces.errors import InputError
from trials.text.text_source import TextSource

WIKITEXT = "Salesforce/wikitext"
ALIASES = {
    "wikitext-2": f"{WIKITEXT}:wikitext-2-raw-v1",
    "wikitext-103": f"{WIKITEXT}:wikitext-103-raw-v1",
}
NAME = re.compile(r"(?P<dataset>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?")
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
    """Whether ``source`` is an alias, ``org/name`` or ``org/name:config``."""
    return source in ALIASES or NAME.fullmatch(source) is not None


def from_hub(source: str) -> TextSource:
    """The text source with the column ``text`` of a dataset's ``train`` and ``validation`` splits.

    Raises InputError when there is no such dataset, configuration, split or column, and within seconds when the hub is
    out of reach and the dataset is not on this machine.
    """
    match = NAME.fullmatch(ALIASES.get(source, source))
    if match is None:
        raise InputError(f"corpus {source!r}: a dataset of the hub is named org/name or org/name:config; or {WAYS_ON}")
    wanted = HubDataset(f"corpus {source!r}", WAYS_ON, match["dataset"], match["config"])
    builder = prepared(wanted)
    columns = {split: column(wanted, builder, split, "text") for split in ("train", "validation")}
    group = articles if wanted.dataset == WIKITEXT else documents
    return TextSource(
        name=source,
        identity=f"hub {wanted.dataset} {builder.config.name} {builder.hash}",
        train=lambda: group(columns["train"]),
        validation=lambda: group(columns["validation"]),
    )


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
    from datasets import load_dataset_builder
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    _reach(wanted)
    try:
        builder = load_dataset_builder(wanted.dataset, wanted.config, revision=wanted.revision)
        builder.download_and_prepare()
    except (ValueError, OSError, RuntimeError, HTTPError, DatasetNotFoundError, DatasetGenerationError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{wanted.asked_for}: cannot be loaded from the hub: {reason}; {wanted.ways_on}") from error
    return builder


def column(wanted: HubDataset, builder: Any, split: str, name: str) -> Iterable[str]:
    """The strings in column ``name`` of a split. Raises InputError when there is no such split or column."""
    splits = sorted(builder.info.splits)
    if split not in splits:
        raise InputError(
            f"{wanted.asked_for}: it has no {split} split (only {', '.join(splits)}), and other splits are not used "
            f"instead; {wanted.ways_on}"
        )
    rows = builder.as_dataset(split=split)
    if name not in rows.column_names:
        raise InputError(
            f"{wanted.asked_for}: no column {name!r} (only {', '.join(rows.column_names)}); {wanted.ways_on}"
        )
    strings: Iterable[str] = rows[name]
    return strings


def _reach(wanted: HubDataset) -> None:
    """Ask the hub once. Without an answer, use the local copy of the dataset. Raises InputError if there is none."""
    import datasets

    asked_for, ways_on = wanted.asked_for, wanted.ways_on
    try:
        HfApi().dataset_info(wanted.dataset, timeout=PROBE_SECONDS)
    except GatedRepoError as error:
        raise InputError(f"{asked_for}: the hub asks for a login (`hf auth login`); or {ways_on}") from error
    except HFValidationError as error:
        raise InputError(f"{asked_for}: neither a file here nor a name of the hub; {ways_on}") from error
    except RepositoryNotFoundError as error:
        raise InputError(f"{asked_for}: no such file here and no such dataset on the hub; {ways_on}") from error
    except (HTTPError, OfflineModeIsEnabled) as error:
        copy = Path(datasets.config.HF_DATASETS_CACHE) / wanted.dataset.replace("/", "___")
        if not copy.is_dir():
            reason = f"not on this machine, and the hub is out of reach ({type(error).__name__})"
            raise InputError(f"{asked_for}: {reason}; {ways_on}") from error
        datasets.config.HF_HUB_OFFLINE = True  # so that `datasets` does not retry many times
