"""The Tune run: where trials run, how many at a time, what is tried again, and how it is stopped."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any, NamedTuple

# Tune's own snapshots, loggers and signal handler are not wanted: the study is the only state.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # --model ./teacher is relative to where the command was given
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import numpy as np
import ray
from numpy.typing import NDArray
from ray import tune
from ray.exceptions import OutOfMemoryError, RayTaskError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nas.errors import classify
from nas.plan import Machine, Plan, Resources
from nas.searcher import FAILURE, FINAL, LOSS, METRICS, RETRIED, TOKENS, Notify, StudyScheduler, StudySearcher
from nas.settings import SearchSettings
from nas.study import Candidate, SearchStudy
from search_spaces.allocation import Worth
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from trials.evaluation_text import TextTask
from trials.final_readings import check_tests
from trials.importance import ImportanceScores
from trials.losses import OF_TEXT, WindowLosses
from trials.preparation import Preparation, Recipe, prepare, prepare_targets, shared, teacher_windows, unit_worth
from trials.targets import part_count
from trials.trial import TrialSpec, run_trial

log = logging.getLogger(__name__)

WORKER_DEATHS = 2  # a trial whose worker or node died is tried again this often, from its last checkpoint
THREAD_SECONDS = "600"
# glibc hands large blocks back to the system when they are freed, and the next step of training asks for them anew,
# page by page: 2.5 million faults a step, 40 % of its time for a student of 100M parameters. So they stay in the heap,
# and in the main one: those of other threads, in which Tune runs trials, hold 64 MiB at most.
WORKER_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**30),
    "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30),
}
TELL_SECONDS = 1.0  # how often the driver looks for what the preparation has to say
OBJECT_STORE_BYTES = 100 * 2**20  # results are a few numbers; the default would be 30 % of the memory


@contextmanager
def ray_session(settings: SearchSettings) -> Iterator[Machine]:
    """A Ray to run on: the cluster at ``--address`` or RAY_ADDRESS, else one of this process alone.

    Yields what it has. A cluster is left running, a Ray of our own is shut down with the block. SIGTERM (``ray
    job stop``, a batch system) is treated as Ctrl-C. Raises InputError when no cluster answers.
    """
    address = settings.address or os.environ.get("RAY_ADDRESS") or "local"
    own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": WORKER_ENVIRONMENT},
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(own if address == "local" else {}),
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"--address {address!r}: no Ray cluster answers there ({' '.join(str(error).split())[:150]}); "
            "give HOST:6379 of its head, or leave it out to run on this machine"
        ) from error
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield _machine()
    finally:
        signal.signal(signal.SIGTERM, previous)
        ray.shutdown()


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _machine() -> Machine:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    total = ray.cluster_resources()
    smallest = min(count for count in cpus if count) if any(cpus) else 0
    return Machine(sum(cpus), float(total.get("GPU", 0)), int(total.get("memory", 0)), smallest)


class Prepared(NamedTuple):
    """What the driver has to know of it; ``teacher`` are the teacher's own losses on all validation windows.

    ``shares`` (H,) of the square of the teacher's stream lie in each of its principal components. There is a ``worth``
    where the space has sizes by layer.
    """

    preparation: Preparation
    scores: ImportanceScores
    shares: NDArray[np.float32]
    teacher: WindowLosses
    worth: Worth | None


def prepare_remotely(plan: Plan, say: Callable[[str], None]) -> Prepared:
    """Teacher, tokens and importance scores, made (or found) where trials run, before the first of them starts.

    As many workers as trials will have compute the teacher's targets at the same time, if those are of several parts.
    ``say`` is told what is being made, as it begins.
    Raises InputError for what is wrong with model, corpus or the shared folder.
    """
    task = ray.remote(_prepare).options(**resource_options(plan.resources), max_retries=WORKER_DEATHS)
    wanted = plan.tests, plan.settings.test_tokens, 1 in plan.target.space.allocated
    given, count = (plan.recipe, str(plan.cache), plan.resources.device), target_helpers(plan)
    helped = ray.remote(prepare_targets).options(**resource_options(plan.resources), max_retries=0)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # lives as long as this
    said = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    try:
        preparing = task.remote(*given, *wanted, said)
        helpers = [helped.remote(*given, place, count) for place in range(count)]
        done = False
        while not done:
            done = bool(ray.wait([preparing], timeout=TELL_SECONDS)[0])
            for record in said.get_nowait_batch(said.qsize()):
                say(record.getMessage())
        prepared: Prepared = ray.get(preparing)
        del helpers  # what one of them has not done, the first has done itself
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise
    finally:
        said.shutdown(force=True)
    _check_shared(plan.output)
    return prepared


def target_helpers(plan: Plan) -> int:
    """How many workers beside the first compute the teacher's targets."""
    recipe, device = plan.recipe, plan.resources.device
    parts = part_count(plan.target.shape, recipe.text_tokens, device, recipe.teacher_targets)
    return max(0, min(plan.resources.workers, parts) - 1)


