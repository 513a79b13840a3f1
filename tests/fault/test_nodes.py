"""Workers on a cluster of nodes that differ, join and leave. Its GPUs are Ray's alone: no worker computes on one."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster

from nas.cluster.nodes import node_of
from nas.cluster.session import ray_session
from nas.planning.machine import Machine, Node, Resources, resources_for
from nas.planning.settings import parse_arguments
from nas.running.worker import About, Worker
from nas.running.workers import Pace, Workers, open_workers
from search_spaces.errors import InputError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a file of tests

PATIENCE = 120  # seconds; a bound for what would hang, on however slow a machine
SMALL = {"object_store_memory": 80 * 2**20, "dashboard_agent_listen_port": 0}
H100 = {"num_gpus": 2, "resources": {"accelerator_type:H100": 1}, **SMALL}
A100 = {"num_gpus": 1, "num_cpus": 8, "resources": {"accelerator_type:A100": 1}, **SMALL}


class Quick(Worker):
    """A worker that imports nothing."""

    def free(self) -> About:
        return About(ray.get_runtime_context().get_node_id(), "here", os.getpid(), "GPU", "GPU", True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head with many CPUs and no GPU, a node with two H100 and few CPUs, and one with an A100."""
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory(prefix="ray") as folder:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_AUTH_MODE", "disabled")  # on loopback, for as long as this file takes
        head = {"num_cpus": 64, "node_ip_address": "127.0.0.2", "include_dashboard": False, **SMALL}
        soon = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
        made = Cluster(initialize_head=True, head_node_args={**head, "_system_config": soon})
        made.add_node(num_cpus=4, node_ip_address="127.0.0.3", **H100)
        made.add_node(node_ip_address="127.0.0.4", **A100)
        made.wait_for_nodes()
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def machine(cluster: Cluster) -> Iterator[Machine]:
    settings, _, _ = parse_arguments(["--budget", "60%", "--address", cluster.address])
    with ray_session(settings) as found:
        yield found


def planned(machine: Machine, **settings: object) -> Resources:
    nothing = {"workers": None, "cpus_per_trial": None, "gpus_per_trial": None, "accelerator_type": None}
    return resources_for(SimpleNamespace(**{**nothing, "device": "auto", **settings}), machine, 8, 59, 2**30)


def until(condition: Callable[[], bool], workers: Workers) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
        workers.poll()


def opened(resources: Resources, folder: Path) -> Workers:
    workers = Workers(resources, str(folder), grows=True, pace=Pace(look=0.2, keep=0.0), worker=Quick)
    workers.want(59)
    return workers


def test_every_gpu_has_a_worker_whatever_the_cpus_of_other_nodes(machine: Machine, tmp_path: Path) -> None:
    resources = planned(machine)
    assert (resources.workers, resources.cpus, resources.gpus) == (3, 2, 1.0)
    with closing(opened(resources, tmp_path)) as workers:
        until(lambda: workers.ready == 3, workers)


def test_a_node_that_joins_is_used_and_one_that_leaves_is_survived(
    cluster: Cluster, machine: Machine, tmp_path: Path
) -> None:
    resources = planned(machine, accelerator_type="H100")
    assert (resources.workers, resources.options["accelerator_type"]) == (2, "H100")
    with closing(opened(resources, tmp_path)) as workers:
        until(lambda: workers.ready == 2, workers)
        node = cluster.add_node(num_cpus=8, node_ip_address="127.0.0.5", **H100)
        until(lambda: workers.ready == 4, workers)
        cluster.remove_node(node, allow_graceful=False)
        until(lambda: workers.ready == 2, workers)
        assert workers.problem == ""


def test_nodes_are_told_by_their_accelerators(machine: Machine) -> None:
    assert {(one.cpus, one.gpus, one.kinds) for one in machine.nodes} == {
        (64, 0.0, ()),
        (4, 2.0, ("H100",)),
        (8, 1.0, ("A100",)),
    }
    assert machine.grows
    assert node_of({"CPU": 2.0, "memory": 5.0}) == Node(2, 0.0, 5)


def test_workers_start_where_there_is_room_before_anything_is_known_of_the_tasks(
    machine: Machine, tmp_path: Path
) -> None:
    with open_workers(planned(machine), str(tmp_path / "new"), machine, kind=Quick) as workers:
        until(lambda: workers.count == 3, workers)
        assert (tmp_path / "new").is_dir()


def test_what_no_node_has_is_waited_for_on_a_cluster_and_refused_on_one_machine(machine: Machine) -> None:
    assert planned(machine, accelerator_type="B200").workers == 1
    with pytest.raises(InputError, match="--accelerator-type B200: no node has a GPU of kind B200"):
        planned(Machine(machine.nodes), accelerator_type="B200")
