"""The real command line in a subprocess, for the tests of this folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TRIALS = 4
SENTENCE = "prune the teacher keep a head drop a layer train the student on tokens search again"
WORDS = SENTENCE.split()


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """``python -m nas.search`` with the arguments, from the project's folder."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("NAS_", "MLFLOW_", "RAY_"))}
    return subprocess.run(
        [sys.executable, "-m", "nas.search", *map(str, arguments)],
        cwd=ROOT,
        env={**clean, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )


def small_settings(teacher: Path, folder: Path) -> list[object]:
    """The settings of a search that takes seconds."""
    text, other, unseen = (folder / f"{name}.txt" for name in ("corpus", "other", "unseen"))
    passages = folder / "passages.jsonl"
    text.write_text("\n\n".join(" ".join(WORDS[i % 7 :] + WORDS[: i % 11]) for i in range(400)))
    other.write_text("\n\n".join(" ".join(WORDS[i % 5 :] + WORDS[: i % 13]) for i in range(200)))
    unseen.write_text(" ".join(WORDS[i % 3 :][i % 16 % 14] for i in range(300)))
    passages.write_text("".join(json.dumps({"text": " ".join(WORDS[i:])}) + "\n" for i in range(9)))
    tests = ["--test", f"unseen={unseen},lambada={passages}", "--test-tokens", 1024]  # "unseen" is shorter
    sizes = ["--tokens-per-trial", 2048, "--sequence-length", 64, "--batch-tokens", 256, "--validation-tokens", 1024]
    model = ["--model", teacher, "--corpus", text, "--calibration-samples", 8, "--tolerance", 0.1]
    rest = ["--validation", other, "--sampler", "screen", "--trials", TRIALS, "--workers", 1, "--cpus-per-trial", 1]
    return [*model, *sizes, *tests, *rest]
