"""A server that speaks the protocol of S3, moto's, for as long as tests need it: where a team keeps its files."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

KEY, SECRET = "team-key", "team-secret-of-the-tests"
REGION = "us-east-1"


@dataclass(frozen=True)
class ObjectStore:
    """An S3-compatible store on the loopback interface."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to know of it, and nothing else does: MLflow, boto3 and DVC all read these."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": REGION,
        }

    @cached_property
    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name=REGION,
        )

    def make_bucket(self, name: str) -> str:
        """A new bucket; returns its address."""
        self.client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def read(self, bucket: str) -> dict[str, bytes]:
        """Everything in a bucket."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {key: self.client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


@contextmanager
def running_s3() -> Iterator[ObjectStore]:
    """A server on a free port, empty."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it has a line for each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield ObjectStore("http://{}:{}".format(*server.get_host_and_port()))
    finally:
        server.stop()
