"""The traffic log: what is added is read back, whatever happens to the process that writes."""

import logging
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import features, table, tiny
from pipeline.data.drift_features import drift_features
from pipeline.data.traffic import SCHEMA, column_to_numpy, read_open_file, read_traffic
from pipeline.serving import traffic_log
from pipeline.serving.traffic_log import TrafficLog
from pipeline.serving.traffic_rows import ShadowAnswers
from tests.conftest import REPOSITORY

WRITER = """
import sys, time, uuid
from pathlib import Path
import numpy as np
from pipeline.serving.traffic_log import TrafficLog
log = TrafficLog(Path(sys.argv[1]), share=1.0, keep_images=False, keep_days=30, limit_mb=100)
images, answers = np.zeros((2, 28, 28), np.uint8), np.eye(10, dtype=np.float32)[:2]
for _ in range(int(sys.argv[2])):
    log.add(str(uuid.uuid4()), "1", "a", images, answers)
while sys.argv[3] == "hang":
    if log.logged:
        print(log.logged, flush=True)
    time.sleep(0.05)
log.close()
print(log.logged, *sorted({"pandas", "scipy", "mlflow"} & set(sys.modules)))
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "traffic"


@pytest.fixture
def log(directory: Path) -> Iterator[TrafficLog]:
    log = open_log(directory)
    yield log
    log.close()


def open_log(directory: Path, *, share: float = 1.0, keep_images: bool = False, limit_mb: int = 100) -> TrafficLog:
    return TrafficLog(directory, share=share, keep_images=keep_images, keep_days=30, limit_mb=limit_mb)


def answers(count: int, classes: int = 10, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(classes), count).astype(np.float32)


def read(directory: Path, columns: list[str] | None = None) -> pa.Table:
    now = datetime.now(UTC)
    tables = list(read_traffic(directory, now - timedelta(days=60), now + timedelta(hours=1), columns))
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()


def write_in_a_process(directory: Path, requests: int, then: str = "close") -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WRITER, str(directory), str(requests), then]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def test_what_is_added_is_read_back(directory: Path, log: TrafficLog) -> None:
    images, _ = tiny.generate(5, 1)
    first, second = answers(3), answers(2, seed=1)
    started = datetime.now(UTC)
    log.add("r1", "7", "abc", images[:3], first)
    log.add("r2", "8", "def", images[3:], second, ShadowAnswers("9", "fed", second[::-1]))
    log.close()
    rows = read(directory)
    assert rows.column_names == [name for name in SCHEMA.names if name != "image"]
    plain = rows.select(["request_id", "index", "version", "sha256", "shape"]).to_pylist()
    assert [tuple(row.values())[:4] for row in plain] == [
        *(("r1", index, "7", "abc") for index in range(3)),
        *(("r2", index, "8", "def") for index in range(2)),
    ]
    assert plain[0]["shape"] == [28, 28]
    logged = column_to_numpy(rows, "probabilities")
    np.testing.assert_array_equal(logged, np.concatenate([first, second]))
    assert rows.column("predicted").to_pylist() == logged.argmax(axis=1).tolist()
    measured = features.measure([(images, np.zeros(5, np.uint16), table.strings([""] * 5))])
    assert measured
    for name, values in drift_features(measured).items():
        np.testing.assert_array_equal(column_to_numpy(rows, name), values)
    assert rows.column("red_green").null_count == 5
    assert rows.column("shadow_version").to_pylist() == [None] * 3 + ["9"] * 2
    assert rows.column("shadow_probabilities").to_pylist()[3:] == second[::-1].tolist()
    assert rows.column("shadow_probabilities").null_count == 3
    assert all(started <= at <= datetime.now(UTC) for at in rows.column("time").to_pylist())
    assert log.logged == 5
    assert [path.suffix for path in directory.iterdir()] == [".parquet"]


def test_images_are_kept_only_if_wanted(directory: Path, log: TrafficLog) -> None:
    images = np.random.default_rng(1).integers(0, 256, (2, 6, 5, 3), np.uint8)
    log.add("without", "1", "a", images, answers(2))
    log.close()
    assert read(directory, ["image"]).column("image").null_count == 2
    keeping = open_log(directory, keep_images=True)
    keeping.add("with", "1", "a", images, answers(2))
    keeping.close()
    kept = [row for row in read(directory, ["request_id", "image", "shape"]).to_pylist() if row["image"]]
    assert [row["request_id"] for row in kept] == ["with", "with"]
    for row, image in zip(kept, images, strict=True):
        np.testing.assert_array_equal(np.frombuffer(row["image"], np.uint8).reshape(row["shape"]), image)
    assert read(directory).column("yellow_blue").null_count == 0


def test_rows_can_be_read_while_the_hour_lasts(directory: Path, log: TrafficLog) -> None:
    log.add("r1", "1", "a", np.zeros((300, 28, 28), np.uint8), answers(300))  # enough to be written at once
    deadline = time.monotonic() + 60
    while not log.logged and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [path.suffix for path in directory.iterdir()] == [".arrows"]
    assert read(directory).num_rows == 300
    now = datetime.now(UTC)
    assert list(read_traffic(directory, now + timedelta(minutes=1), now + timedelta(hours=2))) == []


def test_models_with_other_images_and_classes_share_a_file(directory: Path, log: TrafficLog) -> None:
    for number, (shape, classes) in enumerate([((28, 28), 10), ((9, 9), 3), ((28, 28), 10)]):
        log.add(f"r{number}", "1", "a", np.ones((2, *shape), np.uint8), answers(2, classes))
    log.close()
    assert [len(row) for row in read(directory).column("probabilities").to_pylist()] == [10, 10, 3, 3, 10, 10]


def test_a_killed_writer_loses_no_complete_batch(directory: Path) -> None:
    process = write_in_a_process(directory, 500, "hang")
    assert process.stdout
    written = int(process.stdout.readline())
    process.kill()
    process.wait()
    assert [path.suffix for path in directory.iterdir()] == [".arrows"]
    assert read(directory).num_rows >= written > 0
    before = read(directory)
    log = open_log(directory)  # the next server
    log.add("r1", "1", "a", np.zeros((1, 28, 28), np.uint8), answers(1))
    log.close()
    assert {path.suffix for path in directory.iterdir()} == {".parquet"}
    assert read(directory).num_rows == before.num_rows + 1


def test_a_torn_file_is_read_up_to_the_last_complete_batch(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic_log, "_convert", lambda path: None)
    log = open_log(directory)
    for number in range(600):  # of which a batch has up to 256
        log.add(f"r{number}", "1", "a", np.zeros((1, 28, 28), np.uint8), answers(1))
    log.close()
    (file,) = directory.iterdir()
    whole, seen = file.read_bytes(), set()
    for size in [*range(0, len(whole), 997), len(whole)]:
        file.write_bytes(whole[:size])
        seen.add(read(directory).num_rows)
    assert min(seen) == 0
    assert max(seen) == 600
    assert len(seen) >= 3


def test_a_batch_that_was_written_in_part_hides_no_later_one(directory: Path) -> None:
    directory.mkdir()
    file = traffic_log._OpenFile(directory)
    (path,) = directory.iterdir()
    whole = pa.RecordBatch.from_arrays([pa.nulls(3, field.type) for field in SCHEMA], schema=SCHEMA)
    stream, file._file = file._file, FullDisk(file._file)  # type: ignore[assignment]
    with pytest.raises(OSError, match="only 10 of"):
        file.append(whole)
    file._file = stream
    file.append(whole)
    assert [batch.num_rows for batch in read_open_file(path)] == [3]
    file.close()


class FullDisk:
    """A file on a disk with room for ten bytes."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, content: Any) -> int:
        return int(self._file.write(memoryview(content)[:10]))


