"""The trials of a search as one run of Ray Tune."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.exceptions import OutOfMemoryError

from nas.choosing.promotion import Promotion
from nas.planning.errors import PAUSES, too_little_memory
from nas.planning.plan import Plan
from nas.planning.specs import trial_spec
from nas.running.client import trainable
from nas.running.jobs import Task
from nas.running.tasks import trial_task
from nas.running.tune_search import OUT_OF_MEMORY, OnTrial, StudyScheduler, StudySearcher
from nas.running.workers import Workers
from nas.study.study import Candidate, SearchStudy
from search_spaces.errors import InputError

log = logging.getLogger(__name__)

CLIENT_SHARE = 0.001  # of the driver's node: a Tune trial needs no processor, but Tune must reserve something


def run_trials(plan: Plan, study: SearchStudy, workers: Workers, on_change: OnTrial, task: Task = trial_task) -> None:
    """Run trials until the study holds all that the plan asks for.

    ``on_change`` is called for every trial that has started, reached a rung, or ended. ``task`` replaces the real
    trial in benchmarks of the orchestration.

    Raises InputError when Ray has ended the workers of a trial for lack of memory in all `TRIES`, when there is no
    worker left, and when trials fail by their surroundings again and again. Raises NothingFeasibleError when the first
    trials all fail for one reason.
    """
    left = plan.trials - study.finished()
    searcher = StudySearcher(study, _describer(plan), on_change, workers, left=left, pauses=PAUSES)
    while not (searcher.done or searcher.out_of_memory or searcher.problem):
        try:
            _run_tune(plan, study, workers, searcher, task)
            break
        except RuntimeError as error:  # Tune gives up when Ray ends one of its own processes for lack of memory
            if not isinstance(error.__cause__, OutOfMemoryError):
                raise
            log.warning("Ray ended a process of Tune for lack of memory; its trials continue from their checkpoints")
            searcher.abandon(OUT_OF_MEMORY)
    problem = InputError(too_little_memory(workers.count)) if searcher.out_of_memory else searcher.problem
    if problem:
        study.requeue()
        raise problem


def _run_tune(plan: Plan, study: SearchStudy, workers: Workers, searcher: StudySearcher, task: Task) -> None:
    """One new Tune run for the trials that are left. The searcher ends it."""
    disposable = plan.folder / "tune"
    trial = tune.with_parameters(trainable, task=cloudpickle.dumps(task))
    promotion = Promotion(
        study,
        last=plan.recipe.tokens,
        halving=plan.settings.scheduler == "asha",
        fewest=max(1, plan.settings.finalists),
    )
    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": 0, f"node:{_own_address()}": CLIENT_SHARE}),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=StudyScheduler(study, searcher.on_change, promotion),
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="run",
            storage_path=str(disposable),
            failure_config=tune.FailureConfig(max_failures=0),  # the searcher starts a trial again, after a pause
            verbose=0,
        ),
    )
    shutil.rmtree(disposable, ignore_errors=True)
    disposable.mkdir(parents=True)
    try:
        tuner.fit()
    except RuntimeError as error:
        if wrong := _input_error(error):
            raise wrong from error
        raise
    finally:
        shutil.rmtree(disposable, ignore_errors=True)


def _input_error(error: BaseException | None) -> InputError | None:
    """The InputError that Tune has made an error of its own, as it does with all that the study raises."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def _own_address() -> str:
    """The address of the driver's node, as Ray knows it."""
    own = ray.get_runtime_context().get_node_id()
    return next(str(node["NodeManagerAddress"]) for node in ray.nodes() if node["NodeID"] == own)


def _name(trial: Any) -> str:
    attempt = trial.config["attempt"]
    return f"trial-{trial.config['number']:03d}" + (f"-again-{attempt}" if attempt else "")


def _describer(plan: Plan) -> Callable[[Candidate], dict[str, Any]]:
    return lambda candidate: {"spec": trial_spec(plan, candidate.architecture).to_dict()}
