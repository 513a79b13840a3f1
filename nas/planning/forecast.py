"""What a plan will do and what it will cost. Nothing is started here."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import dataclass, replace

from nas.planning.plan import Plan
from nas.planning.rungs import REDUCTION
from search_spaces.space import COMPRESSIONS, LAYERS
from trials.evaluate.tasks import HarnessTask
from trials.recipe import SCREEN_CALIBRATION
from trials.storage.redact import redacted
from trials.text.evaluation_text import TextTask
from trials.text.mixture import parse_mixture, shares


@dataclass(frozen=True)
class Work:
    """Students that have to be made from the teacher, and tokens to train, by all students together."""

    students: int
    tokens: int

    def __add__(self, other: Work) -> Work:
        return Work(self.students + other.students, self.tokens + other.tokens)


def trial_work(plan: Plan) -> Work:
    """What the trials of all budgets take."""
    return sum((Work(part.trials, trial_tokens(part)) for part in plan.parts), Work(0, 0))


def final_work(plan: Plan) -> Work:
    """An upper bound for what the final stage of all budgets takes: a baseline may also be a finalist."""
    return sum((_final_work(part) for part in plan.parts), Work(0, 0))


def expected_tokens(plan: Plan) -> int:
    """Training tokens of the whole search, the final stage included."""
    return trial_work(plan).tokens + final_work(plan).tokens


def _final_work(plan: Plan) -> Work:
    if not plan.settings.finalists:
        return Work(0, 0)
    stock = [plan.target.shape.is_stock(one) for one in plan.target.feasible]
    going_on = min(plan.settings.finalists, plan.trials) + (any(stock) and not all(stock))
    new = len(set(plan.baselines.values()))
    return Work(new, going_on * plan.final_tokens + new * (plan.recipe.tokens + plan.final_tokens))


def trial_tokens(plan: Plan) -> int:
    """Training tokens of all trials of one budget. With ``asha`` half of them stop at each rung.

    As many trials as there will be finalists are never stopped.
    """
    halving = plan.settings.scheduler == "asha"
    stretches = itertools.pairwise((0, *plan.recipe.rungs))
    fewest = min(plan.trials, plan.settings.finalists)
    halved = (max(fewest, math.ceil(plan.trials / REDUCTION**place)) for place in itertools.count())
    going = halved if halving else itertools.repeat(plan.trials)
    return sum(trials * (end - start) for trials, (start, end) in zip(going, stretches, strict=False))


def plan_lines(plan: Plan) -> dict[str, str]:
    """The `summary` by name. Lines of the same name, one for each budget, are joined."""
    lines = defaultdict[str, list[str]](list)
    for what, value in summary(plan):
        lines[what].append(value)
    return {what: "; ".join(values) for what, values in lines.items()}


def summary(plan: Plan) -> list[tuple[str, str]]:
    """The plan as (what, value) lines for a person."""
    target, recipe, resources = plan.target, plan.recipe, plan.resources
    teacher = target.shape.parameters(target.shape.full)
    ranges = {name: f"{sizes[0]}..{sizes[-1]} ({len(sizes)})" for name, sizes in target.space.axes.items()}
    if target.space.kept_layers:
        ranges[LAYERS] = f"{len(target.space.kept_layers):,} choices"
    for axis in COMPRESSIONS:
        if found := getattr(target.space, axis):
            ranges[axis] = "/".join(one.key or "none" for one in found)
    axes = ", ".join(f"{name} {sizes}" for name, sizes in ranges.items())
    each = f"{resources.cpus} CPU" + (f", {resources.gpus:g} {resources.kind or 'GPU'}" if resources.gpus else "")
    compared = ", ".join(f"{rung:,}" for rung in recipe.rungs)
    spread = {(): "", (1,): " with sizes by layer", (0, 1): ", and as many with sizes by layer"}
    by_layer = spread[target.space.allocated]
    bands = [f"{part.target.budget}: {len(part.target.feasible)} architectures{by_layer}" for part in plan.parts]
    trials = " + ".join(str(part.trials) for part in plan.parts)
    kind = "refitted" if recipe.refit else "plain"
    return [
        ("teacher", f"{plan.settings.model}: {teacher:,} parameters, {target.shape.family}"),
        ("space", axes),
        *(("band", band) for band in bands),
        *_limits(plan),
        *_screening(plan),
        ("trials", f"{trials} from sampler {plan.settings.sampler}; {resources.workers} at a time, {each} each"),
        (
            "tokens",
            f"{recipe.tokens:,} per trial from {_text(plan)}; {plan.settings.scheduler} compares at {compared}"
            if recipe.tokens
            else f"none per trial: {kind} students are compared; the text is {_text(plan)}",
        ),
        *_mixture(plan),
        *_final_stage(plan),
        *_tests(plan),
        *_training(plan),
        ("study", f"{plan.study} in {redacted(plan.storage)}"),
        ("output", str(plan.folder)),
    ]


def _training(plan: Plan) -> list[tuple[str, str]]:
    recipe, tokens = plan.recipe, expected_tokens(plan)
    if not tokens:
        return []
    steps = f"{recipe.batch_tokens:,} tokens each, in sequences of {recipe.sequence_length}"
    return [
        ("total", f"about {tokens:,} training tokens"),
        ("steps", f"{steps}, learning rate {recipe.learning_rate:g}"),
    ]


def _text(plan: Plan) -> str:
    return "a mixture" if len(parse_mixture(plan.recipe.corpus)) > 1 else plan.recipe.corpus


def _mixture(plan: Plan) -> list[tuple[str, str]]:
    """One line for each source of a mixture."""
    parts = parse_mixture(plan.recipe.corpus)
    if len(parts) == 1:
        return []
    wanted = zip(parts, shares(parts), strict=True)
    return [("text", f"{part.name}: {float(share):.1%} from {part.source}") for part, share in wanted]


def _limits(plan: Plan) -> list[tuple[str, str]]:
    memory, latency = plan.settings.max_memory, plan.settings.max_latency_ms
    limits = [f"{memory:,} bytes of bfloat16 weights and cache"] if memory is not None else []
    limits += [f"{latency:g} ms for a generated token, measured before the first trial"] if latency is not None else []
    asked = {"loads in": plan.settings.loads_in, "quantises to": plan.settings.quantises_to}
    only = [(what, f"{names}; nothing else is proposed") for what, names in asked.items() if names is not None]
    weighed = [("objectives", ", ".join(plan.objectives))] if len(plan.objectives) > 1 else []
    return [*([("limits", "at most " + ", ".join(limits))] if limits else []), *only, *weighed]


def _screening(plan: Plan) -> list[tuple[str, str]]:
    if not plan.screenings:
        return []
    refit = f", refitted on {SCREEN_CALIBRATION:,} tokens" if plan.recipe.refit else ""
    what = f"{plan.screenings} architectures are measured before retraining{refit}"
    return [("screen", f"{what}; the best are tried first")]


def _final_stage(plan: Plan) -> list[tuple[str, str]]:
    if not plan.settings.finalists:
        return [("finals", "none: the best trial wins")]
    count = min(plan.settings.finalists, plan.parts[0].trials)
    each = " of each budget" if len(plan.parts) > 1 else ""
    who = (
        f"the best {count} trials and the best stock trial" if count > 1 else "the best trial and the best stock trial"
    )
    baselines = dict.fromkeys(name for part in plan.parts for name in part.baselines)
    compared = f"; compared with {', '.join(baselines)}" if baselines else ""
    return [("finals", f"{who}{each} train on {plan.final_tokens:,} more tokens{compared}")]


def _tests(plan: Plan) -> list[tuple[str, str]]:
    if not plan.tests:
        return []
    much = f"the first {plan.settings.test_tokens:,} tokens of each" if plan.settings.test_tokens else "whole"
    texts = ", ".join(task.name for task in plan.tests if isinstance(task, TextTask))
    tasks = ", ".join(task.name for task in plan.tests if isinstance(task, HarnessTask))
    shown = [f"{texts}, {much}"] if texts else []
    return [("test", f"{'; '.join([*shown, *([f'{tasks}, zero-shot'] if tasks else [])])}: only for the final tables")]


def estimated_seconds(plan: Plan) -> float:
    """How long the search will take with this machine to itself, from FLOPs and a short measurement of its speed.

    The preparation of the teacher and the evaluation on test text are not counted.
    """
    from trials import estimate  # takes seconds; a search needs none of it

    candidate = plan.target.feasible[len(plan.target.feasible) // 2]
    tokens = plan.recipe.tokens or plan.final_tokens
    recipe = replace(plan.recipe, tokens=tokens, rungs=plan.recipe.rungs or (tokens,))
    given = plan.target.shape, candidate, recipe, plan.resources.device
    making, work = estimate.estimate_making_seconds(*given), trial_work(plan) + final_work(plan)
    training = (estimate.estimate_seconds(*given) - making) / tokens
    screening = estimate.estimate_screen_seconds(*given)
    devices = plan.resources.workers * (plan.resources.gpus or plan.resources.cpus)
    return (screening * plan.screenings + making * work.students + training * work.tokens) / devices
