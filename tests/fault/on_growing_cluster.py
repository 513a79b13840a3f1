"""A search on a cluster whose nodes an autoscaler brings. A program for test_growing_cluster.

    python on_growing_cluster.py TEACHER FOLDER

It must have processes and a network of its own: `AutoscalingCluster` begins and ends with `ray stop --force`. The head
has no CPU. Two nodes of one CPU may come, and two with GPUs, of which only a dry run hears. Prints one JSON object on
its last line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

import ray
from ray.cluster_utils import AutoscalingCluster
from small_search import ROOT, arguments, write_text

from nas.cluster.session import ray_session
from nas.planning.settings import parse_arguments

STORE = {"object_store_memory": 10**8}
NODES = {
    "small": {"resources": {"CPU": 1, **STORE}, "node_config": {}, "max_workers": 2},
    "large": {"resources": {"CPU": 32, "GPU": 8, **STORE}, "node_config": {}, "max_workers": 2},
}
SECONDS_IDLE = 3.0
PROVIDER = {
    "type": "fake_multinode",
    "use_node_id_as_ip": True,
    "disable_node_updaters": True,
    "disable_launch_config_check": True,
}
LISTS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")


class GrowingCluster(AutoscalingCluster):
    """Ray's cluster for tests. The wheel lacks the file with its settings, so they are here."""

    def _generate_config(self, head_resources: Any, worker_node_types: Any, **given: Any) -> dict[str, Any]:
        head = {"ray.head.default": {"resources": head_resources, "node_config": {}, "max_workers": 0}}
        return {
            "cluster_name": "growing",
            "max_workers": 8,
            "provider": PROVIDER,
            "available_node_types": {**worker_node_types, **head},
            "head_node_type": "ray.head.default",
            "auth": {},
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": SECONDS_IDLE / 60,
            **{f"{name}_commands": [] for name in LISTS},
            "file_mounts": {},
            "cluster_synced_files": [],
        }


def count_nodes(found: list[int], done: Event) -> None:
    """Add the number of nodes with a CPU to ``found`` whenever it changes."""
    while not done.wait(0.2):
        alive = sum(one["Alive"] and one["Resources"].get("CPU", 0) > 0 for one in ray.nodes())
        if not found or alive != found[-1]:
            found.append(alive)


def run(flags: list[str]) -> subprocess.CompletedProcess[str]:
    """The command, at its end."""
    return subprocess.run([sys.executable, "-m", "nas.search", *flags], cwd=ROOT, capture_output=True, text=True)


def main(teacher: Path, folder: Path) -> dict[str, Any]:
    """See the head of this file."""
    cluster = GrowingCluster({"CPU": 0}, NODES)
    cluster.start()
    where = teacher, write_text(folder), folder / "out", "grown"
    flags = arguments(*where, address="auto", device="cpu", trials=3, finalists=1)
    settings, _, _ = parse_arguments(flags)
    planned = run([*arguments(*where, address="auto", cpus_per_trial=2), "--dry-run"])
    with ray_session(settings) as machine:
        known = {"nodes": [(one.cpus, one.gpus) for one in machine.nodes], "coming": machine.coming}
        alive, done = list[int](), Event()
        watching = Thread(target=count_nodes, args=(alive, done))
        watching.start()
        ended = run(flags)
        deadline = time.monotonic() + 60
        while alive[-1] and time.monotonic() < deadline:
            time.sleep(0.2)
        done.set()
        watching.join()
    cluster.shutdown()
    said = {"output": ended.stdout, "errors": ended.stderr, "planned": planned.stdout + planned.stderr}
    return {"known": known, "alive": alive, "code": ended.returncode, **said}


if __name__ == "__main__":
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    print("\n" + json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2])), default=str))
