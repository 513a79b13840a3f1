"""A search on two hosts whose network is cut for a while. A program for test_growing_cluster.

    python on_cut_network.py TEACHER TEXT FOLDER SECONDS

It must have processes and a network of its own, in which it makes a second host: a network namespace behind a pair of
virtual interfaces. The search is ``STUDY`` in FOLDER. Prints one JSON object on its last line.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from small_search import ROOT, arguments

HEAD, OTHER, PORT = "10.77.0.1", "10.77.0.2", 6379
HOST = "other"  # the name of the namespace
START = ["ray", "start", "--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats"]
STUDY = "cut"
SETTINGS = {"scheduler": "none", "trials": 4, "tokens_per_trial": 16_384, "sampler": "random"}
FIRST = re.compile(r"trial \d .* after 4,096 of")


def shell(*command: str) -> None:
    """Run ``command``, which must succeed."""
    subprocess.run(command, check=True, capture_output=True)


def make_hosts() -> None:
    """Make the second host, and start Ray on both."""
    shell("mount", "-t", "tmpfs", "tmpfs", "/run")  # where namespaces have their names
    shell("ip", "netns", "add", HOST)
    shell("ip", "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", HOST)
    shell("ip", "addr", "add", f"{HEAD}/24", "dev", "near")
    shell("ip", "link", "set", "near", "up")
    there = "ip", "netns", "exec", HOST
    shell(*there, "ip", "addr", "add", f"{OTHER}/24", "dev", "far")
    shell(*there, "ip", "link", "set", "far", "up")
    shell(*there, "ip", "link", "set", "lo", "up")
    shell(*START, "--head", f"--node-ip-address={HEAD}", f"--port={PORT}", "--include-dashboard=false")
    shell(*there, *START, f"--node-ip-address={OTHER}", f"--address={HEAD}:{PORT}")


def main(teacher: Path, text: Path, folder: Path, seconds: float) -> dict[str, Any]:
    """See the head of this file."""
    make_hosts()
    flags = arguments(teacher, text, folder, STUDY, address=f"{HEAD}:{PORT}", **SETTINGS)
    lines, cut = [], False
    with subprocess.Popen(
        [sys.executable, "-m", "nas.search", *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as search:
        assert search.stdout
        for line in search.stdout:
            lines.append(line)
            if not cut and FIRST.search(line):
                cut = True
                shell("ip", "link", "set", "near", "down")
                time.sleep(seconds)
                shell("ip", "link", "set", "near", "up")
    return {"code": search.returncode, "cut": cut, "output": "".join(lines)}


if __name__ == "__main__":
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    print("\n" + json.dumps(main(*map(Path, sys.argv[1:4]), float(sys.argv[4]))))
