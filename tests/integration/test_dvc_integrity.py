"""Damaged objects of DVC's cache, which DVC itself takes for right: found by content before anything uses them."""

from pathlib import Path

import pytest
import yaml

from pipeline.errors import WorkspaceError
from pipeline.flows.execution import Execution
from pipeline.flows.terminal import Terminal
from pipeline.tracking.dvc_integrity import require_sound_batches
from tests.conftest import Project


def damage(project: Project, output: str) -> Path:
    """Change one byte of the cached content of an output, and nothing that DVC looks at."""
    lock = yaml.safe_load((project.path / "dvc.lock").read_text())
    outs = {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}
    place = project.path / ".dvc/cache/files/md5" / outs[output][:2] / outs[output][2:]
    alter(place)
    return place


def alter(place: Path) -> None:
    mode = place.stat().st_mode
    place.chmod(0o644)
    content = bytearray(place.read_bytes())
    content[0] ^= 1
    place.write_bytes(content)
    place.chmod(mode)


def test_a_damaged_restored_output_ends_a_run_until_the_object_is_removed(
    stand_ins: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stand_ins.path)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", stand_ins.environment["DVC_SITE_CACHE_DIR"])
    stored = damage(stand_ins, "out/split.txt")
    (stand_ins.path / "out/split.txt").unlink()

    def run() -> tuple[str, str]:
        lines: list[str] = []
        with Terminal() as terminal, Execution(stand_ins.path, terminal, "split", None) as execution:
            execution.prepare()
            for stage in execution.plan.names:
                execution.run(stage, lines.append)
        return execution.results["split"].outcome, " ".join(lines)

    for _ in range(2):  # also the second time, when DVC would take the restored file for unchanged
        outcome, lines = run()
        assert outcome == "failed"
        assert "out/split.txt is damaged" in lines
        assert f"rm -rf {stored}" in lines
    stored.unlink()
    assert run()[0] == "ran"


def test_a_batch_from_a_damaged_object_is_refused_and_an_edited_one_is_not(stand_ins: Project) -> None:
    incoming = Path("data/incoming")
    batch = stand_ins.path / incoming / "a"
    batch.mkdir(parents=True)
    (batch / "one").write_text("1")
    (batch / "two").write_text("2")
    stand_ins.run("dvc", "add", str(batch))
    (batch / "one").unlink()
    (batch / "one").write_text("edited")
    require_sound_batches(stand_ins.path, incoming)
    stored = stand_ins.path / ".dvc/cache/files/md5/c4/ca4238a0b923820dcc509a6f75849b"  # of "1"
    alter(stored)
    (batch / "one").unlink()
    stand_ins.run("dvc", "checkout", "data/incoming/a.dvc")
    with pytest.raises(WorkspaceError, match="data/incoming/a is damaged") as caught:
        require_sound_batches(stand_ins.path, incoming)
    assert str(stored) in caught.value.found
