"""The traffic of a server against the training data, with a model that was trained on `tiny`."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import table, tiny
from pipeline.data.traffic import FEEDBACK, Label, add_labels
from pipeline.errors import ParamsError
from pipeline.events import EVENTS
from pipeline.models.contract import read_contract
from pipeline.models.interpreter import ExportedModel, load
from pipeline.monitoring import drift
from pipeline.monitoring.params import MonitorParams
from pipeline.monitoring.traffic import compare_window, monitor_traffic, parse_length
from pipeline.monitoring.traffic_reference import Reference, build_reference
from pipeline.monitoring.traffic_windows import UNLABELLED, Rows
from pipeline.notices.send import URLS_VARIABLE
from pipeline.params import load_params
from tests.conftest import Project
from tests.notices.integration.test_send import Endpoint, endpoint
from tests.traffic_files import log_answers, measure_for_drift

__all__ = ["endpoint"]  # a fixture

DAY = timedelta(days=1)
NOON = datetime(2026, 3, 3, 12, tzinfo=UTC)
VARIABLES = ("MLFLOW_TRACKING_URI", "DVC_ROOT")


@pytest.fixture(scope="module")
def model(template: Project) -> ExportedModel:
    models = template.path / "models"
    return load(models / "model.tflite", read_contract(models / "contract.json"))


@pytest.fixture(scope="module")
def sha256(template: Project) -> str:
    return read_contract(template.path / "models/contract.json").litert_sha256


@pytest.fixture(scope="module")
def reference(template: Project, sha256: str) -> Iterator[Reference]:
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        yield build_reference(template.path, "1", sha256)


@pytest.fixture(scope="module")
def params(template: Project) -> MonitorParams:
    return load_params(template.path / "params.yaml").section(MonitorParams)


@pytest.fixture
def workspace(trained: Project, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return trained.path


def as_rows(images: np.ndarray, model: ExportedModel, reference: Reference) -> Rows:
    assert reference.model
    probabilities, values = model.predict(images).astype(np.float64), measure_for_drift(images)
    return Rows(
        times=np.arange(len(images), dtype=np.float64),
        values=values,
        predicted=probabilities.argmax(axis=1),
        confidences=probabilities.max(axis=1),
        outlier_scores=reference.model.outlier_score(np.stack(list(values.values()), axis=1), probabilities),
        answers=np.full(len(images), UNLABELLED),
    )


def take(rows: Rows, places: np.ndarray) -> Rows:
    columns = {name: values[places] for name, values in vars(rows).items() if name != "values"}
    return Rows(values={name: values[places] for name, values in rows.values.items()}, **columns)


def log(
    root: Path, at: datetime, images: np.ndarray, model: ExportedModel, sha256: str, version: str = "1"
) -> list[str]:
    return log_answers(root, at, images, model.predict(images), sha256, version)


def usual(count: int, seed: int) -> np.ndarray:
    return tiny.generate(count, seed)[0]


def dimmed(count: int, seed: int) -> np.ndarray:
    return (usual(count, seed) * 0.6).astype(np.uint8)


def moved(count: int, seed: int) -> np.ndarray:
    return np.roll(usual(count, seed), 3, axis=1)


def mostly_one_class(count: int, seed: int) -> np.ndarray:
    images, labels = tiny.generate(4 * count, seed)
    return np.concatenate([images[labels == 3], images[labels != 3]])[:count]


def noise(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28), np.uint8)


def digits(count: int, seed: int) -> np.ndarray:
    """Handwritten digits of another dataset, scikit-learn's, in the size of the model."""
    from PIL import Image
    from sklearn.datasets import load_digits

    small = (load_digits().images * 15.9).astype(np.uint8)
    chosen = np.random.default_rng(seed).permutation(len(small))[:count]
    return np.stack([np.asarray(Image.fromarray(small[place]).resize((28, 28))) for place in chosen])


def test_traffic_of_the_same_kind_drifts_as_rarely_as_stated(
    model: ExportedModel, reference: Reference, params: MonitorParams
) -> None:
    """alpha is 0.01: of 200 windows, 7 or more would drift by chance once in 200 such tests."""
    pool, random = as_rows(usual(6000, 1000), model, reference), np.random.default_rng(1)
    found = []
    for draw in range(200):
        rows = take(pool, random.choice(len(pool), (50, 100, 200, 400)[draw % 4], replace=False))
        found += [drift.find_drifted(compare_window(rows, reference), params)]
    assert sum(map(bool, found)) <= 6, found


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (dimmed, {"mean"}),
        (moved, {"row"}),
        (mostly_one_class, {"predicted"}),
        (noise, {"mean", "outliers"}),
        (digits, {"ink", "outliers"}),
    ],
)
def test_a_change_of_the_traffic_is_found(
    images: object, expected: set[str], model: ExportedModel, reference: Reference, params: MonitorParams
) -> None:
    assert callable(images)
    rows = as_rows(images(300, 7), model, reference)
    assert expected <= set(drift.find_drifted(compare_window(rows, reference), params))


def test_a_twentieth_more_outliers_are_found(model: ExportedModel, reference: Reference, params: MonitorParams) -> None:
    images = np.concatenate([usual(900, 5), digits(150, 5)])
    (outliers,) = [
        one for one in compare_window(as_rows(images, model, reference), reference) if one.quantity == "outliers"
    ]
    assert outliers.effect >= params.outlier_effect
    assert outliers.p_value < 1e-4


