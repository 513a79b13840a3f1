"""Stage 2, screen: the loss of every architecture before retraining, and the candidates that are tried first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from nas.choosing.screening import first_candidates, to_screen
from nas.running.workers import Workers
from nas.stages.events import Listener
from nas.stages.keep_facts import keep_sizes
from nas.stages.measure import measure
from nas.stages.prepare import Prepared
from nas.study.trial_records import SCREENED
from search_spaces.architecture import Architecture


@dataclass(frozen=True)
class Screened(Prepared):
    """A search with its screening.

    ``losses`` are by the architecture's key, None where there is none. ``first`` are the candidates to try first, each
    with the reason.
    """

    losses: Mapping[str, float | None]
    first: tuple[tuple[str, Architecture], ...]


def screen(prepared: Prepared, workers: Workers, announce: Listener) -> Screened:
    """Measure what `nas.choosing.screening` asks for. A study with all its trials is not screened any more.

    Raises InputError when a worker does.
    """
    plan, study = prepared.plan, prepared.study
    if study.finished() < plan.trials:
        keep_sizes(study, plan.target.shape, to_screen(plan, study.kept(SCREENED)), plan.recipe.sequence_length)
        measure(SCREENED, plan, study, workers, announce, partial(to_screen, plan), plan.screenings)
    losses = study.kept(SCREENED)
    measured = (one for one in plan.target.feasible if one.key in losses)
    keep_sizes(study, plan.target.shape, measured, plan.recipe.sequence_length)
    first = tuple(one for part in plan.parts for one in first_candidates(part, losses)[: part.trials])
    return Screened(**vars(prepared), losses=losses, first=first)
