"""The endpoint for labels that come later: what is stored, and what is refused."""

import base64
import io
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data.traffic import FEEDBACK, picture_path, read_labels
from pipeline.events import EVENTS
from pipeline.serving import feedback
from pipeline.serving.app import create_app
from pipeline.serving.served_model import ModelHolder
from tests.integration.recorded import CLASSES
from tests.serving.models import EXAMPLE, load_model, model_files
from tests.serving.running import KEY, Running, make_settings, running

__all__ = ["model_files"]  # a fixture

pytestmark = pytest.mark.xdist_group("serving-requests")
ALLOWED = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def server(model_files: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    served = load_model(model_files, tmp_path_factory.mktemp("model"))
    with running(create_app(make_settings(root), ModelHolder(served), routers=[feedback.router])) as address:
        yield address


def send(server: Running, content: Any, headers: dict[str, str] = ALLOWED, path: str = "/v1/feedback") -> Any:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return server.ask("POST", path, body, **{"Content-Type": "application/json", **headers})


def test_a_label_is_stored_and_announced(server: Running, root: Path) -> None:
    request = str(uuid.uuid4())
    answer = send(server, {"request_id": request, "index": 2, "label": "드레스", "who": "reader-1"})
    assert answer.status == 200
    assert answer.json == {"request_id": request, "index": 2, "label": "Dress", "picture": False}
    label = read_labels(root / FEEDBACK)[request, 2]
    assert (label.label, label.who, label.has_picture) == ("Dress", "reader-1", False)
    event = json.loads((root / EVENTS).read_text().splitlines()[-1])
    assert (event["kind"], event["version"], event["evidence"]) == ("feedback.received", "1", answer.json)
    assert send(server, {"request_id": request, "index": 2, "label": 0}).status == 200
    assert read_labels(root / FEEDBACK)[request, 2].label == CLASSES[0]
    assert {path.stat().st_mode & 0o077 for path in (root / FEEDBACK).iterdir()} == {0}


def test_a_picture_is_stored_as_the_model_gets_it(server: Running, root: Path) -> None:
    request, file = str(uuid.uuid4()), io.BytesIO()
    Image.fromarray(EXAMPLE[0]).save(file, "BMP")
    content = {"request_id": request, "label": 1, "picture": base64.b64encode(file.getvalue()).decode()}
    assert send(server, content).json["picture"] is True
    path = picture_path(root / FEEDBACK, request, 0)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), EXAMPLE[0])
    assert send(server, content, path="/v1/feedback?invert=1").status == 200
    np.testing.assert_array_equal(np.asarray(Image.open(path)), 255 - EXAMPLE[0])
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer another"}, {"Authorization": f"Basic {KEY}"}])
def test_without_the_key_nothing_is_stored(server: Running, root: Path, headers: dict[str, str]) -> None:
    request = str(uuid.uuid4())
    assert send(server, {"request_id": request, "label": 1}, headers).status == 401
    assert (request, 0) not in read_labels(root / FEEDBACK)


GOOD = str(uuid.UUID(int=5))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        {},
        {"request_id": GOOD},
        {"label": 1},
        {"request_id": "../../etc/passwd", "label": 1},
        {"request_id": GOOD + "x", "label": 1},
        {"request_id": 5, "label": 1},
        {"request_id": GOOD, "label": 3},
        {"request_id": GOOD, "label": -1},
        {"request_id": GOOD, "label": 1.0},
        {"request_id": GOOD, "label": True},
        {"request_id": GOOD, "label": None},
        {"request_id": GOOD, "label": "Hat"},
        {"request_id": GOOD, "label": ""},
        {"request_id": GOOD, "label": 1, "index": -1},
        {"request_id": GOOD, "label": 1, "index": 2**32},
        {"request_id": GOOD, "label": 1, "who": "x" * 101},
        {"request_id": GOOD, "label": 1, "who": "\ud800"},
        {"request_id": GOOD, "label": 1, "who": "reader\u2028-1"},
        {"request_id": GOOD, "label": 1, "other": 1},
        {"request_id": GOOD, "label": 1, "picture": "not base64!"},
        {"request_id": GOOD, "label": 1, "picture": base64.b64encode(b"no picture").decode()},
        {"request_id": GOOD, "label": 1, "picture": ""},
        {"request_id": GOOD, "label": 10**400},
    ],
    ids=lambda content: str(content)[-40:],
)
def test_bad_feedback_is_refused_in_words(server: Running, root: Path, content: Any) -> None:
    answer = send(server, content)
    assert answer.status == 400
    assert answer.json["error"]
    assert (GOOD, 0) not in read_labels(root / FEEDBACK)
    assert not list((root / FEEDBACK).rglob(f"{GOOD}*"))
