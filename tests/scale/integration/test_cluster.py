"""A cluster of two workers: the same results as without it, also after kills; strangers and other code are refused."""

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline.data import table
from pipeline.data.features import read_features
from pipeline.data.imports.decoding import Form, decode, measure
from pipeline.data.sources.recognise import Reading, open_collection
from pipeline.errors import DataError, PipelineError, WorkspaceError
from pipeline.partitions import map_partitions
from pipeline.scale import certificates, client, executor
from pipeline.scale.software import describe_software
from tests.conftest import REPOSITORY
from tests.processes import wait_until
from tests.scale import functions

# The workers import the functions of the tests.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY)}


@dataclass
class Cluster:
    process: subprocess.Popen[str]
    address: str
    directory: Path

    @property
    def workers(self) -> set[int]:
        """The processes of the workers."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return {child.pid for child in children if "spawn_main" in " ".join(child.cmdline())}


def start(directory: Path, workers: int = 2) -> Cluster:
    (directory / "dvc.yaml").touch()
    command = [sys.executable, "-m", "pipeline.cli", "scale", "up", "--workers", str(workers), "--port", "0"]
    process = subprocess.Popen(
        command, cwd=directory, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout
    lines = [process.stdout.readline() for _ in range(3)]
    return Cluster(process, lines[1].split("=")[1].strip(), directory)


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = start(tmp_path_factory.mktemp("project"))
    yield cluster
    client.connect.cache_clear()
    cluster.process.terminate()
    assert cluster.process.wait(30) == 128 + signal.SIGTERM


@pytest.fixture
def cluster(shared_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    wait_until(lambda: len(shared_cluster.workers) == 2)
    monkeypatch.chdir(shared_cluster.directory)
    monkeypatch.setenv(executor.ADDRESS, shared_cluster.address)
    return shared_cluster


def test_results_have_the_order_of_the_partitions_and_workers_work_in_this_directory(cluster: Cluster) -> None:
    assert list(map_partitions(functions.square, range(30))) == [value * value for value in range(30)]
    assert set(map_partitions(functions.current_directory, range(4))) == {str(cluster.directory)}


def test_an_error_is_that_of_the_function(cluster: Cluster) -> None:
    results = map_partitions(functions.refuse, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="image 3 is damaged\n  remedy:   delete it"):
        next(results)
    with pytest.raises(TimeoutError, match="partition 0 took too long"):
        next(map_partitions(functions.time_out, range(1)))


def test_a_killed_worker_is_replaced_and_its_partitions_are_computed_again(cluster: Cluster, tmp_path: Path) -> None:
    before = cluster.workers
    partitions = [(str(tmp_path / "ended"), value) for value in range(30)]
    assert list(map_partitions(functions.end_once, partitions)) == [value * value for value in range(30)]
    wait_until(lambda: len(cluster.workers) == 2 and cluster.workers != before)


@pytest.mark.faults
def test_a_partition_that_ends_every_worker_is_named(cluster: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PipelineError) as caught:
        list(map_partitions(functions.end_always, range(10)))
    assert "cannot compute partition 6 of end_always: a worker ended" in str(caught.value)
    assert "4 workers ended while they computed it" in caught.value.found
    assert list(map_partitions(functions.square, range(3))) == [0, 1, 4]
    assert capfd.readouterr() == ("", "")


def test_features_have_the_same_bytes(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = table.Dataset("shapes", 8, 8, ("a", "b"), ("가", "나"), flip=True)
    rng, count = np.random.default_rng(0), 3 * table.ROW_GROUP + 5
    images = rng.integers(0, 256, (count, 8, 8), np.uint8)
    with table.writer(tmp_path / "train.parquet", dataset) as rows:
        ids, sources = (table.strings([f"{kind}{row // 9000}" for row in range(count)]) for kind in ("id-", "batch-"))
        rows.write(images, rng.integers(0, 2, count).astype(np.uint8), ids, sources)
    by_cluster = read_features(tmp_path / "train.parquet")
    monkeypatch.delenv(executor.ADDRESS)
    alone = read_features(tmp_path / "train.parquet")
    assert by_cluster.sources == alone.sources
    for name, values in vars(alone).items():
        if isinstance(values, np.ndarray):
            np.testing.assert_array_equal(values, getattr(by_cluster, name), name)


def test_pictures_are_decoded_and_measured_to_the_same_bytes(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for number in range(600):
        folder = tmp_path / "pictures" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20, 16 + number % 3, *([3] * (number == 599))), np.uint8)  # the last has colours
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    whole = (tmp_path / "pictures/a/000.png").read_bytes()
    (tmp_path / "pictures/a/damaged.png").write_bytes(whole[: len(whole) // 2])
    collection = open_collection(tmp_path / "pictures", Reading())
    results = []
    for scratch in (tmp_path / "cluster", tmp_path / "alone"):
        scratch.mkdir()
        pictures = decode(collection, Form((18, 18), None, "fit", (255,)), scratch, lambda count: None)
        results.append((pictures, measure(pictures.pixels, lambda count: None)))
        monkeypatch.delenv(executor.ADDRESS, raising=False)
    for by_cluster, alone in zip(*results, strict=True):
        for name, values in vars(alone).items():
            if isinstance(values, np.ndarray):
                np.testing.assert_array_equal(values, getattr(by_cluster, name), name)
            else:
                assert values == getattr(by_cluster, name), name


def test_other_code_is_refused_before_work_is_sent(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = describe_software()
    newer = replace(ours, code={**ours.code, "pipeline/data/decoders.py": "edited since"})
    monkeypatch.setattr(client, "describe_software", lambda: newer)
    with pytest.raises(WorkspaceError) as caught:
        next(map_partitions(functions.square, range(3)))
    assert "has other code or packages" in caught.value.problem
    assert "another pipeline/data/decoders.py" in caught.value.found
    assert "restart it" in caught.value.remedy


def test_workers_without_the_files_or_the_code_are_refused() -> None:
    ours = describe_software()
    for answer, problem in (((ours, False), "at the same path"), (ModuleNotFoundError("pipeline"), "cannot import")):
        facts = client._judge("tls://10.0.0.7:40001", 1, answer)
        with pytest.raises(WorkspaceError, match=f"the worker tls://10.0.0.7:40001 .*{problem}"):
            client.require_same_software([facts])
    with pytest.raises(WorkspaceError, match="the cluster has no workers"):
        client.require_same_software([])


def test_a_stranger_cannot_connect(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host, port = cluster.address.removeprefix("tls://").split(":")
    trusting = ssl.create_default_context(cafile=str(cluster.directory / ".pipeline/dask/cert.pem"))
    trusting.check_hostname = False
    with socket.create_connection((host, int(port))) as plain, pytest.raises((ssl.SSLError, ConnectionError)):
        secure = trusting.wrap_socket(plain)  # this side trusts the cluster, but has no key
        secure.sendall(b"hello")
        while secure.recv(1024):
            pass
        raise ConnectionError("closed")
    monkeypatch.setenv(certificates.DIRECTORY, str(tmp_path / "other"))
    monkeypatch.setattr(client, "CONNECT_SECONDS", 2)
    certificates.ensure_certificate()
    client.connect.cache_clear()
    with pytest.raises(WorkspaceError, match="cannot connect to the cluster"):
        next(map_partitions(functions.square, range(3)))


def test_nothing_listens_but_what_needs_the_certificate(cluster: Cluster) -> None:
    processes = [psutil.Process(pid) for pid in (cluster.process.pid, *cluster.workers)]
    listening = [
        connection.laddr
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 1 + 2  # the scheduler, and each worker with the process that restarts it
    for address in listening:
        assert address.ip == "127.0.0.1"
        with socket.create_connection((address.ip, address.port), timeout=10) as plain:
            plain.sendall(b"GET /info/main/workers.html HTTP/1.0\r\n\r\n")
            with suppress(ConnectionError):  # closed at once
                assert b"HTTP" not in plain.recv(1024)


def test_the_certificate_is_private(cluster: Cluster) -> None:
    directory = cluster.directory / ".pipeline/dask"
    assert {path.name: oct(path.stat().st_mode)[-3:] for path in directory.glob("*.pem")} == {
        "cert.pem": "600",
        "key.pem": "600",
    }
    assert oct(directory.stat().st_mode)[-3:] == "700"


@pytest.mark.faults
def test_a_worker_joins_and_the_status_lists_it(cluster: Cluster) -> None:
    command = (sys.executable, "-m", "pipeline.cli", "scale")
    environment = ENVIRONMENT | {executor.ADDRESS: cluster.address}
    joined = subprocess.Popen(
        [*command, "worker", cluster.address, "--workers", "1"],
        cwd=cluster.directory, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert joined.stdout
    assert "joined" in joined.stdout.readline()
    shown = subprocess.run(
        [*command, "status"], cwd=cluster.directory, env=environment, capture_output=True, text=True, check=True
    )
    assert len(re.findall(r"tls://127\.0\.0\.1:\d+ +1 +ready", shown.stdout)) == 3
    joined.send_signal(signal.SIGINT)
    assert joined.wait(30) == 130


@pytest.mark.faults
def test_the_end_of_the_scheduler_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = start(tmp_path, workers=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(executor.ADDRESS, cluster.address)
    results = map_partitions(functions.wait_for_file, [str(tmp_path / "never")])
    client.connect(cluster.address)
    workers = cluster.workers

    def kill() -> None:
        wait_until((tmp_path / "never.started").exists)
        cluster.process.kill()

    threading.Thread(target=kill).start()
    with pytest.raises(PipelineError, match="the connection to the scheduler was lost"):
        next(results)
    cluster.process.wait()
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in workers))
