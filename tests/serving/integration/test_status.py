"""The line of `pipeline status` about the server of `pipeline up`."""

import os
from pathlib import Path

import pytest

from pipeline.server_addresses import LOCK, Stack, write_stack
from pipeline.serving.app import create_app
from pipeline.serving.served_model import ModelHolder
from pipeline.serving.status import describe_server
from pipeline.workspace import lock
from tests.serving.models import load_model, model_files
from tests.serving.running import make_settings, running

__all__ = ["model_files"]  # a fixture

pytestmark = pytest.mark.xdist_group("serving-requests")  # with the tests that need the same model


def test_the_status_names_the_version_and_the_address(tmp_path: Path, model_files: Path) -> None:
    model = ModelHolder(load_model(model_files, tmp_path / "model"))
    with (
        lock(LOCK, wait=0, remedy="", root=tmp_path),
        running(create_app(make_settings(tmp_path), model)) as server,
    ):
        address = f"http://127.0.0.1:{server.port}"
        write_stack(tmp_path, Stack(os.getpid(), others={"serve": address}))
        assert describe_server(tmp_path) == [("served", f"version 1, {address}")]
        model.replace(None, "garments has no champion")
        ((_, text),) = describe_server(tmp_path)
        assert text.startswith("no version: ")
    assert describe_server(tmp_path) == []  # `pipeline up` has ended


def test_without_a_server_the_status_says_nothing(tmp_path: Path) -> None:
    with lock(LOCK, wait=0, remedy="", root=tmp_path):
        write_stack(tmp_path, Stack(os.getpid(), mlflow="http://127.0.0.1:5000"))
        assert describe_server(tmp_path) == []
