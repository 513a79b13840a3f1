"""Text of a dataset of the hub, through `datasets`, which downloads it once and reads its own copy after that."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from search_spaces.errors import InputError
from trials.text_source import TextSource

WIKITEXT = "Salesforce/wikitext"
ALIASES = {
    "wikitext-2": f"{WIKITEXT}:wikitext-2-raw-v1",
    "wikitext-103": f"{WIKITEXT}:wikitext-103-raw-v1",
}
NAME = re.compile(r"(?P<dataset>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?")
ARTICLE = re.compile(r" = [^=].* = \n")
PROBE_SECONDS = 5.0  # without a route, `datasets` retries for minutes; the hub answers in well under one second
WAYS_ON = "use --corpus stdlib, which needs no network, or --corpus FILE.txt with text of your own"


def is_hub_name(source: str) -> bool:
    """Whether ``source`` is an alias, ``org/name`` or ``org/name:config``."""
    return source in ALIASES or NAME.fullmatch(source) is not None


def from_hub(source: str) -> TextSource:
    """The column ``text`` of a dataset's ``train`` split, and of its ``validation`` split for selection.

    Raises InputError within seconds when the hub is out of reach and the dataset not on this machine, and when
    there is no such dataset, configuration, split or column.
    """
    match = NAME.fullmatch(ALIASES.get(source, source))
    if match is None:
        raise InputError(f"corpus {source!r}: a dataset of the hub is named org/name or org/name:config; or {WAYS_ON}")
    dataset, config = match["dataset"], match["config"]
    _reach(source, dataset)
    builder = _prepared(source, dataset, config)
    columns = {split: _column(source, builder, split) for split in ("train", "validation")}
    group = articles if dataset == WIKITEXT else documents
    return TextSource(
        name=source,
        identity=f"hub {dataset} {builder.config.name} {builder.hash}",
        train=lambda: group(columns["train"]),
        validation=lambda: group(columns["validation"]),
    )


def documents(rows: Iterable[str]) -> Iterator[str]:
    """One document a row, without empty ones."""
    return (row for row in rows if row.strip())


def articles(lines: Iterable[str]) -> Iterator[str]:
    """WikiText has one line a row; a document is an article, from its title `` = Title = `` to the next."""
    article: list[str] = []
    for line in lines:
        if ARTICLE.fullmatch(line) and article:
            yield "".join(article)
            article = []
        if line.strip():
            article.append(line)
    if article:
        yield "".join(article)


def _reach(source: str, dataset: str) -> None:
    """Ask the hub once; without an answer go on with what this machine has of the dataset, or end here."""
    import datasets

    try:
        HfApi().dataset_info(dataset, timeout=PROBE_SECONDS)
    except GatedRepoError as error:
        raise InputError(f"corpus {source!r}: the hub asks for a login (`hf auth login`); or {WAYS_ON}") from error
    except RepositoryNotFoundError as error:
        raise InputError(f"corpus {source!r}: no such file here and no such dataset on the hub; {WAYS_ON}") from error
    except (HTTPError, OfflineModeIsEnabled) as error:
        copy = Path(datasets.config.HF_DATASETS_CACHE) / dataset.replace("/", "___")
        if not copy.is_dir():
            reason = f"not on this machine, and the hub is out of reach ({type(error).__name__})"
            raise InputError(f"corpus {source!r}: {reason}; {WAYS_ON}") from error
        datasets.config.HF_HUB_OFFLINE = True  # `datasets` need not find out again, with its many retries


def _prepared(source: str, dataset: str, config: str | None) -> Any:
    from datasets import load_dataset_builder
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    try:
        builder = load_dataset_builder(dataset, config)
        builder.download_and_prepare()
    except (ValueError, OSError, HTTPError, DatasetNotFoundError, DatasetGenerationError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"corpus {source!r}: cannot be loaded from the hub: {reason}; {WAYS_ON}") from error
    return builder


def _column(source: str, builder: Any, split: str) -> Iterable[str]:
    splits = sorted(builder.info.splits)
    if split not in splits:
        raise InputError(
            f"corpus {source!r}: it has no {split} split (only {', '.join(splits)}), and candidates are compared on "
            f"text they were not trained on; {WAYS_ON}"
        )
    rows = builder.as_dataset(split=split)
    if "text" not in rows.column_names:
        raise InputError(f"corpus {source!r}: no column 'text' (only {', '.join(rows.column_names)}); {WAYS_ON}")
    column: Iterable[str] = rows["text"]
    return column
