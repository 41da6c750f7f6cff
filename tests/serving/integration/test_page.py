"""The files of the try-it page and its endpoints, over HTTP."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation.saliency import explain
from pipeline.serving import page
from pipeline.serving.app import create_app
from pipeline.serving.page import STATIC
from pipeline.serving.served_model import ModelHolder, ServedModel
from tests.serving.models import EXAMPLE, load_model, model_files
from tests.serving.running import KEY, Running, make_settings, running

__all__ = ["model_files"]  # a fixture

pytestmark = pytest.mark.xdist_group("serving-requests")  # with the tests that need the same model
AUTHORIZED = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def model(model_files: Path, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    return load_model(model_files, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(model: ServedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server for other machines, which asks for the key."""
    settings = make_settings(tmp_path_factory.mktemp("root"), host="0.0.0.0")
    with running(create_app(settings, ModelHolder(model), None, [page.router])) as started:
        yield started


def as_png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize("path", ["/", "/static/page.js", "/static/page.css"])
def test_the_files_need_no_key_and_forbid_inline_scripts_and_other_hosts(server: Running, path: str) -> None:
    answer = server.ask("GET", path)
    assert answer.status == 200
    assert answer.body == (STATIC / (path.rpartition("/")[2] or "index.html")).read_bytes()
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert (policy["default-src"], policy["script-src"], policy["connect-src"]) == ("'none'", "'self'", "'self'")
    assert policy["frame-ancestors"] == "'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/static/index.html", "/static/../page.py", "/static/%2e%2e/page.py", "/static/"])
def test_other_files_are_not_sent(server: Running, path: str) -> None:
    assert server.ask("GET", path, **AUTHORIZED).status == 404


def test_the_page_names_no_other_host() -> None:
    text = "".join(path.read_text() for path in STATIC.iterdir())
    assert re.findall(r"(?:https?:)?//\w", re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)) == []


def test_the_model_is_described_to_those_with_the_key(server: Running, model: ServedModel) -> None:
    assert server.ask("GET", "/v1/model").status == 401
    described = server.ask("GET", "/v1/model", **AUTHORIZED).json
    contract = model.contract
    assert (described["name"], described["version"], described["model"]) == ("garments", "1", contract.litert_sha256)
    assert tuple(described["classes"]) == contract.classes
    assert (described["height"], described["width"], described["ground"]) == (4, 5, 0)


def test_an_explanation_is_the_saliency_of_the_most_probable_class(server: Running, model: ServedModel) -> None:
    answer = server.ask("POST", "/v1/explain", as_png(EXAMPLE[0]), content_type="image/png", **AUTHORIZED)
    assert answer.status == 200, answer.body
    found = answer.json
    label = int(model.predict(EXAMPLE[:1])[0].argmax())
    assert (found["label"], found["class"], found["version"]) == (label, model.classes[label], "1")
    assert found["image"] == EXAMPLE[0].tolist()
    expected = explain(model.predict, EXAMPLE[0], label, model.contract.ground)
    np.testing.assert_allclose(found["saliency"], expected, atol=1e-4)
    inverted = server.ask("POST", "/v1/explain?invert=true", as_png(EXAMPLE[0]), content_type="image/png", **AUTHORIZED)
    assert inverted.json["image"] == (255 - EXAMPLE[0]).tolist()


def test_several_pictures_are_not_explained(server: Running) -> None:
    body = json.dumps({"images": EXAMPLE.tolist()}).encode()
    answer = server.ask("POST", "/v1/explain", body, content_type="application/json", **AUTHORIZED)
    assert (answer.status, answer.json["found"]) == (400, "3")


def test_without_a_model_the_page_is_there_and_says_so(tmp_path: Path) -> None:
    with running(create_app(make_settings(tmp_path), ModelHolder(), None, [page.router])) as started:
        assert started.ask("GET", "/").status == 200
        answer = started.ask("GET", "/v1/model")
    assert answer.status == 503
    assert "no model" in answer.json["error"]