def test_the_report_covers_the_last_windows(workspace: Path, model: ExportedModel, sha256: str) -> None:
    log(workspace, NOON - 3.5 * DAY, dimmed(120, 1), model, sha256)  # before the last three windows
    log(workspace, NOON - 2.5 * DAY, usual(120, 2), model, sha256)
    log(workspace, NOON - 1.5 * DAY, dimmed(120, 3), model, sha256)
    log(workspace, NOON - 1.4 * DAY, usual(30, 3), model, "0" * 64, version="0")
    requests = log(workspace, NOON - 0.5 * DAY, dimmed(120, 4), model, sha256)
    dataset = table.read_dataset(workspace / "data/dataset/train.parquet")
    names = [dataset.classes[label] for label in tiny.generate(120, 4)[1]]
    labels = [Label(request, 0, name, "a", "2026-03-03") for request, name in zip(requests[:40], names, strict=False)]
    add_labels(workspace / FEEDBACK, [*labels, Label("unknown", 0, names[0], "a", "2026-03-03")])
    found = monitor_traffic(workspace, DAY, NOON)
    assert [window.name for window in found.windows] == [f"until 2026-03-0{day} 12:00" for day in (1, 2, 3)]
    assert [bool(window.drifted) for window in found.windows] == [False, True, True]
    assert (found.drifted, found.asks_retraining) == (True, True)
    assert (found.version, found.other_models) == ("1", 30)
    assert [span.images for span in found.accuracies] == [120, 120, 120]
    assert [span.labelled for span in found.accuracies] == [0, 0, 40]
    assert sum(span.images for span in found.course) == 360
    files = {path.name for path in found.report.parent.iterdir()}
    assert files == {"report.md", "report.json", "effects.png", "accuracy.png", *(f"latest-{n}.png" for n in (1, 2, 3))}
    numbers = json.loads((found.report.parent / "report.json").read_text())
    assert numbers["accuracy"][-1]["labelled"] == 40
    assert numbers["windows"][-1]["drifted"] == list(found.windows[-1].drifted)
    assert found.sentence.split("(")[0] in found.report.read_text()
    assert found.evidence == json.loads(json.dumps(found.evidence))
    first, *_, last = map(json.loads, (workspace / EVENTS).read_text().splitlines())
    assert (first["kind"], first["dataset"], first["version"]) == ("model.promoted", "tiny", "1")  # by the training
    assert (last["kind"], last["dataset"], last["version"]) == ("drift.traffic", "tiny", "1")
    assert last["evidence"] == found.evidence


def test_drift_is_reported_once_until_it_ends(
    workspace: Path, model: ExportedModel, sha256: str, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URLS_VARIABLE, f"json://{endpoint.address}")
    for days, images in enumerate((usual, dimmed, dimmed, usual, dimmed)):
        log(workspace, NOON + days * DAY, images(120, days), model, sha256)
    told = []
    for hours in (1, 25, 26, 49, 73, 97):
        monitor_traffic(workspace, DAY, NOON + timedelta(hours=hours))
        told.append(len(endpoint.taken))
    assert told == [0, 1, 1, 1, 1, 2]
    assert endpoint.taken[0]["title"] == "drift in the traffic"


def test_without_the_model_only_the_features_are_compared(workspace: Path, model: ExportedModel) -> None:
    log(workspace, NOON - 0.5 * DAY, dimmed(120, 1), model, "1" * 64)
    found = monitor_traffic(workspace, DAY, NOON)
    assert found.reference
    assert (
        "left out, because another model.tflite than that of version 1 of tiny answered" in found.reference.description
    )
    assert {one.quantity for one in found.windows[0].comparisons} == {"mean", "std", "ink", "row", "column"}
    assert found.drifted
    assert found.accuracies[-1].estimated is None


def test_without_traffic_the_report_says_so(workspace: Path, model: ExportedModel, sha256: str) -> None:
    found = monitor_traffic(workspace, DAY, NOON)
    assert (found.drifted, found.asks_retraining, found.windows) == (False, False, ())
    assert found.report.read_text().count("No answer is in the traffic log since 2026-02-28 12:00 UTC") == 1
    log(workspace, NOON - 2.5 * DAY, usual(50, 1), model, sha256)
    found = monitor_traffic(workspace, DAY, NOON)
    assert found.latest_is_empty
    assert "answered nothing in the last 24 hours" in found.sentence


@pytest.mark.parametrize(("text", "length"), [("90m", 1.5 / 24), ("24h", 1), ("7d", 7)])
def test_a_length_is_a_number_with_a_unit(text: str, length: float) -> None:
    assert parse_length(text) == length * DAY


@pytest.mark.parametrize("text", ["", "24", "h", "-1h", "0h", "1.5h", "2w", "9999999d"])
def test_other_lengths_are_refused(text: str) -> None:
    with pytest.raises(ParamsError, match="not a length of time"):
        parse_length(text)


def test_the_command_prints_what_was_found(trained: Project, model: ExportedModel, sha256: str) -> None:
    now = datetime.now(UTC) - timedelta(minutes=30)
    log(trained.path, now, dimmed(120, 1), model, sha256)
    printed = trained.run("pipeline", "monitor", "--traffic", "--since", "1h").stdout
    assert "The traffic of the last 60 minutes (120 images) has drifted" in printed
    assert "answers of version 1 to 200 validation images" in printed
    found = json.loads(trained.run("pipeline", "monitor", "--traffic", "--json").stdout)
    assert {"mean", "confidence"} <= set(found["windows"][-1]["quantities"])
    assert (trained.path / found["report"]).is_file()
    assert trained.run("git", "status", "--porcelain").stdout == ""
    refused = trained.run("pipeline", "monitor", "--traffic", "--since", "soon", check=False)
    assert refused.returncode == 1
    assert "expected: a number with m, h or d" in refused.stdout
