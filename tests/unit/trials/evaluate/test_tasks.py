"""Downstream tasks: the harness' figures against the definition, local files, groups, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from downstream_task import ROWS, written
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import trials.evaluate.tasks as harness
from search_spaces.errors import InputError
from trials.evaluate.tasks import (
    HarnessTask,
    evaluate_tasks,
    harness_task,
    names_of_tasks,
    open_tasks,
    parse_test_tasks,
)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The data sets that `datasets` prepares, out of the home folder."""
    import datasets.config

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = before


def expected(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]) -> list[float]:
    """The shares of questions whose right choice has the highest log-probability, in all and by character."""
    right = []
    for row in rows:
        totals = []
        for choice in row["choices"]:
            context = tokenizer(row["question"])["input_ids"]
            whole = tokenizer(row["question"] + choice)["input_ids"]
            assert whole[: len(context)] == context
            logs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            places = range(len(context), len(whole))
            totals.append(math.fsum(float(logs[place - 1, whole[place]]) for place in places))
        by_length = [total / len(choice) for total, choice in zip(totals, row["choices"], strict=True)]
        right.append([max(range(len(one)), key=one.__getitem__) == row["answer"] for one in (totals, by_length)])
    return [sum(one) / len(rows) for one in zip(*right, strict=True)]


@pytest.mark.parametrize("limit", [None, 4])
def test_figures_are_those_of_the_definition_zero_shot(
    tiny_gpt2: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, limit: int | None
) -> None:
    opened = open_tasks((HarnessTask("mine", written(tmp_path), limit),))
    readings = evaluate_tasks(tiny_gpt2, tiny_tokenizer, opened, "float32")
    rows = ROWS[:limit]
    assert [(one.task, one.metric, one.documents) for one in readings] == [
        ("mine", metric, len(rows)) for metric in ("acc", "acc_norm")
    ]
    assert [one.value for one in readings] == pytest.approx(expected(tiny_gpt2, tiny_tokenizer, rows))
    errors = [math.sqrt(one.value * (1 - one.value) / (len(rows) - 1)) for one in readings]
    assert [one.stderr for one in readings] == pytest.approx(errors)
    assert all("zero-shot" in one.convention for one in readings)
    assert all(("the first 4 documents" in one.convention) == (limit == 4) for one in readings)


def test_the_content_of_a_task_changes_with_its_data_and_its_questions(tmp_path: Path) -> None:
    def content(task: HarnessTask) -> str:
        open_tasks.cache_clear()
        return open_tasks((task,))[0].content

    task = HarnessTask("mine", written(tmp_path))
    first = content(task)
    assert content(task) == first
    assert content(HarnessTask("mine", task.file, 3)) != first
    written(tmp_path, doc_to_text="Q: {{question}}")
    assert content(task) != first
    written(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    assert content(task) != first


def test_metrics_have_the_names_of_the_harness_and_no_words_as_numbers() -> None:
    result = {"alias": "a", "sample_len": 3, "acc,none": 0.5, "acc_stderr,none": 0.1}
    result |= {"exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": "N/A", "bypass,none": "N/A"}
    assert harness._metrics(result) == [("acc", 0.5, 0.1), ("exact_match strict-match", 0.25, None)]


@pytest.mark.parametrize(
    ("argument", "task"),
    [("hellaswag", HarnessTask("hellaswag")), ("arc_easy:200", HarnessTask("arc_easy", None, 200))],
)
def test_arguments_name_tasks_and_how_much_of_them(argument: str, task: HarnessTask) -> None:
    assert harness_task(argument, "--tasks") == task
    assert parse_test_tasks(f"{argument}, piqa") == (task, HarnessTask("piqa"))
    assert parse_test_tasks(None) == ()


@pytest.mark.parametrize(
    "argument", ["", "a b", "piqa:", "piqa:0", "piqa:-1", "piqa:x", "mine=", "mine=none.yaml", "mine=rows.jsonl"]
)
def test_a_wrong_argument_is_refused_in_one_line(argument: str) -> None:
    with pytest.raises(InputError, match="--test-tasks") as caught:
        parse_test_tasks(argument)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="each once"):
        parse_test_tasks("piqa,piqa:20")


def test_without_the_harness_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"--tasks piqa: the package lm_eval is not installed; install llm-nas\[eval\]"
    ):
        harness_task("piqa", "--tasks")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset_kwargs": {"data_files": {"test": "gone.jsonl"}}}, "task mine: its data is out of reach.*gone.jsonl"),
        ({"output_type": "guess"}, "task mine: .*mine.yaml defines no task that lm-evaluation-harness can run"),
        ({"test_split": "exam"}, "task mine: .*mine.yaml defines no task"),
    ],
)
def test_a_file_that_is_no_task_or_has_no_data_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        open_tasks((HarnessTask("mine", written(tmp_path, **changes)),))
    assert "\n" not in str(caught.value)


def test_data_out_of_reach_and_names_of_nothing_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Manager:
        def load(self, names: list[str]) -> Any:
            raise ConnectionError("no hub") if names == ["piqa"] else KeyError(names[0])

    monkeypatch.setattr(harness, "_manager", Manager)
    with pytest.raises(InputError, match=r"task piqa: its data is out of reach \(no hub\); give access to the hub, or"):
        open_tasks((HarnessTask("piqa"),))
    with pytest.raises(InputError, match=r"task hellaswag: lm-evaluation-harness cannot load it .KeyError"):
        open_tasks((HarnessTask("hellaswag"),))
    with pytest.raises(InputError, match=r"--tasks 'arc_eazy': not a task .*; did you mean arc_easy\?"):
        harness_task("arc_eazy", "--tasks")


def test_names_are_found_in_the_files_of_the_harness() -> None:
    wanted = {"hellaswag", "arc_easy", "piqa", "winogrande", "mmlu", "mmlu_abstract_algebra", "ai2_arc", "gsm8k"}
    assert wanted <= names_of_tasks()
    assert not {"x", "wikitext2", "mine"} & names_of_tasks()