def _prepare(
    recipe: Recipe,
    cache: str,
    device: str,
    tests: tuple[TextTask, ...],
    test_tokens: int | None,
    by_layer: bool,
    said: Queue,
) -> Prepared:
    with _saying(said):
        if tests:
            check_tests(recipe.model, tests, test_tokens)
        preparation, common = prepare(recipe, cache, device), shared(recipe, cache, device)
        shares = common.streams.shares.numpy()
        worth = unit_worth(recipe, cache, device) if by_layer else None
        return Prepared(preparation, common.scores, shares, teacher_windows(recipe, cache, device), worth)


@contextmanager
def _saying(said: Queue) -> Iterator[None]:
    """Put what `trials` logs into ``said`` during the block."""
    logger, handler = logging.getLogger("trials"), QueueHandler(said)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def resource_options(resources: Resources) -> dict[str, Any]:
    """What Ray is to give a task that does the work of a trial."""
    return {"num_cpus": resources.cpus, "num_gpus": resources.gpus}


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


def run_trials(
    plan: Plan, study: SearchStudy, notify: Notify, trainable: Callable[[dict[str, Any]], None] | None = None
) -> None:
    """Run what is left of the plan: ask, train, tell, until the study holds all its trials.

    What an earlier call left unfinished has been queued again by the study. ``trainable`` takes the place of a real
    trial where the orchestration itself is measured. Raises InputError when Ray has ended workers for want of memory
    more than `WORKER_DEATHS` times.
    """
    for _ in range(WORKER_DEATHS + 1):
        try:
            _run_left(plan, study, notify, trainable)
        except RuntimeError as error:  # Tune takes a worker that dies so for an error of its own, and gives up
            if not isinstance(error.__cause__, OutOfMemoryError):
                raise
            log.warning("Ray ended a worker for want of memory; its trial goes on from its checkpoint")
            study.requeue()
            continue
        return
    raise InputError(
        f"--workers {plan.resources.workers}: Ray ended workers for want of memory {WORKER_DEATHS + 1} times; give "
        "fewer, or end what else takes memory; what is done is kept, and the same command goes on from there"
    )


def _run_left(
    plan: Plan, study: SearchStudy, notify: Notify, trainable: Callable[[dict[str, Any]], None] | None
) -> None:
    """One Tune run, a new one each time."""
    left = plan.trials - study.finished()
    if left <= 0:
        return
    disposable = plan.folder / "tune"
    tuner = tune.Tuner(
        tune.with_resources(trainable or _trainable, {"cpu": plan.resources.cpus, "gpu": plan.resources.gpus}),
        tune_config=tune.TuneConfig(
            search_alg=StudySearcher(study, _describer(plan), notify),
            scheduler=StudyScheduler(
                study,
                notify,
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


def _trainable(config: dict[str, Any]) -> None:
    """What runs in a worker: one trial, its rungs reported as they come."""
    # Read when the actor is reused: a stopped trial must get the time to let go, or Tune gives the next one up.
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = THREAD_SECONDS

    def report(tokens: int, metrics: dict[str, float]) -> None:
        tune.report({**metrics, TOKENS: tokens})

    try:
        result = run_trial(TrialSpec.from_dict(config["spec"]), report)
    except Exception as error:
        failure = classify(error)
        if failure.retry:
            tune.report({RETRIED: failure.reason})
            raise
        log.exception("trial %s failed", config["number"])
        tune.report({FAILURE: failure.reason})
        return
    metrics = {name: float(value) for name, value in result.to_dict().items() if name in METRICS}
    metrics.update({f"{OF_TEXT}{name}": loss for name, loss in result.losses.items()})
    tune.report({FINAL: True, LOSS: result.val_loss, **metrics})
