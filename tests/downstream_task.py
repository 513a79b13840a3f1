"""A multiple-choice task of lm-evaluation-harness: a file, and its data beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from conftest import TEXT

WORDS = [" student", " teacher", " neuron stays when it matters", " layer"]
ROWS = [
    {"question": TEXT[10 * place : 10 * place + 30], "choices": WORDS[: 2 + place % 3], "answer": place % 2}
    for place in range(9)
]


def written(folder: Path, **changes: Any) -> Path:
    """A task file with its data beside it, by a relative path."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    shares = [{"metric": one, "aggregation": "mean", "higher_is_better": True} for one in ("acc", "acc_norm")]
    config = {
        "task": "as the file calls it",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "num_fewshot": 3,
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": shares,
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**config, **changes}))
    return path
