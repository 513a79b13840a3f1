"""Downstream tasks by lm-evaluation-harness (the extra ``eval``), such as HellaSwag: zero-shot, with standard errors.

The harness builds the prompts and computes the metrics, so figures compare with those that others publish by it. It is
imported where it is used: it takes seconds, and torch with it.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.errors import InputError
from trials.compress.extras import check_installed
from trials.evaluate.reading import HARNESS, Reading
from trials.storage.cache import digest
from trials.text.text_source import local_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "lm_eval"
NAME = re.compile(r"[\w.-]+")
LISTED = re.compile(
    rb"""^\s*(?:-\s*)?(?:["']?(?:task|group|tag)["']?\s*:\s*)?["']?([\w.-]+)["']?\s*(?:\#.*)?$""", re.MULTILINE
)
OTHER = (".py", ".pyc", ".md", ".json", ".jsonl", ".txt", ".csv")  # files beside YAML, some of which has no suffix
YAML = (".yaml", ".yml")
BATCHES = {"cpu": 8, "cuda": 64}  # requests in a forward pass; figures do not depend on it
FOLDERS = ("data_files", "data_dir")  # arguments of a data set that are paths
BOOTSTRAP = 1000  # draws for the standard error of a metric that is no mean; that of a mean is in closed form
SHARES = ("acc", "acc_norm", "exact_match", "f1")  # metrics that are shares


@dataclass(frozen=True)
class HarnessTask:
    """A task of the harness. ``file`` is the YAML that defines it; None if it is one of the harness' own.

    ``limit`` is how many of its documents are read, from the first; None means all.
    """

    name: str
    file: Path | None = None
    limit: int | None = None


def harness_task(argument: str, flag: str) -> HarnessTask:
    """The task of ``name``, ``name:200`` (its first 200 documents) or ``name=task.yaml``, an argument of ``flag``.

    Raises InputError when the harness is not installed, for a wrong form, for a file that is not there, and for a name
    that the harness does not know.
    """
    words, equals, path = argument.partition("=")
    name, colon, limit = words.partition(":")
    if not NAME.fullmatch(name) or (equals and not path) or (colon and not (limit.isdecimal() and int(limit))):
        raise InputError(
            f"{flag} {argument[:80]!r}: give a task of lm-evaluation-harness, such as hellaswag, hellaswag:200 for its "
            "first 200 documents, or a file as name=task.yaml"
        )
    file = local_path(path) if equals else None
    if file and not (file.suffix in YAML and os.path.isfile(file)):
        raise InputError(f"{flag} {name}: no such YAML file: {path}; give one that defines a task of the harness")
    check_installed(PACKAGE, f"{flag} {name}")
    if file is None and name not in names_of_tasks():
        close = get_close_matches(name, names_of_tasks(), 1)
        also = f"; did you mean {close[0]}?" if close else "; `lm-eval ls tasks` lists them"
        raise InputError(f"{flag} {name!r}: not a task of lm-evaluation-harness{also}")
    return HarnessTask(name, file.resolve() if file else None, int(limit) if limit else None)


@lru_cache(maxsize=1)
def names_of_tasks() -> frozenset[str]:
    """The names of tasks, groups and tags in the harness' files, and some other words.

    The harness' own index has no other words, but reads the files as YAML. That takes twenty times as long, and torch.
    """
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None, "`check_installed` comes first"
    assert spec.origin is not None, "a package with code has a file"
    files = (
        one for one in (Path(spec.origin).parent / "tasks").rglob("*") if one.suffix not in OTHER and one.is_file()
    )
    return frozenset(name.decode() for file in files for name in LISTED.findall(file.read_bytes()))


def parse_test_tasks(argument: str | None) -> tuple[HarnessTask, ...]:
    """The tasks of ``--test-tasks``, separated by commas.

    Raises InputError as `harness_task` does, and for a repeated name.
    """
    parts = [one.strip() for one in argument.split(",") if one.strip()] if argument else []
    tasks = [harness_task(one, "--test-tasks") for one in parts]
    names = [one.name for one in tasks]
    if argument is not None and (not names or len(set(names)) < len(names)):
        raise InputError(f"--test-tasks {argument!r}: give at least one task, each once")
    return tuple(tasks)


@dataclass(frozen=True, eq=False)
class OpenedTask:
    """A task with its data. ``loaded`` is the harness' form; ``content`` is a digest of the task and its documents."""

    task: HarnessTask
    loaded: Any
    content: str

    @property
    def leaves(self) -> Mapping[str, Any]:
        """The harness' tasks by name: one, or those of a group."""
        found: Mapping[str, Any] = self.loaded["tasks"]
        return found


@lru_cache(maxsize=4)
def open_tasks(tasks: tuple[HarnessTask, ...]) -> tuple[OpenedTask, ...]:
    """The tasks with their data, in order. Data comes from the hub, or from the files that a task names.

    Raises InputError for a name that the harness does not know, a file that is no task, and data out of reach.
    """
    return tuple(_opened(one) for one in tasks)


def evaluate_tasks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[OpenedTask], dtype: str
) -> list[Reading]:
    """The harness' metrics of ``model`` on ``tasks``, zero-shot, in their order, each with its standard error.

    The model stays on its device; ``dtype`` names its number format. Of a group, the metrics of the group are read if
    it has any, otherwise those of its tasks.
    """
    from lm_eval.models.huggingface import HFLM

    with _quiet():
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCHES[model.device.type])
        return [reading for one in tasks for reading in _readings(wrapped, one, dtype)]


