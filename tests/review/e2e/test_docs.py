"""The commands of `docs/labels.md`, a review that is killed, and a correction that is reverted."""

import json
import os
import signal
import sys

import pytest

from pipeline.data import table
from pipeline.data.corrections import CORRECTIONS
from pipeline.files import file_digest, read_json
from tests.conftest import REPOSITORY, Project, stages_that_ran
from tests.e2e.test_readme import BLOCK
from tests.processes import wait_until

TRAIN = "data/dataset/train.parquet"


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_killed_review_continues_and_a_correction_is_made_and_reverted(trained: Project) -> None:
    review = trained.start(sys.executable, "-m", "pipeline.cli", "review", "labels", "--folds", "3")
    folds = trained.path / ".pipeline/review/labels/folds"
    wait_until(lambda: list(folds.glob("*-0.npz")))
    os.killpg(review.pid, signal.SIGKILL)
    review.communicate()
    (finished,) = folds.glob("*-0.npz")
    kept = finished.stat().st_mtime_ns

    (commands,) = BLOCK.findall((REPOSITORY / "docs/labels.md").read_text())
    output = trained.run("bash", "-euc", commands.replace("pipeline ", f"{sys.executable} -m pipeline.cli ")).stdout
    assert "labels are suspect; out-of-fold accuracy" in output
    assert finished.stat().st_mtime_ns == kept
    assert len(list(folds.iterdir())) == 3
    found = json.loads((trained.path / "labels.json").read_text())
    first = next(item for item in found["items"] if not item["twins"])
    row = table.read_ids(trained.path / TRAIN).index(first["id"])
    assert row == first["official_row"]

    before, file = file_digest(trained.path / TRAIN), trained.path / CORRECTIONS
    header = file.read_text()
    file.write_text(f"{header}{first['id']},{first['given']},{first['suggested']},kim,2026-11-28,\n")
    assert stages_that_ran(trained.repro("split").stdout) == ["ingest", "validate", "split"]
    assert file_digest(trained.path / TRAIN) != before
    (applied,) = read_json(trained.path / "reports/validation.json")["corrections"]
    expected = {"split": "train", "given": first["given"], "label": first["suggested"], "who": "kim", "images": 1}
    assert applied == expected

    file.write_text(header)
    assert stages_that_ran(trained.repro("split").stdout) == []  # the outputs are in DVC's cache
    assert file_digest(trained.path / TRAIN) == before
    assert "corrections" not in read_json(trained.path / "reports/validation.json")
