"""What an evaluation leaves: every file, the same bytes each time, and nothing at all for a model that does not fit."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import table
from pipeline.errors import DataError, ModelError
from pipeline.evaluation.gate import Gate, judge
from pipeline.evaluation.metrics import class_probabilities
from pipeline.evaluation.report import Answers, explain_mistakes, measure, measure_saliency, write_evaluation
from pipeline.files import file_digest
from pipeline.params import EvaluateParams, load_params
from pipeline.stages import evaluate
from tests.conftest import REPOSITORY

CLASSES = ("top", "trouser", "coat, or shirt")
CLASSES_KO = ("탑", "바지", "코트")
FILES = [
    *("confusion.csv", "figures/confusion.png", "figures/gallery.png", "figures/reliability.png"),
    *("figures/saliency.png", "gate.json", "metrics.json", "per_class.csv", "predictions.parquet", "reliability.csv"),
    "report.md",
]


def answer(outputs: np.ndarray, labels: np.ndarray, classes: tuple[str, ...] = CLASSES) -> Answers:
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 6, 5), dtype=np.uint8)
    return Answers(
        dataset="shapes",
        classes=classes,
        classes_ko=CLASSES_KO[: len(classes)],
        ids=[f"{row}-0" for row in range(len(labels))],
        images=images,
        labels=labels.astype(np.uint8),
        probabilities=class_probabilities(outputs),
    )


def look(images: np.ndarray) -> np.ndarray:
    """A model whose first class is the more probable, the brighter the image is."""
    bright = images.reshape(len(images), -1).mean(axis=1) / 255
    return np.stack([bright, (1 - bright) / 2, (1 - bright) / 2], axis=1)


def report(directory: Path, answers: Answers) -> Gate:
    metrics = measure(answers) | {"saliency": measure_saliency(answers, look, 0)}
    thresholds = EvaluateParams(
        min_accuracy=0.5, min_balanced_accuracy=0.4, min_class_recall=0.1, max_loss=1.0, max_model_bytes=1000
    )
    gate = judge(metrics, 900, thresholds)
    write_evaluation(directory, answers, metrics, gate, explain_mistakes(answers, look, 0))
    return gate


def files_in(directory: Path) -> dict[str, str]:
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): file_digest(path) for path in paths}


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def answers() -> Answers:
    """400 answers, about four fifths of them right."""
    random = np.random.default_rng(5)
    labels = random.integers(0, 3, 400)
    logits = random.normal(size=(400, 3)) + 2 * np.eye(3)[labels]
    return answer((np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32), labels)


def test_the_same_answers_give_the_same_bytes(tmp_path: Path, answers: Answers) -> None:
    report(tmp_path / "a", answers)
    report(tmp_path / "b", replace(answers))
    assert list(files_in(tmp_path / "a")) == FILES
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b")


def test_a_former_report_is_replaced_whole(tmp_path: Path, answers: Answers) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "stale").touch()
    report(tmp_path / "a", answers)
    assert list(files_in(tmp_path / "a")) == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_report_that_fails_leaves_the_former_one(
    tmp_path: Path, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(tmp_path / "a", answers)
    before = files_in(tmp_path / "a")
    with pytest.raises(IndexError):
        report(tmp_path / "a", replace(answers, classes_ko=CLASSES_KO, images=answers.images[:1]))
    assert files_in(tmp_path / "a") == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_tables_tell_of_every_image(tmp_path: Path, answers: Answers) -> None:
    report(tmp_path, answers)
    predictions = pq.read_table(tmp_path / "predictions.parquet")
    assert predictions.column_names == ["id", "label", "predicted", "probabilities"]
    assert predictions.schema.field("probabilities").type == pa.list_(pa.float32(), 3)
    assert json.loads(predictions.schema.metadata[b"classes"]) == list(CLASSES)
    assert predictions["id"].to_pylist() == answers.ids
    assert predictions["label"].to_pylist() == answers.labels.tolist()
    probabilities = np.array(predictions["probabilities"].to_pylist(), np.float32)
    assert (probabilities == answers.probabilities.astype(np.float32)).all()
    assert (probabilities.argmax(axis=1) == predictions["predicted"].to_numpy()).all()

    pairs = [(row["actual"], row["predicted"]) for row in read_csv(tmp_path / "confusion.csv")]
    assert pairs == [(CLASSES[a], CLASSES[p]) for a, p in zip(answers.labels, answers.predicted, strict=True)]
    per_class = read_csv(tmp_path / "per_class.csv")
    assert [row["class"] for row in per_class] == list(CLASSES)
    assert [row["class_ko"] for row in per_class] == list(CLASSES_KO)
    assert sum(int(row["support"]) for row in per_class) == 400
    assert sum(int(row["images"]) for row in read_csv(tmp_path / "reliability.csv")) == 400

    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["accuracy"] == np.mean([a == p for a, p in pairs])
    assert metrics["min_class_recall"] == min(float(row["recall"]) for row in per_class)
    assert "roc_auc" not in metrics


def test_the_page_shows_the_verdict_the_classes_and_the_worst_confusion(tmp_path: Path, answers: Answers) -> None:
    assert report(tmp_path, answers).passed
    page = (tmp_path / "report.md").read_text()
    assert "Gate: passed" in page
    assert all(name in page for name in (*CLASSES, *CLASSES_KO))
    (actual, predicted), *_ = answers.find_confusions(1)
    assert f"| {CLASSES[actual]} | {CLASSES[predicted]} | {answers.confusion[actual, predicted]} |" in page
    images = [line.partition("](")[2].rstrip(")") for line in page.splitlines() if line.startswith("![")]
    assert len(images) == 4
    assert all((tmp_path / image).is_file() for image in images)
    assert str(tmp_path) not in page


def test_a_poor_model_is_rejected_on_every_page(tmp_path: Path, answers: Answers) -> None:
    assert not report(tmp_path, replace(answers, labels=(answers.labels + 1) % 3)).passed
    assert json.loads((tmp_path / "gate.json").read_text())["passed"] is False
    assert "REJECTED" in (tmp_path / "report.md").read_text()


def test_answers_that_are_not_numbers_are_reported_and_rejected(tmp_path: Path, answers: Answers) -> None:
    probabilities = answers.probabilities.copy()
    probabilities[3] = np.nan
    gate = report(tmp_path, replace(answers, probabilities=probabilities))
    assert [check.name for check in gate.failures] == ["max_loss"]
    assert json.loads((tmp_path / "metrics.json").read_text())["loss"] is None
    least_confident, *_ = read_csv(tmp_path / "reliability.csv")
    assert (least_confident["confidence"], least_confident["images"]) == ("0.0", "1")


def test_a_model_without_mistakes_has_a_report_too(tmp_path: Path) -> None:
    labels = np.arange(30) % 3
    answers = answer(np.eye(3)[labels], labels)
    assert report(tmp_path, answers).passed
    assert len(answers.find_mistakes(5)) == len(answers.find_confusions(5)) == 0
    assert list(files_in(tmp_path)) == FILES


def test_mistakes_are_the_most_confident_first_and_in_test_order_where_equal() -> None:
    outputs = np.array([[0.1, 0.9, 0], [0.3, 0.7, 0], [1, 0, 0], [0.1, 0.9, 0], [0, 0.05, 0.95]])
    assert answer(outputs, np.zeros(5)).find_mistakes(10).tolist() == [4, 0, 3, 1]
    assert answer(outputs, np.zeros(5)).find_mistakes(2).tolist() == [4, 0]


def test_a_question_of_yes_or_no_has_two_classes(tmp_path: Path) -> None:
    outputs = np.array([[0.9], [0.2], [0.6], [0.5]], np.float32)
    answers = answer(outputs, np.array([1, 0, 0, 0]), ("other", "top"))
    report(tmp_path, answers)
    assert answers.predicted.tolist() == [1, 0, 1, 0]
    assert answers.confusion.tolist() == [[2, 1], [0, 1]]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["roc_auc"] == 1.0
    assert metrics["accuracy"] == 0.75
    expected = -np.log([0.9, 0.8, 0.4, 0.5]).mean()
    assert metrics["loss"] == pytest.approx(expected, abs=1e-6)
    probabilities = pq.read_table(tmp_path / "predictions.parquet")["probabilities"].to_pylist()
    assert np.allclose(probabilities[0], [0.1, 0.9])


@pytest.fixture
def workspace(in_directory: Path) -> Path:
    """A test split of images of 8 by 6 pixels in three classes, and a model that fits it."""
    dataset = table.Dataset("shapes", 8, 6, CLASSES, CLASSES_KO, flip=True)
    with table.writer(evaluate.TEST_SPLIT, dataset) as rows:
        images, labels = np.zeros((9, 8, 6), np.uint8), np.arange(9, dtype=np.uint8) % 3
        rows.write(images, labels, [f"{row}-0" for row in range(9)], pa.array([table.OFFICIAL] * 9))
    save_model((8, 6), CLASSES)
    return in_directory


def save_model(size: tuple[int, int], classes: tuple[str, ...]) -> None:
    from pipeline.models import archive, export, networks
    from pipeline.models.tasks import create_task

    settings = load_params(REPOSITORY / "params.yaml").train.settings
    task = create_task("sparse_categorical_crossentropy", classes)
    network = archive.export(networks.create_network(settings, task, size), settings, task, steps=10)
    images = [np.zeros((3, *size), np.uint8)]
    export.write_model(evaluate.MODELS, network, task, images, export.Subject("shapes", classes, classes, ground=0))


@pytest.mark.parametrize(
    ("size", "classes", "expected", "found"),
    [
        ((6, 8), CLASSES, "8 x 6", "6 x 8"),
        ((8, 6), (*CLASSES, "bag"), "coat, or shirt", "coat, or shirt, bag"),
        ((8, 6), (*CLASSES[:2], "dress"), "coat, or shirt", "dress"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_refused(
    workspace: Path, size: tuple[int, int], classes: tuple[str, ...], expected: str, found: str
) -> None:
    save_model(size, classes)
    with pytest.raises(ModelError) as error:
        evaluate.run(load_params(REPOSITORY / "params.yaml"))
    assert expected in error.value.expected
    assert found in error.value.found
    assert not (workspace / "reports").exists()


@pytest.mark.parametrize("name", ["model.tflite", "contract.json", "model.keras"])
def test_a_damaged_model_is_refused(workspace: Path, name: str) -> None:
    path = evaluate.MODELS / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=rf"(?s){name} is .*damaged.*dvc checkout"):
        evaluate.run(load_params(REPOSITORY / "params.yaml"))
    assert not (workspace / "reports").exists()


def test_a_test_split_without_images_is_refused(workspace: Path) -> None:
    with table.writer(evaluate.TEST_SPLIT, table.read_dataset(evaluate.TEST_SPLIT)):
        pass
    with pytest.raises(DataError, match="no images"):
        evaluate.run(load_params(REPOSITORY / "params.yaml"))
    assert not (workspace / "reports").exists()
