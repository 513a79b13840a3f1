"""How long a plan will take on this machine."""

from __future__ import annotations

from nas.forecast import expected_tokens
from nas.plan import Plan
from trials.estimate import estimate_screen_seconds, estimate_seconds


def estimated_seconds(plan: Plan) -> float:
    """How long the search will take on this machine, from FLOPs and a short measurement of its speed."""
    candidate = plan.target.feasible[len(plan.target.feasible) // 2]
    whole_trial = estimate_seconds(plan.target.shape, candidate, plan.recipe, plan.resources.device)
    screening = estimate_screen_seconds(plan.target.shape, candidate, plan.recipe, plan.resources.device)
    at_a_time = plan.resources.workers if plan.resources.gpus else 1  # trials on a CPU share what is measured
    return (screening * plan.screenings + whole_trial * expected_tokens(plan) / plan.recipe.tokens) / at_a_time
