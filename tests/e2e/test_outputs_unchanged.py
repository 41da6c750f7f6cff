"""The outputs of the stages keep the bytes of release 0.1.0, and the tables of images their values."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.data import table
from pipeline.evaluation.predictions import read_predictions
from tests.conftest import REPOSITORY, Project
from tests.e2e.release_0_1_0 import pipeline, release, upgraded
from tests.e2e.test_repro import aliases_of, ledger_of, lock_of, stored, versions_of

__all__ = ["release", "upgraded"]  # fixtures

# MD5 of outputs that do not depend on the processor, as the dvc.lock of release 0.1.0 has them.
TINY = {"data/raw": "346345aa44c9ffc19ca6b0455058af0f.dir", "reports/split.json": "8253920707b922d6cf6bcd6cf5c4f547"}
FASHION_MNIST = {
    "data/raw": "c81338678330af46478a141358fc113e.dir",
    "reports/split.json": "9c39f9c34d7bf0a6b60494dd23fbfb5b",
    # Tables with wider labels, and the values of release 0.1.0.
    "data/splits/train.parquet": "2d8f09a3596c3053890019aecb46ad97",
    "data/splits/validation.parquet": "e27fb81b73b8fa040ff67399727de913",
    "data/splits/test.parquet": "3ff1c7e307b4c24a90b26e2b6d7fa9c1",
}
# SHA-256 of the values in the tables of release 0.1.0, by `digest_of_values`. Today's tables have wider labels.
TABLES_OF_TINY = {
    "data/dataset/train.parquet": "143b7f17fc7839508edec3d8f65aa34f57de3b03999671654090caa164bc818b",
    "data/splits/train.parquet": "c6e2ce09f32ccf5051e463c4741d1a6ee0201c4836ff3cd4066317b03fa2d402",
    "data/splits/validation.parquet": "38e809c05e2e3024f83f733767e20c06eaf5d8dc5bd98e3985a67307a3f4b86b",
    "data/splits/test.parquet": "8d19cc8db91bf1fafa0f94dbfc3ae83e3b5e6ae99850f3d0c440dfecf264da46",
}
COMPARED = {
    "models/model.keras",
    "reports/evaluation/metrics.json",
    "reports/evaluation/confusion.csv",
}  # at least
# Outputs that release 0.1.0 did not have.
NEW_FILES = {
    "reports/training/metrics.json",
    "models/model.tflite",
    "models/contract.json",
    "models/quantized/NOTE.txt",
    "reports/evaluation/figures/saliency.png",
}
# Release 0.1.0 evaluated `model.keras`: another size, and probabilities that may differ in their last bits. All other
# outputs are compared byte by byte.
EVALUATION = "reports/evaluation"
PREDICTIONS = f"{EVALUATION}/predictions.parquet"
VALIDATION = "reports/validation.json"  # lists the columns of the tables
METRICS = f"{EVALUATION}/metrics.json"  # has the balanced accuracy and the check of the saliency as well
OTHER_MODEL_FILE = {PREDICTIONS, *(f"{EVALUATION}/{name}" for name in ("gate.json", "reliability.csv", "report.md"))}


def flatten(project: Project) -> dict[str, str]:
    """Map each output file of `dvc.lock` to its MD5, with the files of directories from DVC's cache."""
    found = {}
    for outs in lock_of(project).values():
        for path, digest in outs.items():
            if digest.endswith(".dir"):
                entries = json.loads(stored(project, digest).read_text())
                found |= {f"{path}/{entry['relpath']}": entry["md5"] for entry in entries}
            else:
                found[path] = digest
    return found


def read_locked(path: Path) -> dict[str, str]:
    stages = yaml.safe_load(path.read_text())["stages"].values()
    return {out["path"]: out["md5"] for stage in stages for out in stage["outs"]}


def digest_of_values(path: Path) -> str:
    """Return the SHA-256 of a table's images, labels (as bytes), ids and sources."""
    rows = list(table.stream(path))
    texts = (text for column in ("ids", "sources") for part in rows for text in getattr(part, column).to_pylist())
    labels = np.concatenate([part.labels for part in rows]).astype(np.uint8)
    images = b"".join(part.images.tobytes() for part in rows)
    return hashlib.sha256(b"\n".join([images, labels.tobytes(), *map(str.encode, texts)])).hexdigest()


def test_the_data_of_tiny_keeps_its_values(template: Project) -> None:
    assert read_locked(template.path / "dvc.lock").items() >= TINY.items()
    assert {path: digest_of_values(template.path / path) for path in TABLES_OF_TINY} == TABLES_OF_TINY


def test_the_locked_data_of_fashion_mnist_keeps_its_bytes() -> None:
    assert read_locked(REPOSITORY / "dvc.lock").items() >= FASHION_MNIST.items()


@pytest.mark.faults
@pytest.mark.xdist_group("release-0.1.0")
def test_a_run_makes_the_bytes_of_the_release_and_no_new_challenger(release: Project, upgraded: Project) -> None:
    for name in ("bad.npz", "march.npz"):
        (upgraded.path / "data/incoming" / name).unlink()
    pipeline(upgraded, "history")  # completes the killed rollback
    ledger = ledger_of(upgraded)

    # Today's train does not resume from a checkpoint that other code wrote.
    checkpoints = set(upgraded.path.glob(".pipeline/checkpoints/*.npz"))
    upgraded.set_params(**{"train.epochs": 12})
    assert "from checkpoint" not in upgraded.repro("train").stdout
    assert set(upgraded.path.glob(".pipeline/checkpoints/*.npz")) == checkpoints
    upgraded.run("git", "checkout", "params.yaml")

    pipeline(upgraded, "run")
    before, after = flatten(release), flatten(upgraded)
    assert before.keys() >= COMPARED
    assert after.keys() - before.keys() == NEW_FILES
    tables = {path for path in before if path.startswith("data/") and path.endswith(".parquet")}
    for path in tables:
        assert digest_of_values(stored(upgraded, after[path])) == digest_of_values(stored(release, before[path])), path
    same = before.keys() - OTHER_MODEL_FILE - tables - {VALIDATION, METRICS}
    assert {path: after.get(path) for path in same} == {path: before[path] for path in same}
    found, expected = (
        json.loads(stored(project, locked[VALIDATION]).read_text())
        for project, locked in ((upgraded, after), (release, before))
    )
    assert (found["passed"], found["splits"]) == (expected["passed"], expected["splits"])
    ours, theirs = (
        json.loads(stored(project, locked[METRICS]).read_text())
        for project, locked in ((upgraded, after), (release, before))
    )
    assert ours.items() >= theirs.items()
    ours, theirs = (
        read_predictions(stored(project, found[PREDICTIONS]))
        for project, found in ((upgraded, after), (release, before))
    )
    assert (ours.ids, ours.classes) == (theirs.ids, theirs.classes)
    assert np.array_equal(ours.predicted, theirs.predicted)
    assert np.abs(ours.probabilities - theirs.probabilities).max() < 1e-5

    assert versions_of(upgraded) == versions_of(release)
    assert aliases_of(upgraded) == {("tiny", "champion"): "1"}
    assert ledger_of(upgraded) == ledger
