"""The real command line in a subprocess, for the tests of this folder."""

from __future__ import annotations

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
