"""The winners as versions of registered models."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from mlflow import MlflowClient

from nas.tracking.messages import ModelExported
from nas.tracking.mlflow_environment import patient_uploads
from nas.tracking.mlflow_flavour import write_flavour
from nas.tracking.mlflow_view import BEST, STUDY, model_name

CONTENT = "nas.sha256"  # a tag of a version: the digest of its files
MODEL_FILES = ("*.safetensors", "config.json")


def register(client: MlflowClient, run: str, event: ModelExported, files: Path) -> None:
    """Make the checkpoint in the folder ``files`` the version with the alias `BEST`, as a product of ``run``.

    A version with the same content is found again, so nothing happens the second time. Its description is the latest.
    """
    name, content = model_name(event.name), _content(files)
    own = {CONTENT: content, STUDY: event.study}
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    if _version(client, name, own) is None:
        folder = f"model/{content[:12]}"  # one for each content, so no earlier version is overwritten
        write_flavour(files, run, folder)
        with patient_uploads():
            client.log_artifacts(run, str(files), folder)
        source = f"{client.get_run(run).info.artifact_uri}/{folder}"
        client.create_model_version(name, source, run, own, await_creation_for=0)
    version = _version(client, name, own)
    client.update_model_version(name, version, event.description)
    client.update_registered_model(name, event.description)
    client.set_registered_model_alias(name, BEST, version)


def _version(client: MlflowClient, name: str, own: Mapping[str, str]) -> str | None:
    """The version with the tags ``own``, or None. Of several, the first stays and the others are deleted.

    A request can create a version after the client has timed out and repeated it.
    """
    versions = client.search_model_versions(f"name = '{name}'")
    found = [one for one in versions if own.items() <= one.tags.items()]
    first, *extra = sorted(found, key=lambda one: int(one.version)) or [None]
    for one in extra:
        client.delete_model_version(name, one.version)
    return None if first is None else str(first.version)


def _content(folder: Path) -> str:
    """A digest of the weights and the configuration of a model."""
    digest = sha256()
    for path in sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)}):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()
