"""The outputs of the stages keep the bytes of release 0.1.0."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.evaluation.predictions import read_predictions
from tests.conftest import REPOSITORY, Project
from tests.e2e.release_0_1_0 import pipeline, release, upgraded
from tests.e2e.test_repro import aliases_of, ledger_of, lock_of, stored, versions_of

__all__ = ["release", "upgraded"]  # fixtures

# MD5 of outputs that do not depend on the processor, as the dvc.lock of release 0.1.0 has them.
TINY = {
    "data/raw": "346345aa44c9ffc19ca6b0455058af0f.dir",
    "data/dataset": "f0def180938cf890f093b21dca219c28.dir",
    "data/splits/train.parquet": "f78fc4cfa64bdaa3876aca1f4665913d",
    "data/splits/validation.parquet": "2187e529e8435d15438e7d04d1323c99",
    "data/splits/test.parquet": "156d4d619c9b4d1c61fabcf9011f5177",
    "reports/split.json": "8253920707b922d6cf6bcd6cf5c4f547",
}
FASHION_MNIST = {
    "data/raw": "c81338678330af46478a141358fc113e.dir",
    "data/dataset": "683d903194daafbf9c0b62d6e5fd2029.dir",
    "data/splits/train.parquet": "e9a687b4945ba3e6d051c089da1f76d9",
    "data/splits/validation.parquet": "2500140c32f6b2dd14d40c41007e5587",
    "data/splits/test.parquet": "e273aecbab09c5d06f48addc6b6ba1eb",
    "reports/split.json": "9c39f9c34d7bf0a6b60494dd23fbfb5b",
}
COMPARED = {"models/model.keras", "data/dataset/train.parquet", "reports/split.json"}  # at least
# Outputs that release 0.1.0 did not have. All others are compared byte by byte, but for the evaluation.
NEW_FILES = {"models/contract.json", "models/model.tflite", "reports/training/metrics.json"}
# Evaluated by Keras then, and by LiteRT today: the probabilities may differ by as much as the contract allows.
EVALUATION = "reports/evaluation/"
PREDICTIONS = f"{EVALUATION}predictions.parquet"
MOST_DIFFERENCE = 1e-4


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


def read_probabilities(project: Project, outputs: dict[str, str]) -> np.ndarray:
    return read_predictions(stored(project, outputs[PREDICTIONS])).probabilities


def read_locked(path: Path) -> dict[str, str]:
    stages = yaml.safe_load(path.read_text())["stages"].values()
    return {out["path"]: out["md5"] for stage in stages for out in stage["outs"]}


def test_the_data_of_tiny_keeps_its_bytes(template: Project) -> None:
    assert read_locked(template.path / "dvc.lock").items() >= TINY.items()


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
    same = [path for path in before if not path.startswith(EVALUATION)]
    assert {path: after.get(path) for path in same} == {path: before[path] for path in same}
    former, current = (read_probabilities(*found) for found in ((release, before), (upgraded, after)))
    assert np.abs(former - current).max() <= MOST_DIFFERENCE

    assert versions_of(upgraded) == versions_of(release)
    assert aliases_of(upgraded) == {("tiny", "champion"): "1"}
    assert ledger_of(upgraded) == ledger
