"""Delivers events to MLflow. A delivery can be repeated and changes nothing the second time.

A delivery can be cut off at any point, and is then repeated. So every object is looked up before it is created: runs by
their tags, model versions by a digest of their content. Parameters, tags and statuses are set to the same values again.
Metric points have timestamps from the event, and MLflow stores identical points once.
"""

from __future__ import annotations

import getpass
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from requests import HTTPError

from nas.tracking.messages import (
    Artifacts,
    Event,
    FinalChanged,
    ModelExported,
    RunJudged,
    SearchFinished,
    SearchStarted,
    TrialChanged,
)
from nas.tracking.mlflow_environment import patient_uploads
from nas.tracking.mlflow_registry import register
from nas.tracking.mlflow_stores import alone, is_permanent
from nas.tracking.mlflow_view import STUDY, view_tag
from nas.tracking.outbox import RejectedError
from nas.tracking.run_contents import STATUS, facts, milliseconds, points, run_name, sizes
from trials.storage.redact import redacted_line

TRIAL, PARENT, NOTE = "nas.trial", "parent", "mlflow.note.content"
STATES = {"FINISHED": "COMPLETE", "KILLED": "INTERRUPTED", "FAILED": "FAIL"}  # the tag of a parent run that ended
MARK = "★ "  # begins the name of the winner's run
INTERRUPTED = "the search ended before the trial; the trial runs again under another number"
FINAL_INTERRUPTED = "the search ended before the final; the same command continues it"
EXPERIMENT_KIND, TRAINING = "mlflow.experimentKind", "custom_model_development"  # or MLflow shows pages for chats
LONGEST = 6000  # maximum length of a parameter, in characters


