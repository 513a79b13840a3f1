"""The command ``python -m nas.evaluate MODEL``: evaluates causal language models by the metrics of published tables."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from nas.cluster.signals import forget_interruption
from nas.display.console import console_for
from nas.display.readings_table import readings_table
from nas.planning.parser import Parser
from search_spaces.errors import InputError
from trials.evaluate.reading import Reading
from trials.evaluate.tasks import YAML, HarnessTask, evaluate_tasks, harness_task, open_tasks
from trials.storage.redact import redacted
from trials.text.evaluation_text import EFFICIENCY, KNOWN, PYTHON_DOCS, TextTask, text_task

if TYPE_CHECKING:  # torch and transformers take seconds to import, so the arguments are checked first
    from transformers import PreTrainedModel

DONE, WRONG_INPUT, INTERRUPTED = 0, 2, 130
NEARLY = 0.9  # likeness of a mistyped name of a text; the harness' wikitext and our wikitext-2 are less alike
MOST_SEQUENCES = 2**40  # of a batch
DEFAULT_TASKS = f"wikitext-2,ptb,lambada,{EFFICIENCY}"
EPILOG = f"""\
Tasks, separated by commas: {", ".join(KNOWN)} (from the hub), any of them from a file
(wikitext-2=./wiki.test.raw), your own text (name=path, .jsonl rows or plain text), and {EFFICIENCY}.
Any other name is a task of lm-evaluation-harness (extra eval), zero-shot: hellaswag,arc_easy,piqa:200 (its first 200
documents), or mine=./mine.yaml.
docs/evaluation.md explains each figure and who publishes it.
Exit codes: 0 done, 2 wrong input, 130 interrupted."""


@dataclass(frozen=True)
class Request:
    """The parsed command line. ``tasks`` are in the order of the table, and None among them means efficiency."""

    model: str
    tasks: tuple[TextTask | HarnessTask | None, ...]
    length: int | None
    stride: int | None
    batch: int
    dtype: str | None
    own_code: bool
    as_json: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    try:
        request = parse_arguments(sys.argv[1:] if arguments is None else arguments)
        document = evaluate(request, console_for(stderr=True))
    except InputError as error:
        print(f"error: {redacted(str(error))}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        forget_interruption()
        print("interrupted; no results", file=sys.stderr)
        return INTERRUPTED
    if request.as_json:
        print(json.dumps(document.to_dict(), indent=2, allow_nan=False))
    else:
        _print(document, console_for(stderr=False))
    return DONE


@dataclass(frozen=True)
class Document:
    """The result: facts about the model and the run, and every reading."""

    about: dict[str, Any]
    readings: list[Reading]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**self.about, "readings": [reading.to_dict() for reading in self.readings]}


def parse_arguments(arguments: Sequence[str]) -> Request:
    """The request. Raises InputError for every mistake that can be found without loading anything."""
    parser = Parser(
        prog="python -m nas.evaluate",
        description="Evaluate a causal language model: perplexities by the conventions of published tables, and costs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="hub name, folder of a checkpoint, .gguf file, or mini")
    parser.add_argument(
        "--tasks", default=DEFAULT_TASKS, metavar="A,B=PATH,...", help=f"what to measure [{DEFAULT_TASKS}]"
    )
    parser.add_argument("--length", type=int, metavar="N", help="tokens in a window [model's positions, at most 2,048]")
    parser.add_argument(
        "--stride", type=int, metavar="N", help="tokens from one window to the next [512, or half the length]"
    )
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="sequences in a batch for throughput [8]")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="number format [float32; bfloat16 on a GPU]"
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that comes with the model")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    given = parser.parse_args(arguments)
    tasks = _tasks(given.tasks)
    sizes = (given.length, given.stride, given.batch, given.dtype)
    return Request(given.model, tasks, *sizes, given.trust_remote_code, given.json)


def _tasks(argument: str) -> tuple[TextTask | HarnessTask | None, ...]:
    names = [part.strip() for part in argument.split(",") if part.strip()]
    tasks = tuple(None if name == EFFICIENCY else _task(name) for name in names)
    labels = [task.name if task else EFFICIENCY for task in tasks]
    if not tasks or len(set(labels)) < len(labels) or any(task and task.name == EFFICIENCY for task in tasks):
        raise InputError(f"--tasks {argument!r}: give at least one task, each once, and {EFFICIENCY} without =PATH")
    return tasks


def _task(argument: str) -> TextTask | HarnessTask:
    """A text that has a known name or a file, or else a task of lm-evaluation-harness."""
    name, _, path = argument.partition("=")
    if path.endswith(YAML) or not (path or name in (*KNOWN, PYTHON_DOCS)):
        if close := get_close_matches(name, (*KNOWN, PYTHON_DOCS), 1, cutoff=NEARLY):
            raise InputError(f"task {name!r}: unknown; did you mean {close[0]}?")
        return harness_task(argument, "--tasks")
    return text_task(argument)


def evaluate(request: Request, console: Console) -> Document:
    """Load the model and evaluate it. Progress goes to ``console``. Raises InputError."""
    started = time.perf_counter()
    import torch

    from trials.evaluate.efficiency import Workload, efficiency
    from trials.evaluate.evaluation import checked_length, checked_stride, evaluate_texts
    from trials.teacher.causal_lm import DEFAULT_DTYPES, load_causal_lm, resolve_causal_lm
    from trials.text.evaluation_text import open_text

    path = resolve_causal_lm(request.model, request.own_code)
    texts = [open_text(task) for task in request.tasks if isinstance(task, TextTask)]
    downstream = open_tasks(tuple(task for task in request.tasks if isinstance(task, HarnessTask)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = request.dtype or DEFAULT_DTYPES[device]
    model, tokenizer = load_causal_lm(path, device, dtype, request.own_code)
    length = checked_length(model, request.length)
    checked_stride(length, request.stride)
    readings: list[Reading] = []
    if None in request.tasks:  # before the texts, so that the peak memory does not include theirs
        with console.status("timing"), _enough_memory(request.batch):
            readings += efficiency(model, path, Workload.within(length, request.batch))
    with _progress(console) as progress:
        readings += evaluate_texts(model, tokenizer, texts, length, request.stride, progress)
    if downstream:
        with console.status(f"answering {', '.join(one.task.name for one in downstream)}"):
            readings += evaluate_tasks(model, tokenizer, downstream, dtype)
    order = [task.name if task else EFFICIENCY for task in request.tasks]
    # The tasks of a group have names of their own; they come last.
    readings.sort(key=lambda reading: order.index(reading.task) if reading.task in order else len(order))
    about = {"model": request.model, "path": str(path), **_about(model), "device": _device(device), "dtype": dtype}
    return Document({**about, "seconds": round(time.perf_counter() - started, 1)}, readings)


@contextmanager
def _enough_memory(batch: int) -> Iterator[None]:
    """Raise InputError when the memory does not hold ``batch`` sequences."""
    too_many = InputError(f"batch {batch}: more sequences than the memory holds; give a smaller --batch")
    if batch > MOST_SEQUENCES:
        raise too_many
    try:
        yield
    except RuntimeError as error:  # torch has a class of its own for the memory of a GPU only
        if "memory" not in str(error):
            raise
        raise too_many from error


def _about(model: PreTrainedModel) -> dict[str, Any]:
    return {"class": type(model).__name__, "parameters": sum(weight.numel() for weight in model.parameters())}


def _device(device: str) -> str:
    import torch

    threads = torch.get_num_threads()
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {threads} thread{'s' * (threads != 1)}"


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A progress bar with the tokens read and the time left; nothing without a terminal."""
    columns = TextColumn("reading"), BarColumn(), TextColumn("{task.completed:,.0f} of {task.total:,.0f} tokens")
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("reading", total=1)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print(document: Document, console: Console) -> None:
    about = document.about
    what = f"{about['class']}, {about['parameters']:,} parameters, {about['dtype']} on {about['device']}"
    console.print(f"[bold]{about['model']}[/bold]: {what}\n", soft_wrap=True)
    console.print(readings_table(document.readings))
    console.print(f"\n{about['seconds']} s; figures of different conventions are not comparable: docs/evaluation.md")


if __name__ == "__main__":
    sys.exit(main())
