"""`pipeline add-data --from-traffic`: labels that came later, joined with the images that were answered."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.batches.from_traffic import read_label_file
from pipeline.data import table, tiny
from pipeline.data.catalog import load_entry
from pipeline.data.traffic import FEEDBACK, Label, add_labels, picture_path, read_labels
from pipeline.errors import DataError
from tests.conftest import REPOSITORY, Project
from tests.traffic_files import log_answers

DATASET = load_entry("tiny", REPOSITORY / "data/catalog").dataset
AT = datetime(2026, 3, 3, 12, tzinfo=UTC)


def answered(root: Path, images: np.ndarray, at: datetime = AT, *, keep_images: bool = True) -> list[str]:
    probabilities = np.full((len(images), 10), 0.1, np.float32)
    return log_answers(root, at, images, probabilities, "0" * 64, keep_images=keep_images)


def write_labels(file: Path, requests: list[str], labels: list[int]) -> None:
    lines = [f"{request},{DATASET.classes[label]}" for request, label in zip(requests, labels, strict=True)]
    file.write_text("\n".join(["request_id,label", *lines]) + "\n")


def read_batch(project: Project, name: str) -> dict[bytes, int]:
    """The label of each image of a batch, by its pixels."""
    with np.load(project.path / "data/incoming" / name) as batch:
        return {image.tobytes(): int(label) for image, label in zip(batch["images"], batch["labels"], strict=True)}


def test_labelled_traffic_becomes_a_batch(trained: Project) -> None:
    root = trained.path
    images, labels = tiny.generate(120, 77)
    requests = answered(root, images[:100])
    write_labels(root / "outcomes.csv", requests[:60], labels[:60].tolist())
    told = [Label(requests[60], 0, DATASET.classes[labels[60]], "reader-1", "2026-03-04"),
            Label(requests[0], 0, DATASET.classes[(labels[0] + 1) % 10], "reader-1", "2026-03-04"),
            Label("sent-again", 0, DATASET.classes[labels[110]], "reader-1", "2026-03-04", has_picture=True),
            Label("not-kept", 0, DATASET.classes[0], "reader-1", "2026-03-04")]  # fmt: skip
    add_labels(root / FEEDBACK, told)
    path = picture_path(root / FEEDBACK, "sent-again", 0)
    path.parent.mkdir()
    Image.fromarray(images[110]).save(path)

    printed = trained.run(
        "pipeline", "add-data", "--from-traffic", "--labels", "outcomes.csv", "--name", "march"
    ).stdout
    assert "left out: 1 labels of images without a kept image" in printed
    assert "batch march.npz: 62 images" in printed
    places = [*range(61), 110]
    assert read_batch(trained, "march.npz") == {images[place].tobytes(): labels[place] for place in places}
    assert (root / "data/incoming/march.npz.dvc").is_file()
    stored = read_labels(root / FEEDBACK)
    assert len(stored) == 63
    assert stored[requests[0], 0].label == DATASET.classes[labels[0]]  # the file is newer
    assert stored["sent-again", 0].has_picture

    again = trained.run("pipeline", "add-data", "--from-traffic").stdout
    assert "left out: 62 labels of images in an earlier batch" in again
    assert "no batch: no label has a new image" in again
    trained.run("git", "rm", "--quiet", "--force", "data/incoming/march.npz.dvc")
    (root / "data/incoming/march.npz").unlink()
    assert ": 62 images" in trained.run("pipeline", "add-data", "--from-traffic").stdout  # the batch was deleted


def test_images_that_the_data_has_are_left_out(trained: Project) -> None:
    root = trained.path
    known, known_labels = table.read_images(root / "data/dataset/test.parquet")
    images, labels = tiny.generate(40, 78)
    shown = np.concatenate([known[:5], images, images[:3], images[3:4]])
    requests = answered(root, shown)
    told = [*known_labels[:5].tolist(), *labels.tolist(), *labels[:3].tolist(), (int(labels[3]) + 1) % 10]
    write_labels(root / "outcomes.csv", requests, told)
    printed = trained.run("pipeline", "add-data", "--from-traffic", "--labels", "outcomes.csv").stdout
    assert "left out: 5 labels of images in the data already" in printed
    assert "left out: 3 labels of images equal to another one" in printed
    assert "left out: 2 labels of images with two different labels" in printed
    (name,) = [path.name for path in (root / "data/incoming").glob("traffic-*.npz")]
    assert set(read_batch(trained, name)) == {image.tobytes() for image in [*images[:3], *images[4:]]}


def test_labels_without_images_are_stored_for_the_monitor(trained: Project) -> None:
    root = trained.path
    images, labels = tiny.generate(20, 79)
    requests = answered(root, images, keep_images=False)
    refused = trained.run("pipeline", "add-data", "--from-traffic", check=False)
    assert refused.returncode == 1
    assert "the traffic has no labels yet" in refused.stdout
    write_labels(root / "outcomes.csv", requests, labels.tolist())
    printed = trained.run("pipeline", "add-data", "--from-traffic", "--labels", "outcomes.csv").stdout
    assert "no batch: no label has a new image; 20 labels of outcomes.csv are stored" in printed
    assert len(read_labels(root / FEEDBACK)) == 20
    trained.run("pipeline", "add-data", "--from-traffic", "--labels", "outcomes.csv")
    lines = [json.loads(line) for file in (root / FEEDBACK).glob("*.jsonl") for line in file.read_text().splitlines()]
    assert len(lines) == 20  # a repeated file adds nothing


@pytest.mark.parametrize("arguments", [[], ["x", "--from-traffic"], ["x", "--labels", "y"],
                                       ["--from-traffic", "--new-class", "Hat"]])  # fmt: skip
def test_options_that_do_not_fit_are_refused(trained: Project, arguments: list[str]) -> None:
    refused = trained.run("pipeline", "add-data", *arguments, check=False)
    assert refused.returncode == 2


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"request_id,class\na,1\n", "other columns"),
        (b"", "other columns"),
        (b"request_id,label\na,99\n", "bad label in line 2"),
        (b"request_id,label\na,Circle\n,1\n", "bad label in line"),
        (b"request_id,label,index\na,1,-1\n", "bad label in line 2"),
        (b"request_id,label\na\n", "bad label in line 2"),
        (b"request_id,label\n\xff,1\n", "not a CSV file"),
        (b'request_id,label\n"a,1\n', "not a CSV file"),
    ],
)
def test_a_bad_file_of_labels_is_refused(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=found):
        read_label_file(tmp_path / "labels.csv", DATASET, "file")


def test_labels_are_names_or_numbers(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(f"label,index,request_id\n2,,a\n{DATASET.classes_ko[3]},4,b\n", encoding="utf-8-sig")
    labels = [(label.request_id, label.index, label.label) for label in read_label_file(file, DATASET, "me")]
    assert labels == [("a", 0, DATASET.classes[2]), ("b", 4, DATASET.classes[3])]