class MlflowDelivery:
    """Delivers events to the experiment ``experiment`` of the MLflow store or server at ``uri``.

    ``artifact_root`` is the artifact folder of a new experiment; with None the server chooses. A missing SQLite store
    is created. Raises MLflow's errors when the store cannot be reached, and ValueError when the experiment is deleted.
    """

    def __init__(self, uri: str, experiment: str, artifact_root: Path | None) -> None:
        with alone(uri):
            self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            self.experiment = self._find_experiment(experiment, artifact_root)
        self._runs: dict[tuple[str, str | None], str] = {}
        self._handlers: dict[type[Event], Callable[[Any, Path], None]] = {
            SearchStarted: self._search_started,
            TrialChanged: self._trial_changed,
            FinalChanged: self._final_changed,
            RunJudged: self._run_judged,
            Artifacts: self._artifacts,
            SearchFinished: self._search_finished,
            ModelExported: self._model_exported,
        }

    def deliver(self, event: Event, files: Path) -> None:
        """Write ``event`` and the files in the folder ``files`` to the store.

        Raises RejectedError when the store can never accept the event, and MLflow's errors when a retry can help.
        """
        if isinstance(event, (Artifacts, ModelExported)) and not files.is_dir():
            raise RejectedError("the files of the event are missing")
        known = bool(self._runs)
        try:
            self._attempt(event, files)
        except RejectedError:
            if not known:
                raise
            self._runs.clear()  # a known run may have been deleted, so look all of them up again
            self._attempt(event, files)

    def _attempt(self, event: Event, files: Path) -> None:
        try:
            self._handlers[type(event)](event, files)
        except (MlflowException, HTTPError) as error:
            if is_permanent(error):
                raise RejectedError(redacted_line(error, 500)) from error
            raise
        except (ArithmeticError, TypeError) as error:  # a fault of the event, which no store can accept
            raise RejectedError(redacted_line(error, 500)) from error

    def _find_experiment(self, name: str, artifact_root: Path | None) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            location = artifact_root.resolve().as_uri() if artifact_root else None
            return str(self.client.create_experiment(name, location, {EXPERIMENT_KIND: TRAINING}))
        if found.lifecycle_stage != "active":
            raise ValueError(f"MLflow experiment {name!r} is deleted; restore it, or give another name to --experiment")
        return str(found.experiment_id)

    def _search_started(self, event: SearchStarted, files: Path) -> None:
        tags = {
            **event.tags,
            "stage": "search",
            "state": "RUNNING",
            "mlflow.source.name": "python -m nas.search",
            NOTE: event.description,
        }
        self.client.set_experiment_tag(self.experiment, *view_tag(event.study))
        run = self._run(event.study, None, event.name or event.study, event.started)
        self._settle(event.study, unmark=True)
        known = self.client.get_run(run).data
        settings = {key: str(value)[:LONGEST] for key, value in event.settings.items() if value is not None}
        new = {key: value for key, value in settings.items() if key not in known.params}
        changed = {  # MLflow parameters cannot change, so the latest value is a tag
            f"changed.{key}": value
            for key, value in settings.items()
            if known.params.get(key, value) != value or f"changed.{key}" in known.tags
        }
        self._log(run, params=new, tags={**tags, **changed})
        if event.corpus:
            used = [InputTag("mlflow.data.context", "training")]
            self.client.log_inputs(run, [DatasetInput(Dataset(**event.corpus), used)])
        self.client.update_run(run, status="RUNNING")

    def _trial_changed(self, event: TrialChanged, files: Path) -> None:
        record = event.record
        parent = self._run(event.study, None, event.study, record.started)
        tags = {"mlflow.parentRunId": parent, "mlflow.source.name": "nas trial"}
        run = self._run(event.study, str(record.number), run_name(record), record.started, tags)
        self._log(run, points(record), sizes(record), facts(record))
        if record.state in STATUS:
            self.client.set_terminated(run, STATUS[record.state], milliseconds(record.ended))

    def _final_changed(self, event: FinalChanged, files: Path) -> None:
        record = event.record
        parent = self._run(event.study, None, event.study, record.started)
        tags = {"mlflow.parentRunId": parent, "mlflow.source.name": "nas final"}
        run = self._run(event.study, f"final {record.name}", run_name(record), record.started, tags)
        self._log(run, points(record), sizes(record), facts(record))
        if record.state in STATUS:
            self.client.set_terminated(run, STATUS[record.state], milliseconds(record.ended))
        else:
            self.client.update_run(run, status="RUNNING")  # an interruption has set it to KILLED

    def _run_judged(self, event: RunJudged, files: Path) -> None:
        run = self._found(event.study, event.place)
        if run is None:  # it is in another store, which was in use then
            return
        self._log(run, _figures(event.metrics, event.ended), tags=event.tags)
        name = str(self.client.get_run(run).info.run_name).removeprefix(MARK)
        self.client.update_run(run, name=f"{MARK if event.wins else ''}{name}")

    def _artifacts(self, event: Artifacts, files: Path) -> None:
        run = self._run(event.study, None, event.study, None)
        with patient_uploads():
            self.client.log_artifacts(run, str(files), event.artifact_path or None)

    def _search_finished(self, event: SearchFinished, files: Path) -> None:
        run = self._run(event.study, None, event.study, None)
        self._settle(event.study)
        told = {NOTE: event.description} if event.description else {}
        tags = {**event.tags, **told, "state": STATES[event.status]}
        self._log(run, _figures(event.metrics, event.ended), tags=tags)
        self.client.set_terminated(run, event.status, milliseconds(event.ended))

    def _model_exported(self, event: ModelExported, files: Path) -> None:
        register(self.client, self._run(event.study, None, event.study, None), event, files)

    def _run(
        self,
        study: str,
        trial: str | None,
        name: str,
        started: float | None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """The id of the parent run (``trial`` is None), or of the run of a trial or final. A missing run is created."""
        if (known := self._found(study, trial)) is not None:
            return known
        own = {STUDY: study, TRIAL: trial or PARENT, "mlflow.user": getpass.getuser(), **(tags or {})}
        made = self.client.create_run(self.experiment, milliseconds(started), own, name)
        self._runs[study, trial] = str(made.info.run_id)
        return self._runs[study, trial]

    def _found(self, study: str, trial: str | None) -> str | None:
        """The id of a run that is there, or None."""
        if (study, trial) not in self._runs:
            found = self._only(self._search(f"tags.`{STUDY}` = '{study}' and tags.`{TRIAL}` = '{trial or PARENT}'"))
            if found is None:
                return None
            self._runs[study, trial] = str(found.info.run_id)
        return self._runs[study, trial]

    def _only(self, runs: list[Any]) -> Any:
        """The run with the most content of several ``runs`` with the same tags, or None. The others are deleted.

        A request can create a run after the client has timed out and repeated it.
        """
        first, *extra = sorted(runs, key=_fullness, reverse=True) or [None]
        for one in extra:
            self.client.delete_run(one.info.run_id)
        return first

    def _settle(self, study: str, unmark: bool = False) -> None:
        """End the runs that an interrupted search left RUNNING, and keep one run for each trial and final.

        Called when a search starts or ends, because no trial is running then. With ``unmark`` no run is the winner's
        any more: the search that starts may find another one.
        """
        trials: dict[str, list[Any]] = {}
        for run in self._search(f"tags.`{STUDY}` = '{study}'"):
            trials.setdefault(run.data.tags[TRIAL], []).append(run)
        for place, runs in trials.items():
            run = self._only(runs)
            if place != PARENT and run.info.status == "RUNNING":
                reason = FINAL_INTERRUPTED if place.startswith("final") else INTERRUPTED
                self._log(run.info.run_id, tags={"state": "INTERRUPTED", "reason": reason})
                self.client.set_terminated(run.info.run_id, "KILLED")
            if unmark and str(run.info.run_name).startswith(MARK):
                self._log(run.info.run_id, tags={"role": ""})
                self.client.update_run(run.info.run_id, name=str(run.info.run_name).removeprefix(MARK))

    def _search(self, query: str) -> list[Any]:
        found, token = [], None
        while True:
            page = self.client.search_runs([self.experiment], query, max_results=1000, page_token=token)
            found.extend(page)
            token = page.token
            if not token:
                return found

    def _log(
        self,
        run: str,
        metrics: list[tuple[str, float, int, int]] | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log everything in one request. Values that are not finite are left out, because charts cannot show them."""
        self.client.log_batch(
            run,
            metrics=[Metric(*one) for one in metrics or () if math.isfinite(one[1])],
            params=[Param(key, str(value)) for key, value in (params or {}).items()],
            tags=[RunTag(key, value) for key, value in (tags or {}).items()],
        )


def _figures(metrics: Mapping[str, float], ended: float) -> list[tuple[str, float, int, int]]:
    """Points without a step, for `MlflowDelivery._log`."""
    return [(name, value, round(ended * 1000), 0) for name, value in metrics.items()]


def _fullness(run: Any) -> tuple[int, str]:
    return len(run.data.params) + len(run.data.metrics), str(run.info.run_id)
