"""The commands of `docs/labels.md`, and a correction that goes through the stages and is reverted."""

import json
import sys

import pytest

from pipeline.data import table
from pipeline.data.corrections import CORRECTIONS
from pipeline.files import file_digest, read_json
from tests.conftest import REPOSITORY, Project, stages_that_ran
from tests.e2e.test_readme import BLOCK

TRAIN = "data/dataset/train.parquet"


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_suspect_label_is_corrected_and_the_correction_reverted(trained: Project) -> None:
    (commands,) = BLOCK.findall((REPOSITORY / "docs/labels.md").read_text())
    output = trained.run("bash", "-euc", commands.replace("pipeline ", f"{sys.executable} -m pipeline.cli ")).stdout
    assert "labels are suspect; out-of-fold accuracy" in output
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