def test_several_processes_write_to_one_directory(directory: Path) -> None:
    processes = [write_in_a_process(directory, 300) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0].split() for process in processes]
    assert outputs == [["600"], ["600"]]  # and no module that is too large for a server
    rows = read(directory, ["request_id", "index"]).to_pylist()
    assert len(rows) == len({tuple(row.values()) for row in rows}) == 1200


def test_what_the_thread_cannot_keep_up_with_is_dropped(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic_log, "FLUSH_SECONDS", 600)
    monkeypatch.setattr(traffic_log, "LARGEST_BACKLOG", 0.5)  # reached before the thread is woken up
    log = open_log(directory)
    for _ in range(10):
        log.add(str(uuid.uuid4()), "1", "a", np.zeros((50, 28, 28), np.uint8), answers(50))
    assert log.dropped == 400
    log.close()
    assert (log.logged, read(directory).num_rows) == (100, 100)


def test_the_request_decides_on_the_sample(directory: Path) -> None:
    requests = [str(uuid.UUID(int=number)) for number in range(1000)]
    sampled = []
    for name in "ab":
        log = open_log(directory / name, share=0.25)
        for request in requests:
            log.add(request, "1", "a", np.zeros((1, 28, 28), np.uint8), answers(1))
        log.close()
        sampled.append(read(directory / name, ["request_id"]).column("request_id").to_pylist())
    assert sampled[0] == sampled[1]
    assert 190 < len(sampled[0]) < 310
    log = open_log(directory / "c", share=0.0)
    log.add("r", "1", "a", np.zeros((1, 28, 28), np.uint8), answers(1))
    log.close()
    assert not (directory / "c").exists()


