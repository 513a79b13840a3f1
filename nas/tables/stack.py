"""The table of the study "stack": distillation, adapters, NF4 and fused attention, each on and off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from nas.choosing.outcome import Outcome
from nas.planning.plan import Plan
from nas.tables.study_table import Cell, Column, StudyTable
from search_spaces.architecture import Architecture
from trials.evaluate.stages import InferenceCosts, StageCosts, Stages
from trials.stack import StageSpec, run_stage
from trials.trial import TrialSpec

STACK = "stack"
ALL = Stages(distil=True, lora=True, pruned=True, nf4=True, flash=True)
ROWS: dict[str, Stages] = {
    "teacher on text alone": Stages(),
    "distilled student": Stages(distil=True),
    "+ adapters": replace(ALL, pruned=False, nf4=False, flash=False),
    "+ adapters pruned": replace(ALL, nf4=False, flash=False),
    "+ NF4": replace(ALL, flash=False),
    "+ fused attention": ALL,
    "all but the student": replace(ALL, distil=False),
    "all but adapters": replace(ALL, lora=False, pruned=False),
    "all but their pruning": replace(ALL, pruned=False),
    "all but NF4": replace(ALL, nf4=False),
}


def stack(outcomes: Sequence[Outcome]) -> StudyTable:
    """The stages on the winner of a search. They are measured now, unless an earlier call has; that takes minutes."""
    plan, console = outcomes[0].plan, Console(stderr=True, highlight=False)
    costs = measured(plan, outcomes[0].winner.record.architecture, plan.folder / STACK, console.print)
    return stack_table(costs, plan)


def measured(plan: Plan, student: Architecture, folder: Path, tell: Callable[[str], None]) -> dict[str, StageCosts]:
    """The costs of all `ROWS` with the recipe of ``plan``, measured one after the other in ``folder``.

    A row that was measured there before is read. ``tell`` is called with a line for a person before each row.
    """
    costs = {}
    for number, (name, stages) in enumerate(ROWS.items(), 1):
        tell(f"stack: {name} ({number} of {len(ROWS)})")
        architecture = student if stages.distil else plan.target.shape.full
        trial = TrialSpec(plan.recipe, architecture, str(folder / stages.key), str(plan.cache), plan.resources.device)
        costs[name] = run_stage(StageSpec(trial, stages))
    return costs


def stack_table(costs: dict[str, StageCosts], plan: Plan) -> StudyTable:
    """The table of ``costs``, by the name of the row."""
    rows = tuple((name, *_cells(one)) for name, one in costs.items())
    student = next(one.architecture for one in costs.values() if one.stages.distil)
    title = f"stack: {student} of {Path(plan.recipe.model).name}, {plan.recipe.tokens:,} tokens"
    return StudyTable(STACK, title, COLUMNS, rows, _notes(next(iter(costs.values())).inference, plan))


def _notes(inference: InferenceCosts, plan: Plan) -> tuple[str, ...]:
    """What the figures mean, one sentence each."""
    recipe, cpu = plan.recipe, plan.resources.device == "cpu"
    return (
        f"A batch has {recipe.batch_tokens:,} tokens of packed text in windows of {recipe.sequence_length:,}. "
        "Labels are shifted by one token, and nothing is padding.",
        "Training memory is that of model, gradients, optimizer and activations, without the teacher.",
        f"Throughput: forward passes over {inference.batch} sequences of {inference.prompt} tokens. Forward: one of "
        f"them. Generation: {inference.generated} greedy tokens after it. sd: standard deviation.",
        "Memory is resident memory, weights are float32."
        if cpu
        else "Memory is the allocator's, weights are bfloat16.",
        "Adapters are merged after training; with NF4 they stay beside the matrices. Without adapters, NF4 comes after "
        "the training.",
    )


def _cells(costs: StageCosts) -> tuple[Cell, ...]:
    training, inference = costs.training, costs.inference
    return (
        training.trained,
        training.seconds,
        training.seconds_sd,
        training.bytes,
        inference.weight_bytes,
        inference.bytes,
        inference.tokens_per_second,
        inference.forward_ms,
        inference.forward_ms_sd,
        inference.generation_ms,
        inference.generation_ms_sd,
        inference.perplexity,
    )


def _number(digits: int, unit: float = 1) -> Callable[[Cell], str]:
    return lambda value: "" if value is None else f"{float(value) / unit:,.{digits}f}"


COLUMNS = (
    Column("stages", is_number=False),
    Column("trained", _number(0), needed=False),
    Column("s/batch", _number(3)),
    Column("batch sd", _number(3), needed=False),
    Column("training MB", _number(0, 1e6)),
    Column("weights MB", _number(1, 1e6)),
    Column("inference MB", _number(0, 1e6)),
    Column("tokens/s", _number(0)),
    Column("forward ms", _number(1)),
    Column("forward sd", _number(1), needed=False),
    Column("generation ms", _number(0)),
    Column("generation sd", _number(0), needed=False),
    Column("perplexity", _number(2)),
)
