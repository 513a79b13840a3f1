"""From settings to a plan: what is searched, on which resources, with which recipe. Nothing is started here."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nas.planning.candidates import baselines
from nas.planning.machine import Machine, Resources, resources_for
from nas.planning.rungs import rungs
from nas.planning.settings import SearchSettings
from nas.study.objectives import LATENCY_MS, parse_objectives
from search_spaces.allocation import NeuronValues
from search_spaces.architecture import Architecture
from search_spaces.budget import BYTES, Budget, check_budgets, parse_budgets, unit_of
from search_spaces.errors import InputError
from search_spaces.files import check_space, compressions_in, load_space
from search_spaces.requirements import narrowed
from search_spaces.shape import ModelShape
from search_spaces.space import SearchSpace
from search_spaces.stored_size import fits, memory_bytes, size_in
from trials.compress.extras import check_installed, packages_for
from trials.evaluate.tasks import HarnessTask, parse_test_tasks
from trials.export.loads_in import parse_formats, parse_programs, requirements
from trials.recipe import VERSION, Recipe
from trials.storage.cache import digest
from trials.teacher.revision import split_revision
from trials.teacher.source import read_shape, resolve_model
from trials.text.evaluation_text import PYTHON_DOCS, TextTask, parse_tests
from trials.text.mixture import GENERAL, parse_mixture, render_mixture
from trials.text.sources import check_sources
from trials.text.validation import parse_validation

PROCESS_BYTES = 2**30  # of the interpreter, torch, transformers and the activations of a micro-batch


@dataclass(frozen=True)
class Defaults:
    """The values for a device that the user can override: numbers of tokens, and of sequences for ``calibration``.

    ``rate`` is the peak learning rate for batches of that size (docs/lab/rate-and-loss.md).
    """

    tokens: int
    sequence: int
    batch: int
    calibration: int
    validation: int
    rate: float


DEFAULTS = {
    "cpu": Defaults(tokens=32_768, sequence=256, batch=1_024, calibration=256, validation=16_384, rate=2e-4),
    "cuda": Defaults(tokens=8_388_608, sequence=1_024, batch=32_768, calibration=1_024, validation=262_144, rate=4e-4),
}


@dataclass(frozen=True)
class Target:
    """What is searched: the teacher in ``folder``, the space, the budgets, and the ``feasible`` architectures."""

    folder: Path
    shape: ModelShape
    space: SearchSpace
    budgets: tuple[Budget, ...]
    feasible: tuple[Architecture, ...]

    def inside(self, budget: Budget) -> Target:
        """The same target for one of its budgets."""
        own = tuple(one for one in self.feasible if fits(budget, self.shape, one))
        return replace(self, budgets=(budget,), feasible=own)

    @property
    def budget(self) -> Budget:
        """The budget of a target that has one."""
        (budget,) = self.budgets
        return budget


@dataclass(frozen=True)
class Plan:
    """A search ready to start.

    A search for several budgets has one plan for each of them, see `parts`; ``part`` is the name of that budget.
    ``command`` is the command line that starts or continues the search.
    """

    settings: SearchSettings
    target: Target
    resources: Resources
    recipe: Recipe
    study: str
    final_tokens: int
    tests: tuple[TextTask | HarnessTask, ...]
    part: str = ""
    command: str = ""

    @cached_property
    def parts(self) -> tuple[Plan, ...]:
        """One plan for each budget, the largest budget first. A plan with one budget is its own only part."""
        target = self.target
        if len(target.budgets) == 1:
            return (self,)
        return tuple(replace(self, target=target.inside(one), part=one.label) for one in target.budgets)

    @cached_property
    def baselines(self) -> dict[str, Architecture]:
        """The architectures that finalists are compared with, by name; none without a final stage."""
        if not (self.settings.baselines and self.settings.finalists):
            return {}
        return baselines(self.target.shape, self.target.feasible, self.settings.seed)

    @property
    def screenings(self) -> int:
        """How many architectures are screened, that is measured before any retraining."""
        if self.settings.sampler != "screen":
            return 0
        return sum(min(self.settings.screened, len(part.target.feasible)) for part in self.parts)

    @property
    def slices(self) -> list[tuple[int, ...]]:
        """The layers of all students that are slices of whole layers, in a study that tries all and trains none."""
        if self.recipe.refit or self.recipe.tokens or self.settings.sampler != "exhaustive":
            return []
        kept = map(self.target.shape.whole_layers, self.target.feasible)
        return [layers for layers in kept if layers is not None]

    @property
    def output(self) -> Path:
        """The absolute path of the folder of all results."""
        return Path(self.settings.output).expanduser().resolve()

    @property
    def folder(self) -> Path:
        """The folder of this study."""
        return self.output / self.study

    @property
    def results(self) -> Path:
        """The folder of the winner and the report of this budget."""
        return self.folder / self.part

    @property
    def cache(self) -> Path:
        """The folder that all searches share: packed tokens, importance scores, the teacher's targets."""
        return self.output / "cache"

    def trial_folder(self, architecture: Architecture) -> Path:
        """The folder of the trial of ``architecture``."""
        return self.folder / "trials" / architecture.key

    def final_folder(self, name: str) -> Path:
        """The folder of the final called ``name`` (`nas.study.records.FinalRecord`)."""
        return self.folder / "finals" / name

    @property
    def storage(self) -> str:
        """The Optuna storage URL."""
        return self.settings.storage or f"sqlite:///{self.output / 'studies.db'}"

    @property
    def trials(self) -> int:
        """The number of trials of all budgets; a budget has no more trials than its band has architectures."""
        if len(self.parts) > 1:
            return sum(part.trials for part in self.parts)
        wanted = len(self.target.feasible) if self.settings.sampler == "exhaustive" else self.settings.trials
        return min(wanted, len(self.target.feasible))

    @cached_property
    def objectives(self) -> tuple[str, ...]:
        """The objectives that candidates are compared by, the loss first."""
        return parse_objectives(self.settings.objectives)

    @cached_property
    def times_candidates(self) -> bool:
        """Whether the latency of every candidate has to be measured."""
        return self.settings.max_latency_ms is not None or LATENCY_MS in self.objectives

    @property
    def reads_untrained(self) -> bool:
        """Whether winners and baselines are evaluated on test text before retraining too, for the table that has it."""
        return self.settings.table == "pruned-gpt"

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that make the losses of two trials comparable."""
        return identity(self.settings, self.target, self.recipe)


def resolve_target(settings: SearchSettings) -> Target:
    """The teacher, the space and the budgets, from configuration files alone.

    Raises InputError for every setting that can be checked without starting anything. Whatever needs no teacher is
    checked first: the code that reads a teacher's configuration takes seconds to import.
    """
    check_sources([*_sources(settings), *(one for _, one in parse_validation(settings.validation))])
    parse_objectives(settings.objectives)
    programs, formats = parse_programs(settings.loads_in), parse_formats(settings.quantises_to)
    for flag, tests in {
        "--test": parse_tests(settings.test),
        "--test-tasks": parse_test_tasks(settings.test_tasks),
    }.items():
        if tests and not settings.finalists:
            raise InputError(f"{flag}: needs a final stage, and --finalists 0 has none; give --finalists 1 or more")
    if settings.tokens_per_trial == 0 and settings.finalists and not settings.final_tokens:
        rule = "finalists train on as many tokens as a trial has"
        raise InputError(f"--tokens-per-trial 0: {rule}; give --final-tokens, or --finalists 0")
    if settings.table == "stack":
        for package in ("bitsandbytes", "peft"):
            check_installed(package, "--table stack")
    for axis, package in packages_for(compressions_in(settings.space)):
        check_installed(package, f"space {settings.space}: key {axis!r}")
    check_budgets(settings.budget)
    if unit_of(settings.budget) == BYTES and settings.export_dtype == "float32":
        raise InputError(
            f"--export-dtype float32: --budget {settings.budget} counts two bytes for a number; leave it out"
        )
    _check_output(settings.output)
    check_space(settings.space)
    folder = resolve_model(settings.model)
    shape = read_shape(folder)
    space = narrowed(load_space(settings.space, shape), requirements(shape, programs, formats))
    unit = unit_of(settings.budget)
    counts, teacher = space.counts_in(unit), size_in(unit, shape, shape.full)
    budgets = parse_budgets(settings.budget, teacher, counts, settings.tolerance)
    return Target(folder, shape, space, budgets, _inside(settings, space, budgets))


def _check_output(output: str) -> None:
    """Raise InputError when the folder ``output`` is not there and cannot be made, or cannot be written to."""
    path = Path(output).expanduser().absolute()
    try:
        os.stat(path)
    except (ValueError, OSError) as error:
        if not isinstance(error, (FileNotFoundError, NotADirectoryError, PermissionError)):  # a NUL, or far too long
            raise InputError(f"--output {output[:100]!r}: no path ({error}); give another folder") from error
    there = next(one for one in (path, *path.parents) if one.exists())
    if not there.is_dir():
        raise InputError(f"--output {output}: {there} is a file; give a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--output {output}: {there} cannot be written to; give another folder")


def with_neuron_values(plan: Plan, neuron_values: NeuronValues) -> Plan:
    """``plan`` with the architectures whose sizes differ by layer added, if its space has such architectures."""
    space = replace(plan.target.space, neuron_values=neuron_values)
    inside = _inside(plan.settings, space, plan.target.budgets)
    return replace(plan, target=replace(plan.target, space=space, feasible=inside))


def _inside(settings: SearchSettings, space: SearchSpace, budgets: tuple[Budget, ...]) -> tuple[Architecture, ...]:
    return tuple(one for budget in budgets for one in _small_enough(settings, space.shape, space, budget))


def _small_enough(
    settings: SearchSettings, shape: ModelShape, space: SearchSpace, budget: Budget
) -> list[Architecture]:
    """The architectures of a band that meet ``--max-memory``. Raises InputError when none does."""
    band, most = list(space.feasible(budget)), settings.max_memory
    found = [one for one in band if most is None or memory_bytes(shape, one) <= most]
    if not found and most is not None:
        least = min(memory_bytes(shape, one) for one in band)
        raise InputError(
            f"--max-memory {most:,}: every architecture of budget {budget.text} takes at least {least:,} bytes "
            f"(bfloat16 weights, cache of {shape.positions:,} tokens); give at least that, or a smaller --budget"
        )
    return found


def make_plan(settings: SearchSettings, target: Target, machine: Machine) -> Plan:
    """The plan for ``target`` on ``machine``. Raises InputError when the machine cannot run one trial."""
    resources = _resources(settings, target, machine)
    recipe = _recipe(settings, target.shape, DEFAULTS[resources.device])
    name = settings.study or _study_name(settings, target.budgets, identity(settings, target, recipe))
    wanted = settings.final_tokens or recipe.tokens
    final_tokens = max(1, wanted // recipe.batch_tokens) * recipe.batch_tokens
    return Plan(settings, target, resources, recipe, name, final_tokens, _tests(settings))


def _tests(settings: SearchSettings) -> tuple[TextTask | HarnessTask, ...]:
    """The test texts and the downstream tasks that were asked for.

    A text of another kind is among them, unless the corpus has that text itself.
    """
    asked, tasks = parse_tests(settings.test), parse_test_tasks(settings.test_tasks)
    read = "stdlib" in _sources(settings) or any(one.name == PYTHON_DOCS for one in asked)
    further = () if read or not settings.finalists else (TextTask(PYTHON_DOCS, None),)
    return *asked, *further, *tasks


def identity(settings: SearchSettings, target: Target, recipe: Recipe) -> dict[str, Any]:
    """The settings that make the losses of two trials comparable, as JSON: code version, recipe, band and space."""
    bands: dict[str, Any] = {"budgets": [[one.minimum, one.maximum] for one in target.budgets]}
    if len(target.budgets) == 1:
        bands = {"minimum": target.budget.minimum, "maximum": target.budget.maximum}
    space = target.space.to_dict()
    stock = {"stock_only": target.space.stock_only, "scheduler": settings.scheduler}
    further: dict[str, Any] = {"max_memory": settings.max_memory, "max_latency_ms": settings.max_latency_ms}
    further |= {
        "loads_in": sorted(parse_programs(settings.loads_in)) or None,
        "quantises_to": sorted(parse_formats(settings.quantises_to)) or None,
    }
    limits = {name: value for name, value in further.items() if value is not None}
    objectives = parse_objectives(settings.objectives)
    weighed = {"objectives": list(objectives)} if len(objectives) > 1 else {}
    return {"code_version": VERSION, **recipe.to_dict(), **bands, **space, **stock, **limits, **weighed}


def trial_bytes(target: Target) -> int:
    """An upper bound for the memory of one trial in bytes: float32 teacher, student, gradients and Adam's moments."""
    teacher = target.shape.parameters(target.shape.full)
    return PROCESS_BYTES + 4 * teacher + 16 * min(target.budgets[0].maximum, teacher)