def test_old_files_are_deleted(directory: Path) -> None:
    directory.mkdir()
    old, young = (datetime.now(UTC) - timedelta(days=days) for days in (31, 29))
    for day in (old, young):
        (directory / f"{day:%Y-%m-%dT%H}-00000000.parquet").write_bytes(b"x" * 100)
    (directory / "notes.txt").touch()
    log = open_log(directory)
    log.add("r", "1", "a", np.zeros((1, 28, 28), np.uint8), answers(1))
    log.close()
    kept = sorted(path.name[:13] for path in directory.iterdir())
    assert kept == [f"{young:%Y-%m-%dT%H}", f"{datetime.now(UTC):%Y-%m-%dT%H}", "notes.txt"]


def test_beyond_the_limit_the_oldest_hours_are_deleted(directory: Path) -> None:
    directory.mkdir()
    hours = [datetime.now(UTC) - timedelta(hours=age) for age in (5, 4, 3)]
    for hour in hours:
        pq.write_table(SCHEMA.empty_table(), directory / f"{hour:%Y-%m-%dT%H}-00000000.parquet")
    log, sizes = open_log(directory, limit_mb=1, keep_images=True), []
    images = np.random.default_rng(0).integers(0, 256, (256, 28, 28), np.uint8)  # 200 kB
    for number in range(20):
        log.add(str(number), "1", "a", images, answers(256))
        while log.logged < 256 * (number + 1):
            time.sleep(0.001)
        sizes.append(sum(path.stat().st_size for path in directory.iterdir()))
    log.close()
    assert log.dropped == 0
    assert max(sizes) < 1.3e6  # by one batch
    rows = read(directory, ["request_id"]).column("request_id").to_pylist()
    assert rows[-1] == "19"
    assert "0" not in rows
    assert not any(path.name.startswith(f"{hours[0]:%Y-%m-%dT%H}") for path in directory.iterdir())


def test_a_log_that_cannot_be_written_fails_no_request(
    directory: Path, log: TrafficLog, caplog: pytest.LogCaptureFixture
) -> None:
    directory.write_text("in the way")
    with caplog.at_level(logging.WARNING):
        log.add("r", "1", "a", np.zeros((2, 28, 28), np.uint8), answers(2))
        log.close()
    assert (log.logged, log.dropped) == (0, 2)
    assert "the traffic log cannot be written" in caplog.text
    directory.unlink()
    again = open_log(directory)
    again.add("r", "1", "a", np.zeros((2, 28, 28), np.uint8), answers(2))
    again.close()
    assert again.logged == 2


def test_a_log_that_was_deleted_is_started_again(directory: Path) -> None:
    log = open_log(directory)
    log.add("r", "1", "a", np.zeros((300, 28, 28), np.uint8), answers(300))
    while not log.logged:
        time.sleep(0.001)
    shutil.rmtree(directory)
    log.close()
    assert not directory.exists()
