"""What the cluster has, what its autoscaler can bring, and whether a worker fits on any of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml
from ray._private.state import state
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nas.planning.machine import Machine, Node

HEAD = "node:__internal_head__"  # a resource that Ray gives to the node of the head
CONFIG_FLAG = "--autoscaling-config="
MANY = 1_000  # nodes; for an autoscaler without an upper limit


def machine_now(coming: Iterable[tuple[Node, int]] = (), without: Iterable[str] = ()) -> Machine:
    """The nodes that are up, but for those ``without`` (Ray's ids), and beside them the ones that are ``coming``."""
    left_out = set(without)
    alive = [one["Resources"] for one in ray.nodes() if one["Alive"] and one["NodeID"] not in left_out]
    return Machine(tuple(map(node_of, alive)), tuple(coming))


def node_of(resources: Mapping[str, float]) -> Node:
    """What a node with Ray's ``resources`` has for trials."""
    kinds = tuple(name.partition(":")[2] for name in resources if name.startswith("accelerator_type:"))
    cpus, gpus, memory = (resources.get(name, 0) for name in ("CPU", "GPU", "memory"))
    return Node(int(cpus), float(gpus), int(memory), kinds)


def nodes_to_come() -> tuple[tuple[Node, int], ...]:
    """The types of nodes that the autoscaler can bring, each with how many of them there may be at a time.

    Those that are up already count too. Empty where no autoscaler says what it can bring, as on KubeRay.
    """
    config = state.get_cluster_config()
    if config is not None:
        groups = [(dict(one.resources), one.max_count) for one in config.node_group_configs]
    else:
        task = ray.remote(_reader()).options(num_cpus=0, scheduling_strategy=_on_head())
        groups = _groups(ray.get(task.remote()))
    return tuple((node_of(resources), MANY if most < 0 else most) for resources, most in groups if most)


def _on_head() -> NodeAffinitySchedulingStrategy:
    head = next(one["NodeID"] for one in ray.nodes() if one["Alive"] and HEAD in one["Resources"])
    return NodeAffinitySchedulingStrategy(head, soft=False)


def _reader() -> Callable[[], str]:
    """A function that reads the configuration of its node's autoscaler; its text is empty if there is none.

    Ray sends a function of a function as a whole, so the head does not need this project.
    """
    flag = CONFIG_FLAG

    def read() -> str:
        for process in psutil.process_iter(["cmdline"]):
            for word in process.info["cmdline"] or ():
                if word.startswith(flag) and os.access(word.removeprefix(flag), os.R_OK):
                    return Path(word.removeprefix(flag)).read_text()
        return ""

    return read


def _groups(text: str) -> list[tuple[dict[str, float], int]]:
    config = yaml.safe_load(text) or {}
    types, head = config.get("available_node_types", {}), config.get("head_node_type")
    most = config.get("max_workers", MANY)
    return [
        (one.get("resources", {}), min(most, one.get("max_workers", most)))
        for name, one in types.items()
        if name != head and one.get("resources")
    ]


def unplaceable(options: Mapping[str, Any], nodes: Iterable[Node]) -> str:
    """Why none of the ``nodes`` can have a worker with Ray's ``options``; empty if one can.

    What other tasks use at the moment does not count.
    """
    cpus, gpus, kind = options.get("num_cpus", 0), options.get("num_gpus", 0), options.get("accelerator_type")
    found = list(nodes)
    if any(one.cpus >= cpus and one.gpus >= gpus and (not kind or kind in one.kinds) for one in found):
        return ""
    for flag, what, amount in (("--cpus-per-trial", "cpus", cpus), ("--gpus-per-trial", "gpus", gpus)):
        most = max((getattr(one, what) for one in found), default=0)
        if amount > most:
            return f"{flag} {amount:g}: no node has so many {what[:-1].upper()}s, the largest has {most:g}"
    if kind and not any(kind in one.kinds for one in found):
        known = sorted({name for one in found for name in one.kinds})
        return f"--accelerator-type {kind}: no node has one{'; there are ' + ', '.join(known) if known else ''}"
    both = f"--cpus-per-trial {cpus:g} --gpus-per-trial {gpus:g}"
    return f"{both}{f' --accelerator-type {kind}' if kind else ''}: no node has all of it"
