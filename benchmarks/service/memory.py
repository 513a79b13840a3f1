"""Measures the peak memory of a search with a teacher of gpt2-medium's shape: a dry run, and one exported trial.

    python -m benchmarks.service.memory

The teacher has random weights. The benchmark runs the real command line and samples the resident memory of it and all
its child processes, including Ray's. Shared pages are counted once per process, so the result is an upper bound.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from trials.teacher.source import MINI

INTERVAL = 0.2  # seconds between samples
SMALL_TRIAL = {
    "trials": 1,
    "workers": 1,
    "tokens-per-trial": 2_048,
    "batch-tokens": 1_024,
    "sequence-length": 256,
    "validation-tokens": 2_048,
    "calibration-samples": 8,
    "finalists": 0,
}


def make_teacher(folder: Path) -> None:
    """Write a checkpoint of gpt2-medium's shape with random weights and the tokenizer of ``mini``, which fits it."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=24, n_embd=1024, n_head=16))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(MINI).save_pretrained(folder)


def tree_bytes(process: psutil.Process) -> int:
    """Resident bytes of a process and its descendants. Processes that end in the meantime are not counted."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def measure(arguments: list[str]) -> tuple[float, int]:
    """(seconds, peak bytes) of the command line with ``arguments``. Raises CalledProcessError when it fails."""
    command = [sys.executable, "-m", "nas.search", *arguments]
    started, peak = time.perf_counter(), 0
    with subprocess.Popen(command) as child:
        process = psutil.Process(child.pid)
        while child.poll() is None:
            peak = max(peak, tree_bytes(process))
            time.sleep(INTERVAL)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    return time.perf_counter() - started, peak


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        teacher, output = Path(folder, "gpt2-medium-shape"), Path(folder, "output")
        make_teacher(teacher)
        common = ["--model", str(teacher), "--budget", "260M", "--corpus", "stdlib", "--output", str(output)]
        small = [part for name, value in SMALL_TRIAL.items() for part in (f"--{name}", str(value))]
        runs = {"dry run": [*common, "--dry-run"], "one trial, exported": [*common, *small]}
        figures = {name: measure(arguments) for name, arguments in runs.items()}
    for name, (seconds, peak) in figures.items():
        print(f"{name:<22}{seconds:8.0f} s{peak / 2**30:8.2f} GiB at the peak")


if __name__ == "__main__":
    main()
