"""Webhooks with the signature of MLflow, and the resolver that asks the registry when one arrives."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.webhooks.delivery import _generate_hmac_signature

from pipeline.serving import webhook
from pipeline.serving.app import create_app
from pipeline.serving.served_model import ModelHolder
from tests.serving.running import KEY, Running, make_settings, running

BODY = json.dumps({"entity": "model_version_alias", "action": "created", "data": {"alias": "champion"}})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    settings = make_settings(tmp_path, host="0.0.0.0")
    settings.folder.mkdir(parents=True)
    with running(create_app(settings, ModelHolder(), None, [webhook.router])) as started:
        yield started


def sign(secret: str = KEY, *, age: float = 0, body: str = BODY) -> dict[str, str]:
    """The headers of MLflow."""
    sent = str(int(time.time() - age))
    signature = _generate_hmac_signature(secret, "delivery-1", sent, body)
    return {"x_mlflow_delivery_id": "delivery-1", "x_mlflow_timestamp": sent, "x_mlflow_signature": signature}


def test_a_signed_webhook_lets_the_resolver_ask(server: Running, tmp_path: Path) -> None:
    answer = server.ask("POST", "/v1/refresh", BODY.encode(), **sign())
    assert answer.status == 200, answer.body
    assert make_settings(tmp_path).refresh_file.exists()


@pytest.mark.parametrize(
    ("signed", "changed"),
    [
        (None, {}),
        (None, {"authorization": f"Bearer {KEY}"}),
        ({"secret": "another secret of the same length"}, {}),
        ({"age": webhook.MOST_SECONDS + 60}, {}),
        ({"body": "another body"}, {}),
        ({}, {"x_mlflow_delivery_id": "delivery-2"}),
        ({}, {"x_mlflow_timestamp": "now"}),
        ({}, {"x_mlflow_timestamp": "9" * 5000}),
        ({}, {"x_mlflow_signature": "v1,"}),
        ({}, {"x_mlflow_signature": "v1,\xe9"}),
    ],
)
def test_other_requests_are_refused(
    server: Running, tmp_path: Path, signed: dict[str, Any] | None, changed: dict[str, str]
) -> None:
    headers = changed if signed is None else sign(**signed) | changed
    answer = server.ask("POST", "/v1/refresh", BODY.encode(), **headers)
    assert answer.status == 401
    assert "not signed" in answer.json["error"]
    assert not make_settings(tmp_path).refresh_file.exists()


def test_a_large_request_is_refused_before_its_signature_is_checked(server: Running) -> None:
    body = "x" * (webhook.MOST_BYTES + 1)
    answer = server.ask("POST", "/v1/refresh", body.encode(), **sign(body=body))
    assert answer.status == 413
    assert answer.json["expected"] == f"at most {webhook.MOST_BYTES:,} bytes"
