"""The wall time of `make search`, cold and warm.

    python -m benchmarks.service.cold_warm [FOLDER]

Cold: an empty output folder. Warm: another study in the same folder, so that tokens, importance scores and the
teacher's own loss are found in the cache and every trial is run again. Continued: the warm command once more, which
finds its study complete. Each is the real `make search`; the environment is installed before. FOLDER, which must not
exist, keeps what the searches leave.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path


def search(folder: str, study: str) -> float:
    """Seconds of one `make search`."""
    started = time.perf_counter()
    subprocess.run(["make", "search", f"ARGS=--output {folder} --study {study}"], check=True)
    return time.perf_counter() - started


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = str(Path(sys.argv[1]).resolve()) if len(sys.argv) > 1 else temporary
        cold, warm = search(folder, "cold"), search(folder, "warm")
        continued = search(folder, "warm")
    print(f"cold       {cold:7.0f} s")
    print(f"warm       {warm:7.0f} s   {warm / cold:.2f} of cold")
    print(f"continued  {continued:7.0f} s   {continued / cold:.2f} of cold")


if __name__ == "__main__":
    main()
