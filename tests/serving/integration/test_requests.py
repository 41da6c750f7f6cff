"""Requests to a server with a real model: what is answered, and what is refused with which words."""

import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data.prediction_input import read_pictures
from pipeline.serving import protocol
from pipeline.serving.app import create_app
from pipeline.serving.images import MOST_PIXELS
from pipeline.serving.served_model import ModelHolder, ServedModel
from tests.serving.models import EXAMPLE, SHAPE, load_model, model_files
from tests.serving.running import KEY, Running, make_settings, running

__all__ = ["model_files"]  # a fixture

pytestmark = pytest.mark.xdist_group("serving-requests")
IMAGE = EXAMPLE[0].tolist()


@pytest.fixture(scope="module")
def served(model_files: Path, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    return load_model(model_files, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(served: ServedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = make_settings(tmp_path_factory.mktemp("root"))
    with running(create_app(settings, ModelHolder(served))) as address:
        yield address


def encode(image: Any, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))).save(file, form, **options)
    return file.getvalue()


def npy(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def form(*files: tuple[str, bytes], boundary: str = "limit") -> tuple[bytes, str]:
    """A form with files, and its content type."""
    parts = [
        b'--%s\r\ncontent-disposition: form-data; name="images"; filename="%s"\r\n\r\n%s\r\n'
        % (boundary.encode(), name.encode(), content)
        for name, content in files
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def with_value(value: Any) -> list[Any]:
    return [[[value, *IMAGE[0][1:]], *IMAGE[1:]]]


def test_json_is_answered_with_names_and_probabilities(server: Running, served: ServedModel) -> None:
    answer = server.predict({"images": EXAMPLE.tolist()})
    expected = served.predict(EXAMPLE)
    assert answer.status == 200
    assert (answer.json["version"], answer.json["model"]) == ("1", served.sha256)
    for found, row in zip(answer.json["predictions"], expected, strict=True):
        assert list(found["probabilities"]) == list(served.classes)
        np.testing.assert_allclose(list(found["probabilities"].values()), row, atol=1e-6)
        assert found["label"] == row.argmax()
        assert found["class"] == served.classes[row.argmax()]
        assert found["class_ko"] == served.contract.classes_ko[row.argmax()]
        assert found["probability"] == max(found["probabilities"].values())


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (json.dumps(EXAMPLE.tolist()).encode(), "application/json"),
        (json.dumps({"inputs": EXAMPLE.tolist()}).encode("utf-16"), "application/json; charset=utf-16"),
        (npy(EXAMPLE), "application/x-npy"),
        (npy(np.asfortranarray(EXAMPLE)), "application/x-npy"),
        form(*((f"{place}.png", encode(image)) for place, image in enumerate(EXAMPLE))),
        form(*((f"{place}.bmp", encode(image, "BMP")) for place, image in enumerate(EXAMPLE))),
    ],
    ids=["array", "utf-16", "npy", "fortran", "png", "bmp"],
)
def test_every_kind_of_body_has_the_same_answer(server: Running, body: bytes, kind: str) -> None:
    expected = server.predict({"images": EXAMPLE.tolist()}).json["predictions"]
    answer = server.ask("POST", "/v1/predict", body, content_type=kind)
    assert answer.status == 200, answer.body
    assert answer.json["predictions"] == expected


def test_a_picture_is_resized_as_predict_does_it(server: Running, served: ServedModel, tmp_path: Path) -> None:
    photo = np.random.default_rng(3).integers(0, 256, (60, 50, 3), np.uint8)
    (tmp_path / "photo.jpg").write_bytes(encode(photo, "JPEG"))
    for invert in (False, True):
        (picture,) = read_pictures(
            tmp_path / "photo.jpg", SHAPE, invert=invert, background=served.contract.ground
        )  # fmt: skip
        content = (tmp_path / "photo.jpg").read_bytes()
        answer = server.ask("POST", f"/v1/predict?invert={int(invert)}", content, content_type="image/jpeg")
        (found,) = answer.json["predictions"]
        np.testing.assert_allclose(
            list(found["probabilities"].values()), served.predict(picture.pixels[None])[0], atol=1e-6
        )


def test_mlflows_endpoints(server: Running, served: ServedModel) -> None:
    for key in ("inputs", "instances"):
        body = json.dumps({key: EXAMPLE.tolist()}).encode()
        answer = server.ask("POST", "/invocations", body, content_type="application/json")
        np.testing.assert_allclose(answer.json["predictions"], served.predict(EXAMPLE), atol=1e-7)
    assert server.ask("GET", "/ping").status == 200
    assert server.ask("GET", "/version").status == 200


BAD_JSON: dict[str, Any] = {
    "a fraction": with_value(0.5),
    "a whole number as a fraction": with_value(3.0),
    "256": with_value(256),
    "-1": with_value(-1),
    "2 ** 70": with_value(2**70),
    "true": with_value(True),
    "null": with_value(None),
    "a text": with_value("black"),
    "a list for a value": with_value([1]),
    "an object for a value": with_value({"value": 1}),
    "a long text": [["x" * 100_000, [0]], [[0]]],
    "no images": [],
    "one image without its list": IMAGE,
    "a row too few": [IMAGE[:-1]],
    "a row too many": [[*IMAGE, IMAGE[0]]],
    "a column too few": [[row[:-1] for row in IMAGE]],
    "ragged rows": [[*IMAGE[:-1], IMAGE[-1][:-1]]],
    "ragged images": [IMAGE, IMAGE[:-1]],
    "a flat image": [[value for row in IMAGE for value in row]],
    "colours": [[[[value] * 3 for value in row] for row in IMAGE]],
    "a number for an image": [5],
    "a huge number for an image": [10**9],
    "a number": 5,
    "null as a body": None,
    "a text as a body": "images",
    "an empty object": {},
    "another key": {"pictures": [IMAGE]},
    "two keys": {"images": [IMAGE], "model": "3"},
    "an object for images": {"images": {"0": IMAGE}},
    "MLflow's table": {"dataframe_split": {"data": [[1]]}},
}
BAD_BYTES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "application/json"),
    "half of JSON": (json.dumps([IMAGE]).encode()[:-3], "application/json"),
    "no JSON": (b"images=1", "application/json"),
    "NaN": (b"[[[NaN]]]", "application/json"),
    "Infinity": (b"[[[Infinity]]]", "application/json"),
    "a number of 5,000 digits": (b"[[[" + b"9" * 5000 + b"]]]", "application/json"),
    "100,000 brackets": (b"[" * 100_000, "application/json"),
    "100,000 closed brackets": (b"[" * 100_000 + b"]" * 100_000, "application/json"),
    "bytes that are no UTF-8": (b'["\xff\xfe\xfd"]', "application/json"),
    "half of a surrogate": (b'{"\\ud800": 1}', "application/json"),
    "no npy": (b"PK\x03\x04", "application/x-npy"),
    "half of an npy": (npy(EXAMPLE)[:-5], "application/x-npy"),
    "an npy and more": (npy(EXAMPLE) + b"more", "application/x-npy"),
    "an npy header alone": (npy(EXAMPLE)[:10], "application/x-npy"),
    "an npy of fractions": (npy(EXAMPLE / 255), "application/x-npy"),
    "an npy of int64": (npy(EXAMPLE.astype(int)), "application/x-npy"),
    "an npy of switches": (npy(EXAMPLE > 9), "application/x-npy"),
    "an npy of objects": (npy(np.array([print, {}], object), allow_pickle=True), "application/x-npy"),
    "an npy of another shape": (npy(EXAMPLE[:, :-1]), "application/x-npy"),
    "an npy without images": (npy(EXAMPLE[:0]), "application/x-npy"),
    "an npy with a negative shape": (npy(EXAMPLE).replace(b"(3, 4, 5)", b"(-3, 4, 5)"), "application/x-npy"),
    "an npy with code in its header": (
        npy(EXAMPLE).replace(b"'<u1'", b"exit()").replace(b"'|u1'", b"exit()"), "application/x-npy"
    ),
    "a form without a boundary": (b"--limit", "multipart/form-data"),
    "a form that is none": (b"images", "multipart/form-data; boundary=limit"),
    "a form without files": (b"--limit--\r\n", "multipart/form-data; boundary=limit"),
    "half of a form": (form(("a.png", encode(EXAMPLE[0])))[0][:60], "multipart/form-data; boundary=limit"),
    "a form with a text": (
        b'--limit\r\ncontent-disposition: form-data; name="images"\r\n\r\ntext\r\n--limit--\r\n',
        "multipart/form-data; boundary=limit",
    ),
    "a form with a file that is no picture": form(("a.png", b"text")),
    "a form with an empty file": form(("a.png", b"")),
    "a picture and half of one": form(("a.png", encode(EXAMPLE[0])), ("b.png", encode(EXAMPLE[1])[:40])),
    "half of a PNG": (encode(np.zeros((300, 300), np.uint8))[:-30], "image/png"),
    "a PNG with a wrong checksum": (encode(EXAMPLE[0])[:-20] + b"\0" * 20, "image/png"),
    "half of a JPEG": (encode(np.zeros((80, 80), np.uint8), "JPEG")[:200], "image/jpeg"),
    "an SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image/svg+xml"),
    "a PDF": (b"%PDF-1.4", "image/png"),
    "fractions in a TIFF": (encode(Image.fromarray(np.zeros((4, 5), np.float32)), "TIFF"), "image/tiff"),
}  # fmt: skip
OTHERS: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "no content type": (415, b"[]", {}),
    "a form as curl sends it": (415, b"[]", {"content_type": "application/x-www-form-urlencoded"}),
    "text": (415, b"[]", {"content_type": "text/plain"}),
    "a compressed body": (415, zlib.compress(b"[]"), {"content_type": "application/json", "content_encoding": "gzip"}),
    "too many images": (413, json.dumps([IMAGE] * 65).encode(), {"content_type": "application/json"}),
    "an npy of too many images": (413, npy(np.zeros((65, *SHAPE), np.uint8)), {"content_type": "application/x-npy"}),
    "an npy that claims a terabyte": (
        413, npy(EXAMPLE).replace(b"(3, 4, 5)", b"(99999999999, 4, 5)"), {"content_type": "application/x-npy"}
    ),
    "a body of too many bytes": (413, b" " * (2**20 + 1), {"content_type": "application/json"}),
    "a picture of too many pixels": (
        413, encode(Image.new("1", (MOST_PIXELS // 1000 + 1, 1000))), {"content_type": "image/png"}
    ),
    "a picture that Pillow calls a bomb": (
        400, encode(Image.new("1", (60_000, 30_000))), {"content_type": "image/png"}
    ),
    "too many files": (400, *(lambda body, kind: (body, {"content_type": kind}))(*form(*[("a", b"")] * 65))),
}  # fmt: skip
KINDS = {
    **{
        name: (400, json.dumps(value).encode(), {"content_type": "application/json"})
        for name, value in BAD_JSON.items()
    },
    **{name: (400, body, {"content_type": kind}) for name, (body, kind) in BAD_BYTES.items()},
    **OTHERS,
}


@pytest.mark.parametrize("path", ["/v1/predict", "/invocations"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_body_is_refused_with_the_reason(server: Running, kind: str, path: str) -> None:
    status, body, headers = KINDS[kind]
    answer = server.ask("POST", path, body, **headers)
    assert answer.status == status, answer.body
    assert answer.json["error"]
    assert server.predict([IMAGE]).status == 200


def test_the_reason_names_value_and_place(server: Running) -> None:
    error = server.predict({"images": with_value(0.5)}).json
    assert error["error"] == "a value is a fraction"
    assert error["found"] == "0.5 at images[0][0][0]"
    assert "grey values as they are" in error["remedy"]
    error = server.predict([IMAGE, [*IMAGE[:-1], IMAGE[-1][:-1]]]).json
    assert error["found"] == "4 of them at images[1][3], where 5 are due"
    error = server.ask("POST", "/v1/predict", npy(EXAMPLE / 255), content_type="application/x-npy").json
    assert error["found"] == "float64"


HEAD = b"POST /v1/predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


def test_a_body_that_comes_too_slowly_is_given_up(server: Running) -> None:
    received = server.send_raw(HEAD + b"content-length: 100\r\n\r\n[", close=False)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"came too slowly" in received


def test_a_head_that_comes_too_slowly_is_given_up(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)
    assert server.send_raw(b"", close=False) == b""
    assert server.send_raw(HEAD, close=False) == b""
    assert server.predict([IMAGE]).status == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        HEAD + b"content-length: 100\r\n\r\n[",
        HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\n[",
        HEAD + b"transfer-encoding: chunked\r\n\r\nno size\r\n",
        HEAD + b"content-length: -1\r\n\r\n",
        HEAD + b"content-length: many\r\n\r\n",
        HEAD + b"x: " + b"y" * 70_000 + b"\r\n\r\n",
        b"POST /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"\0" * 100,
    ],
)
def test_a_request_that_is_cut_off_or_malformed_harms_nobody(server: Running, request_bytes: bytes) -> None:
    received = server.send_raw(request_bytes)
    assert received == b"" or received.startswith(b"HTTP/1.1 4")
    assert server.predict([IMAGE]).status == 200


def test_a_body_beyond_the_limit_is_not_read_to_its_end(server: Running) -> None:
    received = server.send_raw(HEAD + b"content-length: 99999999999\r\n\r\n", close=False)
    assert received.startswith(b"HTTP/1.1 413 ")


def test_a_client_that_sends_all_of_a_large_body_first_is_answered(server: Running) -> None:
    assert server.ask("POST", "/v1/predict", b" " * 2**22, content_type="application/json").status == 413


def test_unknown_paths_and_methods_are_answered_in_the_same_form(server: Running) -> None:
    assert server.ask("GET", "/v2").json["error"]
    answer = server.ask("GET", "/v1/predict")
    assert (answer.status, answer.json["found"]) == (405, "GET /v1/predict")


@pytest.mark.parametrize("headers", [{"origin": "https://evil.example"}, {"host": "evil.example"}, {"origin": "null"}])
def test_foreign_hosts_and_origins_are_refused(server: Running, headers: dict[str, str]) -> None:
    answer = server.predict([IMAGE], **headers)
    assert answer.status == 403
    assert answer.json["error"] == "unknown host or origin"
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_key_is_needed_beyond_loopback_for_everything_but_health(served: ServedModel, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, host="0.0.0.0")
    with running(create_app(settings, ModelHolder(served))) as server:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": KEY}, {"authorization": "Bearer "}):
            answer = server.predict([IMAGE], **headers)
            assert answer.status == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert KEY not in answer.body.decode()
        assert server.predict([IMAGE], authorization=f"Bearer {KEY}").status == 200
        assert server.ask("GET", "/metrics").status == 401
        assert server.ask("GET", "/health/live").status == server.ask("GET", "/health/ready").status == 200


def test_the_feedback_needs_the_key_on_this_machine_too(server: Running) -> None:
    assert server.ask("POST", "/v1/feedback", b"{}").status == 401


def test_without_a_model_it_lives_and_is_not_ready(tmp_path: Path) -> None:
    with running(create_app(make_settings(tmp_path), ModelHolder(problem="garments has no champion"))) as server:
        assert server.ask("GET", "/health/live").status == 200
        for answer in (server.ask("GET", "/health/ready"), server.ask("GET", "/ping"), server.predict([IMAGE])):
            assert answer.status == 503
            assert answer.headers["retry-after"] == "1"
            assert answer.json["found"] == "garments has no champion"


def test_the_metrics_count_what_was_asked(server: Running, served: ServedModel) -> None:
    def read(line: str) -> float:
        text = server.ask("GET", "/metrics").body.decode()
        return sum(float(row.rpartition(" ")[2]) for row in text.splitlines() if row.startswith(line))

    lines = [
        'serve_requests_total{path="/v1/predict",status="200"}',
        'serve_request_seconds_count{path="/v1/predict"}',
        'serve_predictions_total{class="',
        "serve_confidence_count",
        "serve_batch_images_sum",
    ]
    before = {line: read(line) for line in lines}
    server.predict(EXAMPLE.tolist())
    after = {line: read(line) - before[line] for line in lines}
    assert list(after.values()) == [1, 1, 3, 3, 3]
