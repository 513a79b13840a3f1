"""Which architectures go on from the trials to the final stage."""

from __future__ import annotations

from collections.abc import Sequence

from nas.choosing.selection import FINALIST, STOCK, best_stock, weighed
from nas.planning.plan import Plan
from nas.study.records import FinalRecord, TrialRecord
from search_spaces.architecture import Architecture
from trials.export.loads_in import loads_in


def finalists(plan: Plan, records: Sequence[TrialRecord]) -> list[FinalRecord]:
    """The best trials first, then the best stock trial and the baselines. Each architecture comes once, with its roles.

    The best are the first of `nas.choosing.selection.weighed`.
    """
    ranked, stock = weighed(records, plan.objectives), best_stock(records)
    roles: dict[Architecture, list[str]] = {one.architecture: [FINALIST] for one in ranked[: plan.settings.finalists]}
    if stock is not None:
        roles.setdefault(stock.architecture, [STOCK])
    for name, architecture in plan.baselines.items():
        roles.setdefault(architecture, []).append(name)
    curves = {one.architecture: one.curve for one in ranked}
    shape, tokens = plan.target.shape, plan.recipe.tokens + plan.final_tokens
    return [
        FinalRecord(
            architecture=one,
            parameters=shape.parameters(one),
            stock=shape.is_stock(one),
            tokens=tokens,
            roles=tuple(names),
            curve=curves.get(one, ()),
            loads_in=str(loads_in(shape, one)),
        )
        for one, names in roles.items()
    ]
