"""The files of a finished training, result.json and the sealed student: writes them, and reads them with checks."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save_model
from transformers import PreTrainedModel

from trials.distill.checkpoint import Rung
from trials.distill.distill import Report
from trials.families.shapes import by_layer
from trials.storage.durable import damage, from_json, write_file, write_sealed

RESULT, STUDENT, WEIGHTS, SETTINGS = "result.json", "student", "model.safetensors", "settings_by_layer.json"

Result = TypeVar("Result")

log = logging.getLogger(__name__)


def write_result(directory: Path, identity: str, rungs: Iterable[Rung], result: Mapping[str, Any]) -> None:
    """Write ``result`` (JSON) and the metrics of all ``rungs``. The student must be saved before."""
    document = {"identity": identity, "rungs": [asdict(rung) for rung in rungs], "result": dict(result)}
    write_file(directory / RESULT, json.dumps(document, indent=1).encode())


def read_result(
    directory: Path, identity: str, parse: Callable[[Mapping[str, Any]], Result], report: Report
) -> Result | None:
    """The stored result of the training ``identity``, after its rungs are reported; None if there is no valid one.

    If a stored result is damaged or has another identity, the log says so.
    """
    try:
        document = from_json((directory / RESULT).read_bytes())
        if document["identity"] != identity:
            log.warning("result in %s is not used: it is of another recipe, architecture, teacher or corpus", directory)
            return None
        rungs = [Rung(**rung) for rung in document["rungs"]]
        result = parse(document["result"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        log.warning("result in %s cannot be read (%s): the trial runs again", directory, error)
        return None
    if problem := damage(directory / STUDENT):
        log.warning("student in %s is damaged (%s): the trial runs again", directory, problem)
        return None
    for rung in rungs:
        report(rung.tokens, dict(rung.metrics))
    return result


def save_student(student: PreTrainedModel, path: Path) -> None:
    """Write weights, settings by layer and generation configuration of ``student`` to the sealed folder ``path``."""

    def write(folder: Path) -> None:
        save_model(student, str(folder / WEIGHTS))
        (folder / SETTINGS).write_text(json.dumps(by_layer(student.config)))
        student.generation_config.save_pretrained(folder)

    write_sealed(path, write)
