"""The work of a search on its workers: what is prepared, and the trials that Ray Tune schedules."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.exceptions import OutOfMemoryError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nas.planning.errors import Failure
from nas.planning.plan import Plan
from nas.running.client import trainable, trial_name
from nas.running.tasks import PreparationSpec, Prepared, preparation_task, targets_task, trial_task
from nas.running.tune_search import Notify, StudyScheduler, StudySearcher
from nas.running.workers import WORKER_DEATHS, Task, Workers, work
from nas.study.study import Candidate, SearchStudy
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from trials.teacher.targets import part_count
from trials.trial import TrialSpec

log = logging.getLogger(__name__)

CLIENT_SHARE = 0.001  # of the node of the driver: no processor, but Tune wants to reserve something


def prepare_remotely(plan: Plan, workers: Workers, say: Callable[[str], None]) -> Prepared:
    """Teacher, tokens and importance scores, made (or found) where trials run, before the first of them starts.

    As many workers as trials will have compute the teacher's targets at the same time, if those are of several parts.
    ``say`` is told what is being made, as it begins.
    Raises InputError for what is wrong with model, corpus or the shared folder, or for too little memory.
    """
    tests, by_layer = (plan.tests, plan.settings.test_tokens), 1 in plan.target.space.allocated
    spec = PreparationSpec(plan.recipe, str(plan.cache), plan.resources.device, *tests, by_layer)
    prepared = asyncio.run(_prepare(spec, workers, target_helpers(plan), say))
    if isinstance(prepared, Failure):
        if prepared.memory:
            raise InputError(too_little_memory(plan))
        assert prepared.error is not None, "a failure of a worker has an error"
        raise prepared.error
    _check_shared(plan.output)
    return prepared


async def _prepare(
    spec: PreparationSpec, workers: Workers, helpers: int, say: Callable[[str], None]
) -> Prepared | Failure:
    async def help_with(place: int) -> None:
        share = f"targets {place}", cloudpickle.dumps(targets_task), (spec, place, helpers)
        async for _ in work(workers.pool, *share):
            pass  # what it could not do, the first has done itself

    preparing = asyncio.create_task(_result(spec, workers, say))
    helping = [asyncio.create_task(help_with(place)) for place in range(helpers)]
    try:
        return await preparing
    finally:
        for task in helping:
            task.cancel()
        await asyncio.gather(*helping, return_exceptions=True)


async def _result(spec: PreparationSpec, workers: Workers, say: Callable[[str], None]) -> Prepared | Failure:
    async for heard in work(workers.pool, "preparation", cloudpickle.dumps(preparation_task), spec, say):
        if isinstance(heard, str):
            say(heard)
        else:
            result: Prepared | Failure = heard
    return result


def target_helpers(plan: Plan) -> int:
    """How many workers beside the first compute the teacher's targets."""
    recipe, device = plan.recipe, plan.resources.device
    parts = part_count(plan.target.shape, recipe.text_tokens, device, recipe.teacher_targets)
    return max(0, min(plan.resources.workers, parts) - 1)


def _check_shared(output: Path) -> None:
    """Every node must see the output folder: a trial continues, and is exported from, what its worker wrote there."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    seen = ray.remote(num_cpus=0)(os.path.isdir)
    for node in nodes:
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        if not ray.get(seen.options(scheduling_strategy=here).remote(str(output / "cache"))):
            raise InputError(
                f"--output {output}: node {node['NodeManagerAddress']} does not see it; "
                "on a cluster give a folder that all nodes share, such as an NFS mount"
            )


def run_trials(plan: Plan, study: SearchStudy, workers: Workers, notify: Notify, task: Task = trial_task) -> None:
    """Run what is left of the plan: ask, train, tell, until the study holds all its trials.

    What an earlier call left unfinished has been queued again by the study. ``task`` takes the place of a real trial
    where the orchestration itself is measured. Raises InputError when Ray has ended the workers of a trial for want of
    memory more than `WORKER_DEATHS` times.
    """
    for _ in range(WORKER_DEATHS + 1):
        workers.pool.clear.remote()  # of an earlier run of Tune nothing is left that asks for work
        searcher = StudySearcher(
            study, _describer(plan), notify, lambda number: workers.pool.give.remote(trial_name(number))
        )
        try:
            _run_left(plan, study, workers, searcher, task)
        except RuntimeError as error:  # Tune gives up when Ray ends one of its own processes for want of memory
            if not isinstance(error.__cause__, OutOfMemoryError):
                raise
            log.warning("Ray ended a process of Tune for want of memory; its trial goes on from its checkpoint")
            study.requeue()
            continue
        if not searcher.out_of_memory:
            return
        break
    study.requeue()
    raise InputError(too_little_memory(plan))


def _run_left(plan: Plan, study: SearchStudy, workers: Workers, searcher: StudySearcher, task: Task) -> None:
    """One Tune run, a new one each time."""
    left = plan.trials - study.finished()
    if left <= 0:
        return
    disposable = plan.folder / "tune"
    trial = tune.with_parameters(trainable, pool=workers.pool, task=cloudpickle.dumps(task))
    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": 0, f"node:{_own_address()}": CLIENT_SHARE}),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=StudyScheduler(
                study,
                searcher.notify,
                last=plan.recipe.tokens,
                halving=plan.settings.scheduler == "asha",
                fewest=max(1, plan.settings.finalists),
            ),
            num_samples=left,
            max_concurrent_trials=plan.resources.workers,
            reuse_actors=True,
            trial_name_creator=lambda trial: f"trial-{trial.config['number']:03d}",
            trial_dirname_creator=lambda trial: f"trial-{trial.config['number']:03d}",
        ),
        run_config=tune.RunConfig(
            name="run",
            storage_path=str(disposable),
            failure_config=tune.FailureConfig(max_failures=WORKER_DEATHS),
            verbose=0,
        ),
    )
    shutil.rmtree(disposable, ignore_errors=True)
    disposable.mkdir(parents=True)
    try:
        tuner.fit()
    finally:
        shutil.rmtree(disposable, ignore_errors=True)


def _own_address() -> str:
    """Of the node that this process is on, as Ray knows it."""
    own = ray.get_runtime_context().get_node_id()
    return next(str(node["NodeManagerAddress"]) for node in ray.nodes() if node["NodeID"] == own)


def too_little_memory(plan: Plan) -> str:
    """What to do when Ray has ended the worker of one and the same task each time."""
    return (
        f"--workers {plan.resources.workers}: Ray ended workers for want of memory {WORKER_DEATHS + 1} times; give "
        "fewer, or end what else takes memory; what is done is kept, and the same command goes on from there"
    )


def _describer(plan: Plan) -> Callable[[Candidate], dict[str, Any]]:
    def describe(candidate: Candidate) -> dict[str, Any]:
        return {"spec": trial_spec(plan, candidate).to_dict()}

    return describe


def trial_spec(plan: Plan, candidate: Candidate) -> TrialSpec:
    """The specification of one trial."""
    return architecture_spec(plan, candidate.architecture)


def architecture_spec(plan: Plan, architecture: Architecture) -> TrialSpec:
    """The trial of ``architecture``; its folder is named after it, so that a retry finds it."""
    return TrialSpec(
        recipe=plan.recipe,
        architecture=architecture,
        directory=str(plan.folder / "trials" / architecture.key),
        cache=str(plan.cache),
        device=plan.resources.device,
    )
