"""The open inference protocol v2, with the requests that its clients send."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.serving import inference_v2
from pipeline.serving.app import create_app
from pipeline.serving.served_model import ModelHolder, ServedModel
from tests.serving.models import EXAMPLE, load_model, model_files
from tests.serving.running import Answer, Running, make_settings, running

__all__ = ["model_files"]  # a fixture
TENSOR = {"name": "images", "datatype": "UINT8", "shape": [3, 4, 5], "data": EXAMPLE.ravel().tolist()}


@pytest.fixture(scope="module")
def served(model_files: Path, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    return load_model(model_files, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(served: ServedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = make_settings(tmp_path_factory.mktemp("root"))
    with running(create_app(settings, ModelHolder(served), routers=[inference_v2.router])) as address:
        yield address


def infer(server: Running, content: Any, path: str = "/v2/models/garments/infer") -> Answer:
    return server.ask("POST", path, json.dumps(content).encode(), content_type="application/json")


@pytest.mark.parametrize("path", ["/v2/models/garments/infer", "/v2/models/garments/versions/1/infer"])
@pytest.mark.parametrize("data", [TENSOR["data"], EXAMPLE.tolist()], ids=["flat", "nested"])
def test_it_answers_with_one_flat_tensor(server: Running, served: ServedModel, path: str, data: list[Any]) -> None:
    answer = infer(server, {"id": "mine", "inputs": [TENSOR | {"data": data}]}, path)
    assert (answer.json["model_name"], answer.json["model_version"], answer.json["id"]) == ("garments", "1", "mine")
    (output,) = answer.json["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("probabilities", "FP32", [3, 3])
    np.testing.assert_allclose(np.reshape(output["data"], (3, 3)), served.predict(EXAMPLE), atol=1e-7)


def test_it_describes_server_and_model(server: Running) -> None:
    assert {"name", "version", "extensions"} <= server.ask("GET", "/v2").json.keys()
    model = server.ask("GET", "/v2/models/garments").json
    assert model["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 4, 5]}]
    assert model["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}]
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/garments/ready"):
        assert server.ask("GET", path).status == 200
    for path in ("/v2/models/shoes/ready", "/v2/models/garments/versions/2"):
        assert server.ask("GET", path).status == 404


@pytest.mark.parametrize(
    "content",
    [
        [], {}, {"inputs": []}, {"inputs": [TENSOR, TENSOR]}, {"inputs": ["images"]}, {"inputs": {"0": TENSOR}},
        {"inputs": [TENSOR | {"datatype": "FP32"}]}, {"inputs": [TENSOR | {"datatype": None}]},
        {"inputs": [TENSOR | {"shape": [3, 20]}]}, {"inputs": [TENSOR | {"shape": "3"}]},
        {"inputs": [TENSOR | {"shape": [-3, 4, 5]}]}, {"inputs": [TENSOR | {"shape": [True, 4, 5]}]},
        {"inputs": [TENSOR | {"shape": [10**12, 4, 5]}]}, {"inputs": [TENSOR | {"shape": [10**4299, 4, 5]}]},
        {"inputs": [TENSOR | {"shape": [2, 4, 5], "data": EXAMPLE.tolist()}]},
        {"inputs": [TENSOR | {"data": TENSOR["data"][1:]}]},
        {"inputs": [TENSOR | {"data": None}]}, {"inputs": [TENSOR | {"data": []}]},
        {"inputs": [TENSOR | {"data": [0.5, *TENSOR["data"][1:]]}]},
        {"inputs": [TENSOR | {"data": [256, *TENSOR["data"][1:]]}]},
        {"inputs": [TENSOR | {"data": [True, *TENSOR["data"][1:]]}]},
        {"inputs": [TENSOR | {"data": ["0", *TENSOR["data"][1:]]}]},
    ],
)  # fmt: skip
def test_a_bad_body_is_refused_with_the_reason(server: Running, content: Any) -> None:
    answer = infer(server, content)
    assert answer.status == 400, answer.body
    assert answer.json["error"]


def test_a_body_that_is_no_json_is_refused(server: Running) -> None:
    assert server.ask("POST", "/v2/models/garments/infer", b"[", content_type="application/json").status == 400
