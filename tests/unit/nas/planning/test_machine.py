"""How many trials run at a time, and on what, on nodes that differ."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.planning.machine import Machine, Node, Resources, resources_for
from search_spaces.errors import InputError

NEED = 2**30
nodes = st.builds(Node, st.integers(0, 128), st.sampled_from([0.0, 1.0, 2.0, 8.0]), st.integers(0, 2**37))
machines = st.lists(nodes, min_size=1, max_size=6).map(lambda some: Machine(tuple(some)))


def chosen(machine: Machine, trials: int = 8, others: int = 0, **settings: Any) -> Resources:
    nothing = {"workers": None, "cpus_per_trial": None, "gpus_per_trial": None, "accelerator_type": None}
    given = {**nothing, "device": "auto", **settings}
    return resources_for(SimpleNamespace(**given), machine, trials, others, NEED)


def placed(machine: Machine, one: Resources) -> int:
    """How many of the workers can be placed at the same time, one after the other on the first node with room."""
    left = [[node.cpus, [1.0] * int(node.gpus), node.memory * 0.9] for node in machine.nodes]
    count = 0
    while count < one.workers:
        for node in left:
            gpu = next((place for place, free in enumerate(node[1]) if free >= one.gpus - 1e-9), None)
            if node[0] >= one.cpus and (gpu is not None if one.gpus else node[2] >= NEED):
                node[0] -= one.cpus
                if one.gpus:
                    node[1][gpu] -= one.gpus
                else:
                    node[2] -= NEED
                count += 1
                break
        else:
            break
    return count


@given(machines, st.integers(1, 64), st.sampled_from([None, 0, 0.25, 0.3, 0.5, 0.6, 1]))
def test_all_workers_have_a_place_and_none_is_idle_for_want_of_a_worker(
    machine: Machine, trials: int, gpus: float | None
) -> None:
    if gpus and not machine.gpus:
        return
    found = chosen(machine, trials, gpus_per_trial=gpus)
    if machine.fits(1, found.gpus, NEED):
        assert placed(machine, found) == found.workers
        assert found.workers == min(trials, machine.fits(found.cpus, found.gpus, NEED))
        assert found.workers == min(trials, machine.fits(1, found.gpus, NEED)), "threads never cost a trial its place"
    else:
        assert found.workers == 1


@given(machines, st.integers(1, 64))
def test_on_a_cpu_a_trial_has_as_many_threads_as_leave_room_for_all(machine: Machine, trials: int) -> None:
    found = chosen(machine, trials, gpus_per_trial=0)
    wanted = min(trials, machine.fits(1, 0, NEED))
    assert found.cpus == 1 or machine.fits(found.cpus, 0, NEED) >= wanted
    assert machine.fits(found.cpus + 1, 0, NEED) < max(1, wanted)


@pytest.mark.parametrize(
    ("machine", "settings", "expected"),
    [
        (Machine((Node(64), Node(16, 8.0))), {}, (8, 2, 1.0)),
        (Machine((Node(32), Node(96, 8.0))), {}, (8, 12, 1.0)),
        (Machine((Node(80, 10.0),)), {"gpus_per_trial": 0.6, "trials": 32}, (10, 8, 0.6)),
        (Machine((Node(0), Node(16, 4.0))), {}, (4, 4, 1.0)),
        (Machine((Node(0), Node(8, 0.0, 2**36))), {}, (8, 1, 0.0)),
        (Machine((Node(64, 8.0),)), {"trials": 4, "others": 59}, (8, 8, 1.0)),
        (Machine((Node(64, 8.0),)), {"trials": 4, "workers": 2}, (2, 32, 1.0)),
        (Machine((Node(32, 0.0, 2**38), Node(4, 0.0, 2**38))), {}, (8, 4, 0.0)),
    ],
)
def test_clusters_that_were_planned_wrongly(
    machine: Machine, settings: dict[str, Any], expected: tuple[int, int, float]
) -> None:
    found = chosen(machine, **settings)
    assert (found.workers, found.cpus, found.gpus) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpus_per_trial": 2}, "--gpus-per-trial 2: a trial trains on one GPU"),
        ({"gpus_per_trial": 1.5}, "--gpus-per-trial 1.5: a trial trains on one GPU"),
        ({"cpus_per_trial": 9}, "--cpus-per-trial 9: the largest node with a GPU has 8; give at most that"),
        ({"cpus_per_trial": 65, "gpus_per_trial": 0}, "--cpus-per-trial 65: the largest node has 64"),
    ],
)
def test_what_no_node_can_have_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        chosen(Machine((Node(64, 0.0, 2**38), Node(8, 1.0, 2**38))), **settings)
    if "gpus_per_trial" in settings and settings["gpus_per_trial"] > 1:
        return
    with pytest.raises(InputError, match="no node has a GPU"):
        chosen(Machine((Node(64),)), gpus_per_trial=0.5)


GPU_NODE = Node(16, 8.0, 2**38, ("H100",))
HEAD = Node(0, 0.0, 2**34)


@pytest.mark.parametrize(
    ("machine", "settings", "expected"),
    [
        (Machine((HEAD,), ((GPU_NODE, 4),), grows=True), {"trials": 64}, (32, 2, 1.0)),  # none is up yet
        (Machine((HEAD, GPU_NODE), ((GPU_NODE, 4),), grows=True), {"trials": 64}, (32, 2, 1.0)),  # one of the four is
        (Machine((HEAD,), grows=True), {"device": "cuda"}, (1, 1, 1.0)),  # nobody says what may come
        (Machine((HEAD,), grows=True), {"device": "cuda", "workers": 8, "cpus_per_trial": 8}, (8, 8, 1.0)),
        (Machine((HEAD,), grows=True), {"accelerator_type": "H100"}, (1, 1, 1.0)),
        (Machine((Node(8, 0.0, 2**36),), ((GPU_NODE, 1),), grows=True), {"device": "cpu"}, (8, 2, 0.0)),
        (Machine((GPU_NODE, Node(96, 8.0, kinds=("A100",)))), {"accelerator_type": "A100"}, (8, 12, 1.0)),
    ],
)
def test_what_an_autoscaler_can_bring_counts(
    machine: Machine, settings: dict[str, Any], expected: tuple[int, int, float]
) -> None:
    found = chosen(machine, **settings)
    assert (found.workers, found.cpus, found.gpus) == expected
    assert found.options.get("accelerator_type", "") == found.kind == settings.get("accelerator_type", "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cpu", "gpus_per_trial": 0.5}, "--device cpu: contradicts --gpus-per-trial 0.5"),
        ({"device": "cpu", "accelerator_type": "H100"}, "--device cpu: contradicts --accelerator-type H100"),
        ({"device": "cuda", "gpus_per_trial": 0}, "--gpus-per-trial 0: contradicts --device cuda"),
        ({"accelerator_type": "H100", "gpus_per_trial": 0}, "--gpus-per-trial 0: contradicts --accelerator-type H100"),
        ({"accelerator_type": "H200"}, "no node has a GPU of kind H200"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        chosen(Machine((GPU_NODE,)), **settings)
