"""How long until training starts: of a search, cold and warm, and of the first and the second trial on a worker.

    python -m benchmarks.startup --model mini --budget 60%

Runs `python -m nas.search` with the settings that are given, two trials on one worker, twice in one output folder:
with nothing in the cache, and as another study that finds everything there. Students are refitted and read on little
text, so that a trial's time until its first loss is that of starting it: the process of the worker, what it imports,
the teacher.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time

FLAGS = "--trials 2 --workers 1 --sampler random --scheduler none --finalists 0 --tokens-per-trial 1024"
TEXT = "--calibration-samples 8 --validation-tokens 2048"
LINE = re.compile(r"trial \d+ .*(: started|val loss \S+ before retraining)")


def search(further: list[str], study: str) -> list[float]:
    """Seconds of one search from its start to: first trial started, read, second trial started, read."""
    command = [sys.executable, "-m", "nas.search", *further, *FLAGS.split(), *TEXT.split(), "--study", study]
    started, seconds = time.perf_counter(), []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if LINE.search(line):
                seconds.append(time.perf_counter() - started)
    if running.returncode or len(seconds) != 4:
        raise SystemExit(f"the search ended with {running.returncode} after {len(seconds)} of 4 readings")
    return seconds


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        further = [*sys.argv[1:], "--output", folder]
        for study in ("cold", "warm"):
            times = search(further, study)
            first, second = times[1] - times[0], times[3] - times[2]
            print(f"{study:<6}{times[0]:7.1f} s to the first trial, {times[1]:.1f} s to its first loss", end="; ")
            print(f"the first trial starts in {first:.2f} s, the second in {second:.2f} s ({second / first:.2f})")


if __name__ == "__main__":
    main()
