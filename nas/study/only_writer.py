"""The trials of a study in memory, for the one process that writes to it.

Optuna's own cache reads every running trial anew whenever it is asked, because other processes may have changed it.
With 64 running trials that was half of the driver's work. A study has one driver (`nas.driver`), so the driver reads
only what it has changed itself, and of that only what it does not know.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages import RDBStorage, _CachedStorage
from optuna.trial import FrozenTrial, TrialState

SET_ONCE = ("params", "distributions")  # a database keeps the first value of each entry


class OnlyWriter(_CachedStorage):  # type: ignore[misc]
    """Optuna's cache before ``backend``, to which nobody else writes trials. After `forget` it reads all of them anew.

    Optuna's cache reads the trials in ``unfinished_trial_ids`` and those after ``last_finished_trial_id``. Here the
    first are the trials that have changed since they were read, and the second is the newest that was read.
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self._current: set[int] = set()  # studies whose trials in memory are those of the database

    def forget(self) -> None:
        """Trust nothing in memory any more."""
        with self._lock:
            self._current.clear()
            for study in self._studies.values():
                study.unfinished_trial_ids.clear()
                study.last_finished_trial_id = -1

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """As Optuna's."""
        try:
            made: int = super().create_new_trial(study_id, template_trial)
            return made
        finally:
            with self._lock:
                self._current.discard(study_id)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """As Optuna's."""
        held = json_to_distribution(distribution_to_json(distribution))
        value = held.to_external_repr(param_value_internal)
        with self._changing(trial_id, params={param_name: value}, distributions={param_name: held}):
            super().set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As Optuna's."""
        with self._changing(trial_id):
            changed: bool = super().set_trial_state_values(trial_id, state, values)
        return changed

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """As Optuna's."""
        with self._changing(trial_id, intermediate_values={step: intermediate_value}):
            super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """As Optuna's."""
        with self._changing(trial_id, user_attrs={key: _stored(value)}):
            super().set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """As Optuna's."""
        with self._changing(trial_id, system_attrs={key: _stored(value)}):
            super().set_trial_system_attr(trial_id, key, value)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """As Optuna's. The caller may change a trial that has not ended."""
        study_id, number = self._trial_id_to_study_id_and_number.get(trial_id, (None, -1))
        if study_id is None:
            return self._backend.get_trial(trial_id)
        self._read_trials_from_remote_storage(study_id)
        with self._lock:
            trial = self._studies[study_id].trials[number]
        return trial if trial.state.is_finished() else copy.deepcopy(trial)

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        if study_id in self._current:
            return
        super()._read_trials_from_remote_storage(study_id)
        with self._lock:
            study = self._studies[study_id]
            study.unfinished_trial_ids.clear()
            study.last_finished_trial_id = max((one._trial_id for one in study.trials.values()), default=-1)
            self._current.add(study_id)

    @contextmanager
    def _changing(self, trial_id: int, **more: dict[Any, Any]) -> Iterator[None]:
        """Follow the change of a trial in this block: ``more`` goes into its dictionaries of these names.

        The trial is read again after a change of another kind, and after an error, which may come after the change.
        """
        done = False
        try:
            yield
            done = True
        finally:
            with self._lock:
                study_id, number = self._trial_id_to_study_id_and_number.get(trial_id, (None, -1))
                if study_id is not None:  # otherwise the trial is not in memory
                    study = self._studies[study_id]
                    if done and more:
                        study.trials[number] = _with(study.trials[number], more)
                    else:
                        study.unfinished_trial_ids.add(trial_id)
                        self._current.discard(study_id)


def _with(trial: FrozenTrial, more: dict[str, dict[Any, Any]]) -> FrozenTrial:
    """``trial`` with ``more`` in its dictionaries. Whoever has the trial keeps it as it was."""
    changed = copy.copy(trial)
    for what, entries in more.items():
        known = getattr(trial, what)
        setattr(changed, what, {**entries, **known} if what in SET_ONCE else {**known, **entries})
    return changed


def _stored(value: Any) -> Any:
    """``value`` as a database gives it back."""
    return json.loads(json.dumps(value))
