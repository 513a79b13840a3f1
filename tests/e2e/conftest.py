"""The settings of a search that takes seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import TRIALS, WORDS


@pytest.fixture(scope="module")
def small(tiny_teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The settings of a search that takes seconds."""
    folder = tmp_path_factory.mktemp("text")
    text, other, unseen = (folder / f"{name}.txt" for name in ("corpus", "other", "unseen"))
    passages = folder / "passages.jsonl"
    text.write_text("\n\n".join(" ".join(WORDS[i % 7 :] + WORDS[: i % 11]) for i in range(400)))
    other.write_text("\n\n".join(" ".join(WORDS[i % 5 :] + WORDS[: i % 13]) for i in range(200)))
    unseen.write_text(" ".join(WORDS[i % 3 :][i % 16 % 14] for i in range(300)))
    passages.write_text("".join(json.dumps({"text": " ".join(WORDS[i:])}) + "\n" for i in range(9)))
    tests = ["--test", f"unseen={unseen},lambada={passages}"]
    sizes = ["--tokens-per-trial", 2048, "--sequence-length", 64, "--batch-tokens", 256, "--validation-tokens", 1024]
    model = ["--model", tiny_teacher_folder, "--corpus", text, "--calibration-samples", 8, "--tolerance", 0.1]
    rest = ["--validation", other, "--sampler", "screen", "--trials", TRIALS, "--workers", 1, "--cpus-per-trial", 1]
    return [*model, *sizes, *tests, *rest]
