"""A server that speaks S3 on loopback, with an empty bucket."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "mirrors"


class ObjectStore:
    """The server. ``environment`` is what its clients need."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
        self.port = 0
        self.start()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "not-a-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def make_bucket(self) -> None:
        """Make the bucket `BUCKET`."""
        client = boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id="somebody",
            aws_secret_access_key="not-a-secret",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=BUCKET)

    def start(self) -> None:
        """Start the server, at the port that it had before."""
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        _, self.port = self._server.get_host_and_port()

    def stop(self) -> None:
        """End the server. What it holds stays in this process."""
        self._server.stop()


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A server during the block; its clients in this process find it by their environment."""
    store = ObjectStore()
    store.make_bucket()
    before = {name: os.environ.get(name) for name in store.environment}
    os.environ.update(store.environment)
    try:
        yield store
    finally:
        store.stop()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
