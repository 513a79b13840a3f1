"""Measures the wall time of `make search`, cold, warm and continued.

    python -m benchmarks.service.cold_warm [FOLDER]

- Cold: the output folder is empty.
- Warm: another study in the same folder. Tokens, importance scores and the teacher's loss come from the cache, and
  every trial runs again.
- Continued: the warm command once more. Its study is already complete.

Each is the real `make search`, with the environment already installed. FOLDER, which must not exist, keeps the results
of the searches.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path


def search(folder: str, study: str) -> float:
    """Seconds of one `make search`."""
    started = time.perf_counter()
    subprocess.run(["make", "search", f"ARGS=--output {folder} --study {study}"], check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="keeps the results; must not exist")
    given = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        folder = str(given.resolve()) if given else temporary
        cold, warm = search(folder, "cold"), search(folder, "warm")
        continued = search(folder, "warm")
    print(f"cold       {cold:7.0f} s")
    print(f"warm       {warm:7.0f} s   {warm / cold:.2f} of cold")
    print(f"continued  {continued:7.0f} s   {continued / cold:.2f} of cold")


if __name__ == "__main__":
    main()
