"""A study as its database holds it, read without its search space: for reports of any study, also of one that runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from nas.study.database import SQLITE, opening
from nas.study.records import FinalRecord, TrialRecord
from nas.study.storage import explained, open_storage, shown_url
from nas.study.trial_records import ARCHITECTURE, SCREENED, TIMED, measured_in, record_of, shown
from search_spaces.architecture import Architecture
from search_spaces.compression import BITS
from search_spaces.errors import InputError
from search_spaces.shape import ModelShape
from search_spaces.stored_size import memory_bytes, stored_bytes

# User attributes of a study, see `nas.stages.keep_facts`. Of RESULT there is one for each budget, and of SIZES one for
# each few hundred architectures.
FORMAT = 1  # of all of these, kept in PLAN: raise it whenever one of them holds something else
PLAN, TEACHER, IMPORTANCE, SIZES, SECONDS, RESULT = "plan", "teacher", "importance", "sizes", "seconds", "result"
SIZE_NAMES = (
    "depth",
    "hidden",
    "heads",
    "mlp",
    "parameters",
    "stored_bytes",
    "memory_bytes",
    "flops",
    "stock",
    "zeros",
    "bits",
)
FINAL = "final "  # the start of a final's attribute; its version and its name follow


@dataclass(frozen=True)
class StudySnapshot:
    """The study ``name`` at one moment: its user ``attributes``, its trials and its finals.

    ``shape`` is the teacher's. ``screened`` and ``timed`` are what was measured before the trials, by the
    architecture's key; None where the measurement failed.
    """

    name: str
    attributes: Mapping[str, Any]
    shape: ModelShape
    records: tuple[TrialRecord, ...]
    finals: tuple[FinalRecord, ...]
    screened: Mapping[str, float | None]
    timed: Mapping[str, float | None]

    def parts(self, name: str) -> dict[str, Any]:
        """The values of all attributes called ``name`` or ``name PART``, by part; the part of a single one is ""."""
        found = {key: value for key, value in self.attributes.items() if key.split(" ")[0] == name}
        return {key.removeprefix(name).strip(): value for key, value in found.items()}


def open_study(url: str, name: str) -> optuna.Study:
    """The study ``name`` in the database ``url``, to read it. Nothing is created.

    Raises InputError when the database or the study is not there.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = Path(url.removeprefix(SQLITE))
    if url.startswith(SQLITE) and not path.is_file():
        raise InputError(f"no studies in {path}: there is no such file; give the --output or --storage of the search")
    with explained(url), opening(url, reading=True):
        storage = open_storage(url, reading=True)
        names = optuna.get_all_study_names(storage)
        if name not in names:
            known = ", ".join(sorted(names)[:10]) or "none"
            raise InputError(f"study {name!r}: not in {shown_url(url)}; known are {known}")
        return optuna.load_study(study_name=name, storage=storage)


def snapshot(study: optuna.Study) -> StudySnapshot:
    """The ``study`` as it is now. Raises InputError when a version of this program made it that kept too little."""
    attributes, trials = study.user_attrs, shown(study.get_trials(deepcopy=False))
    if attributes.get(PLAN, {}).get("format") != FORMAT or any(ARCHITECTURE not in one.user_attrs for one in trials):
        raise InputError(
            f"study {study.study_name!r}: it was made by another version of this program, or its teacher was never "
            "prepared, so that it does not hold what a report needs; give the command of the search again, or another "
            "--study"
        )
    shape = ModelShape(**attributes[TEACHER]["shape"])
    screened, timed = measured_in(attributes, SCREENED), measured_in(attributes, TIMED)
    records = (
        record_of(one, shape, Architecture.from_dict(one.user_attrs[ARCHITECTURE]), screened, timed) for one in trials
    )
    return StudySnapshot(study.study_name, attributes, shape, tuple(records), _finals(attributes), screened, timed)


def sizes_of(one: Architecture, shape: ModelShape, sequence: int) -> list[float]:
    """The sizes and costs of an architecture, in the order of `SIZE_NAMES`.

    FLOPs are those of the forward pass of a token in a ``sequence`` of this length.
    """
    heads, mlp = sum(one.heads) / one.depth, sum(one.mlp) / one.depth
    costs = [shape.parameters(one), stored_bytes(shape, one), memory_bytes(shape, one)]
    done = [one.compression.sparsity.level, BITS[one.compression.quantization.scheme]]
    flops, stock = shape.flops_per_token(one, sequence), int(shape.is_stock(one))
    return [one.depth, one.hidden, heads, mlp, *costs, flops, stock, *done]


def _finals(attributes: Mapping[str, Any]) -> tuple[FinalRecord, ...]:
    """The finals, each of the newest version that the study holds."""
    newest: dict[str, tuple[int, FinalRecord]] = {}
    for key, value in attributes.items():
        if key.startswith(FINAL):
            version, name = key.removeprefix(FINAL).split(" ", 1)
            if name not in newest or newest[name][0] < int(version):
                newest[name] = int(version), FinalRecord.from_dict(value)
    return tuple(record for _, record in newest.values())
