"""How MLflow's pages show a search: the view of its list of runs, and the dataset of its text. Pure values.

A shared view of MLflow is a tag of the experiment. Its name is part of an address, and its value is the JSON that the
page keeps of a list: columns, order and filter (MLflow 3.17). A page that does not know the tag shows its usual list.
"""

from __future__ import annotations

import json
import re
from typing import Any

STUDY = "nas.study"  # the tag of all runs of a study
BEST = "best"  # the alias of the winner among the versions of a registered model
VIEW = "mlflow.sharedViewState."
VIEW_KEY = "viewStateShareKey"
METRICS = {"val_loss": 100, "parameters": 100, "tokens": 80}  # columns of the list, with their widths in pixels
TAGS = {"role": 120, "state": 100, "stage": 80, "architecture": 160}
KINDS = {"metrics": METRICS, "tags": TAGS}


def view_tag(study: str) -> tuple[str, str]:
    """The tag (name, value) of the experiment that holds the view of ``study``: its runs, the smallest loss first.

    A sorted list has no folded rows, so every run is seen.
    """
    widths = {f"{kind}.`{name}`": width for kind, own in KINDS.items() for name, width in own.items()}
    columns = list(widths)
    state: dict[str, Any] = {
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": widths,
        "orderByKey": columns[0],
        "orderByAsc": True,
        "searchFilter": f"tags.`{STUDY}` = '{study}'",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "hideEmptyCharts": True,
        "runsHiddenMode": "FIRST_20_RUNS",
    }
    return VIEW + study, json.dumps(state)


def runs_page(experiment: str, study: str) -> str:
    """The end of the address that opens the view of ``study`` under MLflow's *Model training*."""
    return f"/#/experiments/{experiment}/runs?workflowType=machine_learning&{VIEW_KEY}={study}"


def dataset(source: str, fingerprint: str) -> dict[str, str]:
    """The text of a search as the fields of MLflow's Dataset: where it comes from, and a digest of it."""
    where = json.dumps({"uri": source})
    return {"name": source[:500], "digest": fingerprint[:36], "source_type": "external", "source": where}


def model_name(name: str) -> str:
    """``name`` as MLflow allows it for a registered model."""
    return re.sub(r"[/:]+", "-", name)
