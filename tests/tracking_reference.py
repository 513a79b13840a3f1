"""A made-up search, and what an MLflow store holds of it in a form that can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.study.records import FinalRecord, TrialRecord
from nas.tracking.messages import (
    Artifacts,
    Event,
    ModelExported,
    RunJudged,
    SearchFinished,
    SearchStarted,
    TrialChanged,
)
from nas.tracking.mlflow_view import dataset
from search_spaces.architecture import Architecture

if TYPE_CHECKING:
    from mlflow import MlflowClient

STARTED = 1_700_000_000.25
RUNGS = (0, 1024, 2048, 4096)


def record(number: int, state: str = "COMPLETE", rungs: int = 4, **changes: Any) -> TrialRecord:
    """Trial ``number`` as it stands after ``rungs`` readings."""
    curve = tuple((tokens, 4.0 + number / 10 - tokens / 4096) for tokens in RUNGS[:rungs])
    ended = state != "RUNNING"
    values: dict[str, Any] = {
        "number": number,
        "architecture": Architecture.uniform(6 + number % 3, 192 + 16 * number, 6, 768),
        "parameters": 5_000_000 + number,
        "stock": number % 2 == 0,
        "loads_in": "transformers, vLLM, llama.cpp" if number % 2 == 0 else "own code",
        "state": state,
        "reason": {"PRUNED": "stopped early", "FAIL": "NonFiniteLoss: nan"}.get(state),
        "val_loss": curve[-1][1] if curve and state == "COMPLETE" else None,
        "curve": curve,
        "metrics": {"kl": 0.5 + number, "seconds": 12.5} if ended else {},
        "started": STARTED + 60 * number,
        "ended": STARTED + 60 * number + 50 if ended else None,
    }
    return TrialRecord(**{**values, **changes})


def final(place: int, state: str = "COMPLETE", **changes: Any) -> FinalRecord:
    """The final of trial ``place``, which went on from ``RUNGS[-1]`` to twice as many tokens."""
    trial, ended = record(place), state in ("COMPLETE", "FAIL")
    loss = trial.curve[-1][1] - 0.5
    values: dict[str, Any] = {
        "architecture": trial.architecture,
        "parameters": trial.parameters,
        "stock": trial.stock,
        "loads_in": trial.loads_in,
        "tokens": 2 * RUNGS[-1],
        "roles": ("finalist",),
        "state": state,
        "reason": "NonFiniteLoss: nan" if state == "FAIL" else None,
        "val_loss": loss if state == "COMPLETE" else None,
        "curve": (*trial.curve, *([(2 * RUNGS[-1], loss)] if state == "COMPLETE" else [])),
        "metrics": {"trial_loss": trial.curve[-1][1], "kl": 0.25} if state == "COMPLETE" else {},
        "windows": f"digest {place}" if state == "COMPLETE" else "",
        "started": None if state == "WAITING" else STARTED + 1000 + place,
        "ended": STARTED + 1100 + place if ended else None,
    }
    return FinalRecord(**{**values, **changes})


def search_events(study: str, folder: Path) -> list[Event]:
    """The events of one whole search, in order; its files are made under ``folder``."""
    report, model = folder / "report.md", folder / "best"
    model.mkdir(parents=True, exist_ok=True)
    report.write_text("| rank |\n")
    (model / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    (model / "model.safetensors").write_bytes(f"weights of {study}".encode())
    trials = [record(0, "RUNNING", 1), record(0, "RUNNING", 3), record(1, "RUNNING", 0), record(0)]
    trials += [record(1, "PRUNED", 2), record(2, "FAIL", 1), record(3)]
    settings, tags, text = {"budget": "60%", "trials": 4}, {"teacher": "tiny"}, dataset("stdlib", "digest")
    return [
        SearchStarted(study, settings, tags, f"{study} shown", STARTED, "**Not finished.**", text),
        *(TrialChanged(study, one) for one in trials),
        Artifacts(study, (str(report),), "report"),
        RunJudged(study, "3", {"test_ptb_ppl": 7.0}, {"role": "winner"}, True, STARTED + 230),
        RunJudged(study, "99", {}, {"role": "nobody"}, False, STARTED),
        ModelExported(study, f"model-{study}", str(model), "the winner"),
        SearchFinished(study, {"val_loss": 3.0}, {"winner": "d6"}, ended=STARTED + 500, description="d6 wins"),
    ]


def contents(client: MlflowClient, study: str, experiment: str) -> dict[str, Any]:
    """All that the store holds of ``study``, duplicates included, without ids and without MLflow's own clock."""
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], f"tags.`nas.study` = '{study}'", max_results=1000)
    parents = {run.info.run_id for run in runs if run.data.tags["nas.trial"] == "parent"}
    models = client.search_model_versions(f"name = 'model-{study}'")
    return {
        "runs": sorted((_run(client, run, parents) for run in runs), key=lambda one: str(one["name"])),
        "versions": sorted(
            (str(one.version), one.tags["nas.sha256"], one.description, one.run_id in parents) for one in models
        ),
        "view": found.tags.get(f"mlflow.sharedViewState.{study}"),
        "best": [best_version(client, f"model-{study}") for _ in models[:1]],
    }


def best_version(client: MlflowClient, model: str) -> str:
    """The version of a registered model that the alias ``best`` points to."""
    return str(client.get_model_version_by_alias(model, "best").version)


def _run(client: MlflowClient, run: Any, parents: set[str]) -> dict[str, Any]:
    tags = {key: value for key, value in run.data.tags.items() if key != "mlflow.parentRunId"}
    metrics = [
        (point.key, point.value, point.timestamp, point.step)
        for key in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, key)
    ]
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "times": (run.info.start_time, run.info.end_time),
        "params": run.data.params,
        "tags": tags,
        "metrics": sorted(metrics),
        "datasets": [one.dataset.name for one in run.inputs.dataset_inputs],
        "is_child": run.data.tags.get("mlflow.parentRunId") in parents,
        "files": sorted(_files(client, run.info.run_id)),
    }


def _files(client: MlflowClient, run: str, folder: str | None = None) -> list[str]:
    found = []
    for one in client.list_artifacts(run, folder):
        found += _files(client, run, one.path) if one.is_dir else [f"{one.path}: {one.file_size}"]
    return found
