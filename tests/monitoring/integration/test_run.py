"""The monitor in a workspace: comparisons, cache, report and notices; with a real champion in the last test."""

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.data import table, tiny
from pipeline.data.catalog import load_entry
from pipeline.errors import DataError
from pipeline.monitoring.run import Monitoring, monitor
from pipeline.notices.send import URLS_VARIABLE
from tests.conftest import REPOSITORY, Project
from tests.notices.integration.test_send import Endpoint, endpoint

__all__ = ["endpoint"]  # a fixture

DATASET = load_entry("tiny", REPOSITORY / "data/catalog").dataset
Pair = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in which `ingest` has run on 2,000 images, and nothing is registered. It has no batches."""
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "workspace"
    (root / "data/incoming").mkdir(parents=True)
    set_params(root)
    write_train(root, {table.OFFICIAL: tiny.generate(2000, 1)})
    return root


def set_params(root: Path, **monitor: float) -> None:
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    params["dataset"]["name"] = "tiny"
    params["monitor"] |= monitor
    (root / "params.yaml").write_text(yaml.safe_dump(params))


def write_train(root: Path, parts: dict[str, Pair]) -> None:
    with table.writer(root / "data/dataset/train.parquet", DATASET) as rows:
        for source, (images, labels) in parts.items():
            ids = [f"{digest.hex()}-0" for digest in table.pixel_digests(images)]
            rows.write(images, labels, table.strings(ids), table.strings([source] * len(ids)))


def usual(count: int = 200, seed: int = 2) -> Pair:
    return tiny.generate(count, seed)


def dimmed(count: int = 200, seed: int = 3) -> Pair:
    images, labels = tiny.generate(count, seed)
    return (images * 0.6).astype(np.uint8), labels


def add(root: Path, name: str, batch: Pair) -> None:
    np.savez(root / "data/incoming" / name, images=batch[0], labels=batch[1])


def verdicts(found: Monitoring) -> dict[str, bool]:
    return {batch.name: bool(batch.drifted) for batch in found.batches}


def test_each_batch_is_compared_and_the_rule_counts_the_last_ones(workspace: Path) -> None:
    add(workspace, "a.npz", dimmed())
    add(workspace, "b.npz", usual())
    found = monitor(workspace)
    assert verdicts(found) == {"a.npz": True, "b.npz": False}
    assert (found.drifted, found.asks_retraining) == (False, False)
    add(workspace, "c.npz", dimmed(seed=4))
    found = monitor(workspace)
    assert (found.drifted, found.asks_retraining) == (True, True)
    assert "c.npz" in found.sentence
    assert found.evidence == json.loads(json.dumps(found.evidence))
    assert found.evidence["latest"] == "c.npz"
    assert set(found.evidence["drifted"]) == {"a.npz", "c.npz"}
    assert found.evidence["drifted"]["c.npz"]["mean"] > 0.3
    set_params(workspace, at_least=3)
    assert not monitor(workspace).asks_retraining
    set_params(workspace, feature_effect=1.0)
    assert verdicts(monitor(workspace)) == {"a.npz": False, "b.npz": False, "c.npz": False}


def test_a_batch_is_not_compared_with_itself(workspace: Path) -> None:
    """The last training took it in, several times over; the reference is the dataset's own images."""
    add(workspace, "a.npz", dimmed())
    before = monitor(workspace)
    many = dimmed(8000, seed=5)
    write_train(workspace, {table.OFFICIAL: tiny.generate(2000, 1), "a.npz": dimmed(), "b": many})
    after = monitor(workspace)
    assert verdicts(after) == verdicts(before) == {"a.npz": True}
    assert after.report.read_bytes() == before.report.read_bytes()


def test_the_report_has_its_figures_and_is_the_same_each_time(workspace: Path) -> None:
    add(workspace, "a.npz", usual(50))
    add(workspace, "b.npz", dimmed())
    report = monitor(workspace).report
    files = {path.name: path.read_bytes() for path in report.parent.iterdir()}
    assert set(files) == {"report.md", "effects.png", "latest-1.png", "latest-2.png"}
    assert "left out, because there is no champion yet" in files["report.md"].decode()
    shutil.rmtree(workspace / ".pipeline")
    monitor(workspace)
    assert {path.name: path.read_bytes() for path in report.parent.iterdir()} == files
    assert str(workspace) not in files["report.md"].decode()