def _resources(settings: SearchSettings, target: Target, machine: Machine) -> Resources:
    feasible, budgets = len(target.feasible), len(target.budgets)
    trials = feasible if settings.sampler == "exhaustive" else min(budgets * settings.trials, feasible)
    screenings = min(budgets * settings.screened, feasible) if settings.sampler == "screen" else 0
    return resources_for(settings, machine, trials, screenings, trial_bytes(target))


def _recipe(settings: SearchSettings, shape: ModelShape, defaults: Defaults) -> Recipe:
    sequence = min(settings.sequence_length or defaults.sequence, shape.positions)
    if settings.sequence_length and settings.sequence_length > shape.positions:
        most = f"the teacher has {shape.positions} positions; give at most that"
        raise InputError(f"--sequence-length {settings.sequence_length}: {most}")
    batch = math.ceil((settings.batch_tokens or defaults.batch) / sequence) * sequence
    steps = rungs(defaults.tokens if settings.tokens_per_trial is None else settings.tokens_per_trial, batch)
    return Recipe(
        model=_absolute(settings.model),
        corpus=render_mixture(_corpus(settings), _absolute),
        tokens=(0, *steps)[-1],
        rungs=steps,
        validation_tokens=settings.validation_tokens or defaults.validation,
        sequence_length=sequence,
        batch_tokens=batch,
        learning_rate=settings.learning_rate or defaults.rate,
        calibration_samples=settings.calibration_samples or defaults.calibration,
        seed=settings.seed,
        validation=tuple((name, _absolute(source)) for name, source in parse_validation(settings.validation)),
        teacher_targets=settings.teacher_targets,
        text_share=settings.text_share,
        refit=settings.refit,
    )


def _corpus(settings: SearchSettings) -> str:
    """The text that the search trains on. mini was trained on the standard library, other teachers on much more."""
    return settings.corpus or ("stdlib" if settings.model == "mini" else GENERAL)


def _sources(settings: SearchSettings) -> list[str]:
    return [part.source for part in parse_mixture(_corpus(settings))]


def _absolute(source: str) -> str:
    """The absolute path of a local ``source``: workers have another current folder. Other names stay as they are."""
    if source in ("mini", "stdlib"):
        return source
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def _study_name(settings: SearchSettings, budgets: tuple[Budget, ...], facts: dict[str, Any]) -> str:
    path, revision = split_revision(settings.model)
    model = re.sub(r"[^\w.-]+", "-", Path(path).name, flags=re.ASCII).strip(".-") or "teacher"
    commit = f"-{revision[:7]}" if revision else ""
    labels = "-".join(one.label for one in budgets)
    return f"{model[:40]}{commit}-{labels[:30]}-{digest(repr(sorted(facts.items())))[:6]}"
