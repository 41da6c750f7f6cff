"""The stages of `dvc.yaml`, in the order in which they run."""

from pathlib import Path

import pytest

from pipeline.dvc_yaml import read_stages, stages_up_to
from pipeline.errors import WorkspaceError

DEFINITION = """
stages:
  report: {cmd: r, deps: [models, data/splits/test.parquet], outs: [report.json: {cache: false}]}
  train: {cmd: t, deps: [data/splits/train.parquet, "${dataset.path}"], outs: [models/model.keras]}
  split: {cmd: s, deps: [data/raw], outs: [data/splits]}
  profile: {cmd: p, deps: [data/raw/images], outs: [profile.json]}
  ingest: {cmd: i, outs: [data/raw]}
"""


def test_a_stage_comes_after_those_that_it_reads_from(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text(DEFINITION)
    stages = read_stages(tmp_path)
    order = list(stages)
    assert order.index("ingest") < order.index("split") < order.index("train") < order.index("report")
    assert order.index("ingest") < order.index("profile")
    assert stages["report"].outs == ("report.json",)
    assert stages_up_to("train", stages) == ("ingest", "split", "train")
    assert stages_up_to("ingest", stages) == ("ingest",)


@pytest.mark.parametrize("content", [None, "stages: [", "stages: [one]", "stages: {a: b}"])
def test_a_missing_or_damaged_file_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "dvc.yaml").write_text(content)
    with pytest.raises(WorkspaceError, match=r"dvc\.yaml is (missing|damaged)"):
        read_stages(tmp_path)