def test_an_unreadable_batch_is_listed_and_the_others_are_compared(workspace: Path) -> None:
    add(workspace, "a.npz", dimmed())
    archive = (workspace / "data/incoming/a.npz").read_bytes()
    encrypted = archive.replace(b"PK\1\2-\3-\0\0", b"PK\1\2-\3-\0\1")  # by the flags in its directory
    (workspace / "data/incoming/b.npz").write_bytes(encrypted)
    add(workspace, "c.npz", (np.zeros((3, 9, 9), np.uint8), np.zeros(3, int)))
    (workspace / "data/incoming/d.npz.dvc").write_text("outs: []")
    (workspace / "data/incoming/e.npz").symlink_to("a.npz")
    (workspace / "data/incoming/.gitkeep").touch()
    for _ in range(2):  # the second time from the cache
        found = monitor(workspace)
        assert verdicts(found) == {"a.npz": True}
        assert list(found.unreadable) == ["b.npz", "c.npz", "d.npz", "e.npz"]
        assert "encrypted" in found.unreadable["b.npz"]
        assert "another size; found 9 x 9" in found.unreadable["c.npz"]
        assert "pointer" in found.unreadable["d.npz"]
        assert found.unreadable["e.npz"] == "e.npz is a link"
        assert found.drifted  # the latest of those that can be read
        assert "b.npz" in found.sentence
    add(workspace, "b.npz", usual())
    assert verdicts(monitor(workspace)) == {"a.npz": True, "b.npz": False}
    kept = list((workspace / ".pipeline/monitoring/comparisons").iterdir())
    assert len(kept) == 3  # of the present batches only


def test_each_drift_sends_one_notice(workspace: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URLS_VARIABLE, f"json://{endpoint.address}")
    add(workspace, "a.npz", usual())
    assert monitor(workspace).evidence["new"] == {}
    assert endpoint.taken == []
    add(workspace, "b.npz", dimmed())
    found = monitor(workspace)
    assert found.evidence["new"] == {"b.npz": list(found.batches[1].drifted)}
    assert [message["title"] for message in endpoint.taken] == ["drift in b.npz"]
    assert found.sentence in endpoint.taken[0]["message"]
    assert monitor(workspace).evidence["new"] == {}
    (workspace / "data/incoming/b.npz").rename(workspace / "data/incoming/z.npz")  # the same images
    monitor(workspace)
    assert len(endpoint.taken) == 1
    add(workspace, "c.npz", dimmed(seed=9))
    assert set(monitor(workspace).evidence["new"]) == {"c.npz"}
    assert [message["title"] for message in endpoint.taken[1:]] == ["drift in c.npz"]


def test_without_batches_there_is_nothing_to_compare(workspace: Path) -> None:
    shutil.rmtree(workspace / "data")
    found = monitor(workspace)
    assert (found.drifted, found.asks_retraining, found.batches) == (False, False, ())
    assert "no batch" in found.report.read_text()


def test_without_training_data_the_error_says_what_to_run(workspace: Path) -> None:
    add(workspace, "a.npz", usual())
    (workspace / "data/dataset/train.parquet").unlink()
    with pytest.raises(DataError, match=r"train\.parquet is missing\n.*dvc repro"):
        monitor(workspace)
    assert not (workspace / "reports").exists()


def test_a_second_run_reads_no_image(workspace: Path) -> None:
    """Checked by the imports of the process: only comparisons import SciPy."""
    program = (
        "import sys; from pathlib import Path; from pipeline.monitoring.run import monitor; "
        "found = monitor(Path(sys.argv[1])); "
        "print(found.drifted, *({'scipy.stats', 'tensorflow', 'mlflow', 'prefect'} & set(sys.modules)))"
    )

    def look() -> str:
        command = [sys.executable, "-c", program, str(workspace)]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()

    add(workspace, "a.npz", dimmed())
    assert look() == "True scipy.stats"
    assert look() == "True"
    (kept,) = (workspace / ".pipeline/monitoring/comparisons").iterdir()
    content = kept.read_bytes()
    kept.write_text("{")  # torn by a power cut
    assert monitor(workspace).drifted
    assert kept.read_bytes() == content


def test_the_confidence_of_the_champion_is_compared(trained: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    incoming = trained.path / "data/incoming"
    images, labels = usual(400)
    np.savez(incoming / "a.npz", images=images[:200], labels=labels[:200])
    np.savez(incoming / "b.npz", images=np.roll(images[200:], 4, axis=1), labels=labels[200:])

    first = json.loads(trained.run("pipeline", "monitor", "--json").stdout)
    batches = first["batches"]
    assert not batches["a.npz"]["drifted"]
    assert {"row", "confidence"} <= set(batches["b.npz"]["drifted"])
    assert first["evidence"]["champion"] == (
        "that of tiny version 1, on 200 validation images that came with the dataset"
    )
    assert (trained.path / first["report"]).is_file()

    with closing(sqlite3.connect(trained.path / "mlflow.db")) as database, database:
        database.execute("UPDATE model_version_tags SET value = 'another' WHERE key = 'model.sha256'")
    without = monitor(trained.path)
    assert without.champion.endswith("cannot be used: its contract is of another model")
    quantities = {batch.name: {one.quantity for one in batch.comparisons} for batch in without.batches}
    assert quantities == {name: set(batch["quantities"]) - {"confidence"} for name, batch in batches.items()}
    changed = trained.run("git", "status", "--porcelain", "--untracked-files=all").stdout.splitlines()
    assert changed == [f"?? data/incoming/{name}.npz" for name in "ab"]  # what it leaves is no concern of git's
