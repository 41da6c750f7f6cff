"""Where a dataset's files come from, with a real HTTP server, a real apt and real directories; only hosts are local."""

import gzip
import hashlib
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import downloads, idx
from pipeline.data.catalog import ClassName, DatasetFile, DebianPackage, Entry
from pipeline.data.dataset_files import CACHE_VARIABLE, CHECKSUMS, FORMER_CACHE_VARIABLE, cache_directory, fetch
from pipeline.errors import FAILURE, TEMPORARY_FAILURE, DataError
from pipeline.workspace import project_name

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

Answer = Callable[["Handler", bytes], None]


def send(handler: "Handler", body: bytes, *, status: int = 200, length: int | None = None, **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`; a folder's name in `server.answers` says how."""

    server: "Mirror"

    def do_GET(self) -> None:
        folder, _, name = self.path.strip("/").rpartition("/")
        self.server.requests[folder] += 1
        if name not in self.server.files:
            send(self, b"", status=404)
        else:
            self.server.answers.get(folder, send)(self, self.server.files[name])

    def log_message(self, *_: object) -> None:
        pass


class Mirror(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, Answer] = {}
        self.requests: Counter[str] = Counter()
        self.closing = threading.Event()

    def url(self, folder: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{folder}/"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The four files of a small dataset, plain."""
    directory = tmp_path / "files"
    directory.mkdir()
    random = np.random.default_rng(0)
    for images, labels, count in ((NAMES[0], NAMES[1], 60), (NAMES[2], NAMES[3], 30)):
        idx.write(directory / images, random.integers(0, 256, (count, 4, 5), dtype=np.uint8))
        idx.write(directory / labels, (np.arange(count) % 3).astype(np.uint8))
    return directory


@pytest.fixture
def mirror(files: Path) -> Iterator[Mirror]:
    with Mirror() as server:
        server.files = {f"{path.name}.gz": gzip.compress(path.read_bytes()) for path in files.iterdir()}
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def entry(files: Path) -> Entry:
    """What a catalogue would say of them."""
    contents = [(name, (files / name).read_bytes()) for name in NAMES]
    return Entry(
        name="shapes",
        title="Shapes",
        page="https://example.invalid/",
        licence="MIT",
        height=4,
        width=5,
        train=60,
        test=30,
        mean=0.5,
        std=0.3,
        flip=True,
        classes=tuple(ClassName(en=name, ko=name) for name in "abc"),
        files=tuple(
            DatasetFile(name=name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in contents
        ),
    )


@pytest.fixture
def local(tmp_path: Path) -> Path:
    (tmp_path / "local").mkdir()
    (tmp_path / "local/.gitkeep").touch()
    return tmp_path / "local"


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the small dataset in an empty download cache."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache/shapes"


def assert_complete(into: Path, files: Path) -> None:
    assert sorted(path.name for path in into.iterdir()) == sorted([CHECKSUMS, *NAMES])
    for name in NAMES:
        assert (into / name).read_bytes() == (files / name).read_bytes()
    sums = [f"{hashlib.sha256((into / name).read_bytes()).hexdigest()}  {name}\n" for name in NAMES]
    assert (into / CHECKSUMS).read_text() == "".join(sums)


def kept(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.name != ".lock")


# Mirrors and the cache


def test_a_download_is_kept_and_the_mirror_not_asked_again(
    entry: Entry, local: Path, into: Path, files: Path, mirror: Mirror, cache: Path
) -> None:
    entry = replace(entry, mirrors=(mirror.url("good"),))
    fetched = fetch(entry, local, into)
    assert fetched.origin == mirror.url("good")
    assert fetched.dataset == entry.dataset
    assert fetched.train == (into / NAMES[0], into / NAMES[1])
    assert fetched.test == (into / NAMES[2], into / NAMES[3])
    assert_complete(into, files)
    assert kept(cache) == sorted(f"{name}.gz" for name in NAMES)
    assert fetch(entry, local, into).origin.startswith("download cache")
    assert_complete(into, files)
    assert mirror.requests == {"good": 4}


def test_a_mirror_is_given_up_at_its_first_failure(
    entry: Entry, local: Path, into: Path, files: Path, mirror: Mirror
) -> None:
    mirror.answers["missing"] = lambda handler, body: send(handler, body, status=404)
    entry = replace(entry, mirrors=(mirror.url("missing"), mirror.url("good")))
    assert fetch(entry, local, into).origin == mirror.url("good")
    assert_complete(into, files)
    assert mirror.requests == {"missing": 1, "good": 4}


def never(handler: Handler, body: bytes) -> None:
    handler.server.closing.wait()


def slowly(handler: Handler, body: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    for position in range(len(body)):
        if handler.server.closing.wait(0.1):
            return
        handler.wfile.write(body[position : position + 1])
        handler.wfile.flush()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda handler, body: send(handler, body, status=404), "cannot be fetched: 404 Client Error"),
        (lambda handler, body: send(handler, body, status=500), "cannot be fetched: 500 Server Error"),
        (lambda handler, body: send(handler, body[:-9]), "damaged gzip file"),
        (lambda handler, body: send(handler, body, length=len(body) + 9), "cannot be fetched: .*IncompleteRead"),
        (
            lambda handler, body: send(handler, gzip.compress(gzip.decompress(body) + b"?")),
            "has other content: SHA-256",
        ),
        (lambda handler, body: send(handler, b"<html>log in first</html>"), "has other content: SHA-256"),
        (lambda handler, body: handler.connection.shutdown(socket.SHUT_RDWR), "cannot be fetched: .*closed connection"),
        (never, "cannot be fetched: (no data for 0.5 seconds|.*[Tt]imed out|.*Read timed out)"),
        (slowly, "cannot be fetched: no data for 0.5 seconds"),
    ],
    ids=["404", "500", "truncated", "broken-off", "other", "a-page", "hung-up", "never", "slowly"],
)
def test_a_bad_mirror_is_named_with_the_reason(
    entry: Entry,
    local: Path,
    into: Path,
    mirror: Mirror,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
    reason: str,
) -> None:
    monkeypatch.setattr(downloads, "STALL_SECONDS", 0.5)
    mirror.answers["bad"] = answer
    with pytest.raises(DataError, match=f"no source has shapes\n(?s:.*){mirror.url('bad')}: .*{reason}") as caught:
        fetch(replace(entry, mirrors=(mirror.url("bad"),)), local, into)
    assert caught.value.exit_code == TEMPORARY_FAILURE  # so that a flow tries again
    assert kept(cache) == []


def test_a_dataset_that_comes_from_nowhere_is_not_tried_again(
    entry: Entry, local: Path, into: Path, cache: Path
) -> None:
    with pytest.raises(DataError, match="no source has shapes") as caught:
        fetch(replace(entry, mirrors=(), debian=None), local, into)
    assert caught.value.exit_code == FAILURE


@pytest.mark.parametrize(
    "failure",
    [
        lambda handler, body: send(handler, body, length=len(body) + 9),
        lambda handler, body: send(handler, body, status=503),
    ],
    ids=["broken-off", "503"],
)
def test_a_transfer_that_breaks_off_is_tried_once_more(
    entry: Entry, local: Path, into: Path, files: Path, mirror: Mirror, failure: Answer
) -> None:
    def answer(handler: Handler, body: bytes) -> None:
        (failure if handler.server.requests["shaky"] == 1 else send)(handler, body)

    mirror.answers["shaky"] = answer
    fetch(replace(entry, mirrors=(mirror.url("shaky"),)), local, into)
    assert_complete(into, files)
    assert mirror.requests == {"shaky": 5}


def test_a_server_may_decompress_on_the_way(entry: Entry, local: Path, into: Path, files: Path, mirror: Mirror) -> None:
    mirror.answers["encoded"] = lambda handler, body: send(handler, body, Content_Encoding="gzip")
    fetch(replace(entry, mirrors=(mirror.url("encoded"),)), local, into)
    assert_complete(into, files)
    assert fetch(entry, local, into).origin.startswith("download cache")
    assert_complete(into, files)


def test_a_host_that_nobody_knows_is_no_source(entry: Entry, local: Path, into: Path) -> None:
    with pytest.raises(DataError, match="http://mirror.invalid/: train-images-idx3-ubyte.gz cannot be fetched: "):
        fetch(replace(entry, mirrors=("http://mirror.invalid/",)), local, into)


def test_a_damaged_file_in_the_cache_is_fetched_again(
    entry: Entry, local: Path, into: Path, files: Path, mirror: Mirror, cache: Path
) -> None:
    entry = replace(entry, mirrors=(mirror.url("good"),))
    fetch(entry, local, into)
    for damage in (b"", gzip.compress(b"other"), (cache / f"{NAMES[2]}.gz").read_bytes()[:-9]):
        (cache / f"{NAMES[2]}.gz").write_bytes(damage)
        assert fetch(entry, local, into).origin == mirror.url("good")
        assert_complete(into, files)
    (cache / f"{NAMES[2]}.gz").write_bytes(b"damaged")
    with pytest.raises(DataError, match="download cache .*t10k-images-idx3-ubyte.gz has other content"):
        fetch(replace(entry, mirrors=()), local, into)
    assert f"{NAMES[2]}.gz" not in kept(cache)


def test_what_a_killed_download_left_is_removed(
    entry: Entry, local: Path, into: Path, files: Path, mirror: Mirror, cache: Path
) -> None:
    (cache / ".partial/x").mkdir(parents=True)
    fetch(replace(entry, mirrors=(mirror.url("good"),)), local, into)
    assert not (cache / ".partial").exists()


def test_a_cache_that_cannot_be_made_is_named(
    entry: Entry, local: Path, into: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(files / NAMES[0]))
    with pytest.raises(DataError, match=f"cannot create the download cache(?s:.*)set {CACHE_VARIABLE}"):
        fetch(entry, local, into)


# The Debian package


def test_an_installed_package_is_used_where_it_lies(
    entry: Entry, local: Path, into: Path, files: Path, mirror: Mirror, cache: Path
) -> None:
    debian = DebianPackage(package="dataset-shapes", directory=files)
    assert fetch(replace(entry, debian=debian, mirrors=(mirror.url("good"),)), local, into).origin.endswith(str(files))
    assert_complete(into, files)
    assert kept(cache) == []
    assert not mirror.requests


def test_a_package_is_fetched_and_unpacked_without_root(
    entry: Entry,
    local: Path,
    into: Path,
    files: Path,
    mirror: Mirror,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With package lists that are missing, so that apt needs some of its own. Where there is no apt, it says so."""
    debian = DebianPackage(package="dataset-shapes", directory=Path("/usr/share/datasets/shapes"))
    entry = replace(entry, debian=debian, mirrors=(mirror.url("missing"),))
    mirror.answers["missing"] = lambda handler, body: send(handler, body, status=404)
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        with pytest.raises(DataError, match="apt-get download dataset-shapes: this machine has no "):
            fetch(entry, local, into)
        return
    publish_package(mirror, files, tmp_path, monkeypatch)
    assert fetch(entry, local, into).origin == "apt-get download dataset-shapes"
    assert_complete(into, files)
    assert kept(cache) == sorted(f"{name}.gz" for name in NAMES)
    assert fetch(entry, local, into).origin.startswith("download cache")


def publish_package(mirror: Mirror, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build a package of the files, and make the server the only repository that apt knows."""
    control = "Package: dataset-shapes\nVersion: 1\nArchitecture: all\nMaintainer: tests <tests@example.invalid>\n"
    control += "Description: shapes\n"
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(control)
    (tree / "usr/share/datasets/shapes").mkdir(parents=True)
    for name in NAMES:
        (tree / f"usr/share/datasets/shapes/{name}.gz").write_bytes(mirror.files[f"{name}.gz"])
    archive = tmp_path / "dataset-shapes_1_all.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, archive], check=True, capture_output=True)
    content = archive.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    packages = f"{control}Filename: ./{archive.name}\nSize: {len(content)}\nSHA256: {digest}\n\n".encode()
    release = f"Date: {time.strftime('%a, %d %b %Y %H:%M:%S UTC', time.gmtime())}\n"
    release += f"SHA256:\n {hashlib.sha256(packages).hexdigest()} {len(packages)} Packages\n"
    mirror.files |= {archive.name: content, "Packages": packages, "Release": release.encode()}
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] {mirror.url('repository')} ./\n")
    (tmp_path / "lists/partial").mkdir(parents=True)
    settings = {
        "Dir::Etc::sourcelist": tmp_path / "sources.list",
        "Dir::Etc::sourceparts": tmp_path / "none",
        "Dir::State::lists": tmp_path / "lists",
        "Acquire::http::Proxy::127.0.0.1": "DIRECT",
    }
    (tmp_path / "apt.conf").write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))


def test_when_nothing_works_each_source_is_listed(
    entry: Entry, local: Path, into: Path, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    mirror.files.clear()
    debian = DebianPackage(package="dataset-shapes", directory=tmp_path / "none")
    with pytest.raises(DataError) as caught:
        fetch(replace(entry, debian=debian, mirrors=(mirror.url("one"), mirror.url("two"))), local, into)
    lines = caught.value.found.splitlines()
    assert [line.split(": ")[0].strip() for line in lines] == [
        f"download cache {tmp_path}/cache/shapes",
        f"Debian package's directory {tmp_path}/none",
        mirror.url("one"),
        mirror.url("two"),
        "apt-get download dataset-shapes",
    ]
    assert str(local) in caught.value.remedy


# A local directory


@pytest.mark.parametrize("compressed", [(), NAMES[:1], NAMES])
def test_local_files_come_first_plain_or_gzip(
    entry: Entry, local: Path, into: Path, files: Path, mirror: Mirror, cache: Path, compressed: tuple[str, ...]
) -> None:
    for name in NAMES:
        if name in compressed:
            (local / f"{name}.gz").write_bytes(mirror.files[f"{name}.gz"])
        else:
            shutil.copy(files / name, local)
    fetched = fetch(replace(entry, mirrors=(mirror.url("good"),)), local, into)
    assert fetched.dataset == entry.dataset
    assert fetched.origin == f"local directory {local}"
    assert_complete(into, files)
    assert not mirror.requests
    assert not cache.exists()


def test_other_local_content_is_a_dataset_of_its_own(entry: Entry, local: Path, into: Path, files: Path) -> None:
    shutil.copytree(files, local, dirs_exist_ok=True)
    idx.write(local / NAMES[1], np.zeros(60, np.uint8))
    first = fetch(entry, local, into).dataset
    assert first.name.startswith("shapes-local-")
    assert replace(first, name="shapes") == entry.dataset
    assert_complete(into, local_files(local, files))
    assert fetch(entry, local, into).dataset == first
    idx.write(local / NAMES[1], np.ones(60, np.uint8))
    assert fetch(entry, local, into).dataset.name not in (first.name, "shapes")


def local_files(local: Path, files: Path) -> Path:
    """The local files without the dot-file."""
    copy = files.parent / "copy"
    shutil.copytree(local, copy, ignore=shutil.ignore_patterns(".*"))
    return copy


def test_a_local_directory_may_hold_another_number_of_images(
    entry: Entry, local: Path, into: Path, files: Path
) -> None:
    shutil.copytree(files, local, dirs_exist_ok=True)
    idx.write(local / NAMES[2], np.zeros((7, 4, 5), np.uint8))
    idx.write(local / NAMES[3], np.zeros(7, np.uint8))
    assert fetch(entry, local, into).dataset.name.startswith("shapes-local-")


def test_missing_local_files_are_named(entry: Entry, local: Path, into: Path, files: Path) -> None:
    shutil.copy(files / NAMES[0], local)
    shutil.copy(files / NAMES[3], local)
    with pytest.raises(DataError, match=f"found:    no {NAMES[1]}, {NAMES[2]}\n"):
        fetch(entry, local, into)
    with pytest.raises(DataError, match="dataset.path is .*none, which is not a directory"):
        fetch(entry, local / "none", into)


def replace_labels(labels: Path) -> None:
    idx.write(labels, np.full(60, 3, np.uint8))


def drop_one_label(labels: Path) -> None:
    idx.write(labels, np.zeros(59, np.uint8))


def truncate_gzip(labels: Path) -> None:
    labels.with_name(f"{labels.name}.gz").write_bytes(gzip.compress(labels.read_bytes())[:-9])
    labels.unlink()


def truncate(labels: Path) -> None:
    labels.write_bytes(labels.read_bytes()[:-1])


def change_magic(labels: Path) -> None:
    labels.write_bytes(b"\0\0\x09\x01" + labels.read_bytes()[4:])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (replace_labels, "labels out of range"),
        (drop_one_label, "60 images, 59 labels"),
        (truncate_gzip, "damaged gzip file"),
        (truncate, "differs from its header"),
        (change_magic, "not an idx file"),
    ],
)
def test_malformed_local_files_are_refused_by_name(
    entry: Entry, local: Path, into: Path, files: Path, damage: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(files, local, dirs_exist_ok=True)
    damage(local / NAMES[1])
    with pytest.raises(DataError, match=message) as caught:
        fetch(entry, local, into)
    assert str(local / NAMES[1]) in caught.value.problem


def test_the_variable_of_release_0_1_0_still_moves_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(FORMER_CACHE_VARIABLE, str(tmp_path / "former"))
    assert cache_directory() == tmp_path / "cache"
    assert capsys.readouterr().out == ""
    monkeypatch.delenv(CACHE_VARIABLE)
    assert cache_directory() == tmp_path / "former"
    assert f"rename the variable {FORMER_CACHE_VARIABLE} to {CACHE_VARIABLE}" in capsys.readouterr().out
    monkeypatch.delenv(FORMER_CACHE_VARIABLE)
    assert cache_directory().name == project_name()
