"""Stage 1, prepare: teacher, text, importance scores and targets; then the architectures that the search may try."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nas.planning.errors import Failure, too_little_memory
from nas.planning.plan import Plan, with_neuron_values
from nas.running.jobs import Job, Retried, Started, results_of
from nas.running.tasks import PreparationSpec, PreparedTeacher, preparation_task, targets_task
from nas.running.workers import Workers
from nas.stages.events import Listener, Progressed, SearchPrepared, TeacherPrepared
from nas.stages.keep_facts import keep_facts
from nas.stages.measure import measure
from nas.stages.slices import measure_slices
from nas.study.study import SearchStudy
from nas.study.trial_records import TIMED
from search_spaces.errors import InputError
from trials.preparation import Preparation
from trials.teacher.targets import part_count

PREPARATION = "preparation"  # the name of this task among those of the workers


@dataclass(frozen=True)
class Prepared:
    """A search whose teacher is ready: its final plan, its study, and what is known of the teacher.

    ``started`` is when the search began, by the monotonic clock in seconds.
    """

    started: float
    plan: Plan
    study: SearchStudy
    teacher: PreparedTeacher


def prepare(plan: Plan, workers: Workers, announce: Listener) -> Prepared:
    """Prepare the teacher where trials run, open the study, and measure latencies if the plan limits or weighs them.

    Raises InputError for a wrong model or text, for a folder that not all nodes share, for too little memory, for
    surroundings that fail in every try, for a study that was made with other settings, and for a latency that no
    architecture meets.
    """
    started = time.monotonic()
    announce(Progressed("preparing teacher, text, importance scores and targets ..."))
    teacher = prepare_teacher(plan, workers, lambda message: announce(Progressed(message)))
    announce(TeacherPrepared(teacher.preparation))
    if teacher.neuron_values is not None:
        plan = with_neuron_values(plan, teacher.neuron_values)
    study = open_study(plan, teacher.preparation)
    if study.mixed:
        announce(Progressed(f"study {plan.study} mixes trials (--force): it was made {'; '.join(study.mixed)}"))
    if plan.times_candidates:
        plan = within_latency(plan, study, workers, announce)
        study = open_study(plan, teacher.preparation)
    if study.finished() < plan.trials:
        measure_slices(plan, workers, announce)
    keep_facts(plan, study, teacher)
    announce(SearchPrepared(plan, study.unique_id, teacher))
    return Prepared(started, plan, study, teacher)


def prepare_teacher(plan: Plan, workers: Workers, on_step: Callable[[str], None]) -> PreparedTeacher:
    """Make or find everything that trials share, in the workers that trials will use.

    Several workers compute the teacher's targets together when these have several parts. ``on_step`` is called with
    the name of each step.
    """
    tests, by_layer = (plan.tests, plan.settings.test_tokens), 1 in plan.target.space.allocated
    more = plan.final_tokens if plan.settings.finalists else 0
    spec = PreparationSpec(plan.recipe, str(plan.cache), plan.resources.device, *tests, by_layer, more)
    prepared = _prepared(spec, workers, target_helpers(plan), on_step)
    if isinstance(prepared, Failure):
        raise _error(prepared, workers)
    _check_shared(plan.output)
    return prepared


def _error(failure: Failure, workers: Workers) -> Exception:
    """An InputError when the surroundings failed, otherwise the error itself, which is a fault of this project."""
    if failure.memory:
        return InputError(too_little_memory(workers.count))
    if failure.retry:
        return InputError(f"the teacher could not be prepared: {failure.reason}; then give the same command again")
    assert failure.error is not None, "a failure of a worker has an error"
    return failure.error


def _prepared(
    spec: PreparationSpec, workers: Workers, helpers: int, on_step: Callable[[str], None]
) -> PreparedTeacher | Failure:
    """The prepared teacher, or why there is none. Helpers end with it; what one could not compute, the first does."""
    shares = {f"targets {place}": (spec, place, helpers) for place in range(helpers)}
    jobs = {PREPARATION: Job(cloudpickle.dumps(preparation_task), spec, spec.cache)}
    jobs |= {name: Job(cloudpickle.dumps(targets_task), share, spec.cache) for name, share in shares.items()}
    with closing(results_of(workers, jobs)) as happened:
        for name, result in happened:
            if name != PREPARATION or isinstance(result, Started):
                continue
            if isinstance(result, (PreparedTeacher, Failure)):
                return result
            on_step(result.reason if isinstance(result, Retried) else result)
    raise AssertionError("a preparation ends with its result or a failure")


def target_helpers(plan: Plan) -> int:
    """How many workers compute the teacher's targets beside the first one."""
    recipe, device = plan.recipe, plan.resources.device
    parts = part_count(plan.target.shape, recipe.text_tokens, device, recipe.targets_for(recipe.tokens))
    return max(0, min(plan.resources.workers, parts) - 1)


def _check_shared(output: Path) -> None:
    """Every node must see the output folder: a trial continues on another node, and the driver exports from it."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    is_folder = ray.remote(num_cpus=0)(os.path.isdir)
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        if not ray.get(is_folder.options(scheduling_strategy=there).remote(str(output / "cache"))):
            raise InputError(
                f"--output {output}: node {node['NodeManagerAddress']} does not see this folder; "
                "on a cluster give a folder that all nodes share, such as an NFS mount"
            )


def open_study(plan: Plan, preparation: Preparation) -> SearchStudy:
    """The study of ``plan``, new or continued. Raises InputError when it was made with other settings."""
    facts = {"teacher": preparation.fingerprint, "text": preparation.corpus_fingerprint}
    facts |= {"arithmetic": preparation.arithmetic} if preparation.arithmetic else {}
    return SearchStudy(
        plan.storage,
        plan.study,
        plan.target.space,
        plan.target.feasible,
        sampler=plan.settings.sampler,
        seed=plan.settings.seed,
        identity={**plan.identity, **facts},
        budgets=plan.target.budgets,
        objectives=plan.objectives,
        force=plan.settings.force,
    )


def within_latency(plan: Plan, study: SearchStudy, workers: Workers, announce: Listener) -> Plan:
    """``plan`` without the architectures that are slower than it allows. All sizes are measured, one at a time.

    Raises InputError when no architecture of a budget is fast enough, and names the fastest latency.
    """
    feasible = plan.target.feasible
    sizes = tuple(dict.fromkeys(one.timed for one in feasible))
    found = measure(TIMED, plan, study, workers, announce, lambda _: sizes, len(sizes))
    limit = plan.settings.max_latency_ms
    if limit is None:
        return plan
    for part in plan.parts:
        latencies = [found[one.timed.key] for one in part.target.feasible if one.timed.key in found]
        if not latencies or min(latencies) > limit:
            fastest = f"the fastest architecture takes {min(latencies):.2f}" if latencies else "none could be measured"
            raise InputError(
                f"--max-latency-ms {limit:g}: budget {part.target.budget.text}: {fastest}; "
                "give a higher limit, or a smaller --budget"
            )
    fast = tuple(one for one in feasible if found.get(one.timed.key, limit + 1) <= limit)
    announce(Progressed(f"{len(fast)} of {len(feasible)} architectures generate a token in {limit:g} ms or less"))
    return replace(plan, target=replace(plan.target, feasible=fast))