def _readings(wrapped: Any, opened: OpenedTask, dtype: str) -> Iterator[Reading]:
    from lm_eval.evaluator import evaluate

    limit = opened.task.limit
    found = evaluate(wrapped, opened.loaded, limit=limit, log_samples=False, bootstrap_iters=BOOTSTRAP)
    results: Mapping[str, Mapping[str, Any]] = found["results"]
    whole = _metrics(results.get(opened.task.name, {}))
    first = f", the first {limit:,} documents" if limit else ""
    for name in [opened.task.name] if whole else opened.leaves:
        for metric, value, error in _metrics(results[name]):
            yield Reading(
                task=name,
                convention=f"{HARNESS} {version(PACKAGE)}, zero-shot{first}",
                metric=metric,
                value=value,
                unit="share" if metric.partition(" ")[0] in SHARES else "",
                documents=results[name].get("sample_len"),
                dtype=dtype,
                stderr=error,
            )


def _metrics(result: Mapping[str, Any]) -> list[tuple[str, float, float | None]]:
    """The name, the value and the standard error of each metric in one of the harness' results.

    Its keys are such as ``acc,none`` and ``exact_match,strict-match``, where the second part is a filter of answers.
    """
    found = []
    for key, value in result.items():
        metric, comma, answers = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = result.get(f"{metric}_stderr,{answers}")
            name = metric if answers == "none" else f"{metric} {answers}"
            found.append((name, float(value), float(error) if isinstance(error, int | float) else None))
    return found


def _opened(task: HarnessTask) -> OpenedTask:
    from datasets.exceptions import DatasetsError

    with _quiet():
        try:
            loaded = _own_manager().load([_config(task)]) if task.file else _manager().load([task.name])
            leaves = loaded["tasks"].values()
            for one in leaves:
                one.set_config(key="num_fewshot", value=0)
            documents = [json.dumps(document, default=str) for one in leaves for document in one.eval_docs]
        except (OSError, DatasetsError) as error:
            raise InputError(_out_of_reach(task, error)) from error
        except Exception as error:  # the harness runs a task's own code and templates, which raise anything
            raise InputError(_not_a_task(task, error)) from error
    settings = [str(sorted(one.dump_config().items())) for one in leaves]
    return OpenedTask(task, loaded, digest(task.name, task.limit or 0, version(PACKAGE), *settings, *documents))


@lru_cache(maxsize=1)
def _manager() -> Any:
    """The harness' index of its own tasks. It reads thousands of files, which takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


@lru_cache(maxsize=1)
def _own_manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=False)


def _config(task: HarnessTask) -> dict[str, Any]:
    """The definition in a task's file, under the task's name. Paths of data in it are relative to the file."""
    from lm_eval.tasks._yaml_loader import load_yaml

    assert task.file is not None, "a task of the user's has a file"
    config = dict(load_yaml(task.file))
    config["task"] = task.name
    arguments = {
        name: _absolute(value, task.file.parent) if name in FOLDERS else value
        for name, value in (config.get("dataset_kwargs") or {}).items()
    }
    return {**config, "dataset_kwargs": arguments} if arguments else config


def _absolute(value: Any, folder: Path) -> Any:
    """``value``, a path or a list or mapping of paths, with those that are files beside a task made absolute."""
    if isinstance(value, Mapping):
        return {name: _absolute(one, folder) for name, one in value.items()}
    if isinstance(value, list):
        return [_absolute(one, folder) for one in value]
    return str(folder / value) if "://" not in value else value


def _out_of_reach(task: HarnessTask, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    way = "correct data_files in it" if task.file else f"or give a task with local data, {task.name}=./{task.name}.yaml"
    hub = "" if task.file else "give access to the hub, "
    return f"task {task.name}: its data is out of reach ({reason}); {hub}{way} (docs/evaluation.md)"


def _not_a_task(task: HarnessTask, error: Exception) -> str:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if task.file:
        return f"task {task.name}: {task.file} defines no task that lm-evaluation-harness can run ({reason})"
    return f"task {task.name}: lm-evaluation-harness cannot load it ({reason})"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars and the log of the harness, which would mix with our own."""
    loggers = [logging.getLogger(name) for name in (PACKAGE, "datasets")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
