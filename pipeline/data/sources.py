"""Where a dataset's four idx files come from. The sources are tried in turn; none is believed without its SHA-256.

The order: a local directory, the download cache, the directory of a Debian package if that is installed, the mirrors,
and the Debian package itself, fetched with apt.
"""

import hashlib
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import filelock
import platformdirs

from pipeline.data import idx, tiny
from pipeline.data.catalog import DebianPackage, Entry, IdxFile
from pipeline.data.downloads import download, download_package
from pipeline.data.table import Dataset
from pipeline.errors import DataError
from pipeline.files import file_digest

CACHE_VARIABLE = "FASHION_MNIST_CACHE"
LOCAL = "-local-"  # in the name of what a local directory holds, after that of the catalogue's dataset
CHECKSUMS = "SHA256SUMS"  # in the format of `sha256sum --check`


@dataclass(frozen=True)
class Fetched:
    """The files of a dataset, and what they turned out to be."""

    dataset: Dataset  # under a name of its own when a local directory holds other content than the catalogue's
    origin: str  # the source, in words
    train: tuple[Path, Path]  # images and labels
    test: tuple[Path, Path]


def fetch(entry: Entry, local: Path, into: Path) -> Fetched:
    """Put the four files of a dataset, decompressed and checked, into a directory, and their digests in `SHA256SUMS`.

    Args:
        entry: the catalogue's.
        local: a directory (`dataset.path`) whose files, gzip or plain, are used when it has any.
        into: an empty directory.

    Raises:
        DataError: `local` lacks some of the files or holds malformed ones; or no source has them all, in which case
            it says of each why not.
    """
    dataset = entry.dataset
    expected = {file.name: file.sha256 for file in entry.files}
    if found := _find_local(local, list(expected) or tiny.FILES):
        origin, digests = f"local directory {local}", {name: _unpack(file, into / name) for name, file in found.items()}
        if digests != expected:
            dataset = _local_dataset(entry, found, digests)
    elif entry.generated:
        tiny.write(into, entry.train, entry.test)
        origin, digests = "generated", {name: file_digest(into / name) for name in tiny.FILES}
    else:
        origin, digests = _use_first(entry, local, into), expected
    (into / CHECKSUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))
    train_images, train_labels, test_images, test_labels = (into / name for name in digests)
    return Fetched(dataset, origin, (train_images, train_labels), (test_images, test_labels))


def cache_directory() -> Path:
    """Where downloads are kept for all checkouts: the user's cache, or what `FASHION_MNIST_CACHE` names."""
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("fashion-mnist-pipeline"))


def _find_local(directory: Path, names: Sequence[str]) -> dict[str, Path]:
    """The files of a local directory by name: all of them or, where it holds nothing but dot-files, none."""
    if not directory.is_dir():
        name = shlex.quote(str(directory))
        remedy = f"rm {name} && mkdir {name}, or another dataset.path" if directory.exists() else f"mkdir -p {name}"
        raise DataError(f"dataset.path is {directory}, which is no directory", remedy=remedy)
    if all(path.name.startswith(".") for path in directory.iterdir()):
        return {}
    found = {name: file for name in names if (file := _find(directory, name))}
    if len(found) < len(names):
        raise DataError(
            f"{directory} holds files, but not all of the dataset's",
            expected=f"{', '.join(names)}, each as it is or with .gz",
            found=f"no {', '.join(name for name in names if name not in found)}",
            remedy="add what is missing, or empty the directory to use the catalogue's sources",
        )
    return found


def _find(directory: Path, name: str) -> Path | None:
    candidates = (directory / name, directory / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def _local_dataset(entry: Entry, files: Mapping[str, Path], digests: Mapping[str, str]) -> Dataset:
    """A dataset for content that the catalogue does not know, sound as it is, named after its digests."""
    train_images, train_labels, test_images, test_labels = files.values()
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        for _ in idx.stream_pair(images, labels, entry.dataset):
            pass
    combined = hashlib.sha256("".join(digests.values()).encode()).hexdigest()
    return replace(entry.dataset, name=f"{entry.name}{LOCAL}{combined[:8]}")


def _use_first(entry: Entry, local: Path, into: Path) -> str:
    """Unpack the files from the first source that has them all, keep what was downloaded, and name the source."""
    cache = cache_directory() / entry.name
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"the download cache {cache} cannot be made",
            found=error.strerror or str(error),
            remedy=f"set {CACHE_VARIABLE} to a directory that you can write to",
        ) from None
    failures = []
    # A second checkout that needs the same download waits here for the first one's, and then finds it in the cache.
    with filelock.FileLock(cache / ".lock"), _work_directory(cache) as work:
        for name, obtain in _sources(entry, cache, work):
            try:
                directory = obtain()
                files = [_unpack_checked(directory, file, into, cache) for file in entry.files]
            except DataError as error:
                failures.append(": ".join(filter(None, [name, error.problem, error.found])))
                continue
            if directory.is_relative_to(work):
                for file in files:
                    os.replace(file, cache / file.name)
            return name
    raise DataError(
        f"no source has {entry.name}",
        expected=", ".join(file.name for file in entry.files),
        found="\n             ".join(failures),
        remedy=f"bring one of these within reach, or put the files, gzip or plain, into {local}",
        temporary=bool(entry.mirrors or entry.debian),  # another try asks them again; the cache stays as it is
    )


def _sources(entry: Entry, cache: Path, work: Path) -> Iterator[tuple[str, Callable[[], Path]]]:
    """Each source's name, and what leads to the directory that has the files, fetching them where that is needed."""
    yield f"download cache {cache}", lambda: cache
    if entry.debian:
        installed = entry.debian.directory
        yield f"Debian package's directory {installed}", lambda: installed
    for mirror in entry.mirrors:
        yield mirror, partial(_fetch_mirror, mirror, entry.files, work)
    if entry.debian:
        yield f"apt-get download {entry.debian.package}", partial(_fetch_package, entry.debian, work)


def _fetch_mirror(mirror: str, files: Sequence[IdxFile], work: Path) -> Path:
    print(f"trying {mirror}", flush=True)
    directory = Path(tempfile.mkdtemp(dir=work))
    for file in files:
        download(f"{mirror.rstrip('/')}/{file.name}.gz", directory / f"{file.name}.gz")
    return directory


def _fetch_package(debian: DebianPackage, work: Path) -> Path:
    print(f"trying the Debian package {debian.package}", flush=True)
    root = download_package(debian.package, Path(tempfile.mkdtemp(dir=work)))
    return root / debian.directory.relative_to("/")


@contextmanager
def _work_directory(cache: Path) -> Iterator[Path]:
    """An empty directory for downloads on the cache's own file system; one that a killed process left is removed."""
    work = cache / ".partial"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _unpack_checked(directory: Path, file: IdxFile, into: Path, cache: Path) -> Path:
    """Unpack one file of a source and return where it was; one in the cache that turns out bad is dropped from it."""
    source = _find(directory, file.name)
    if not source:
        raise DataError(f"{file.name} is not there")
    try:
        digest = _unpack(source, into / file.name)
        if digest != file.sha256:
            raise DataError(f"{source.name} has other content", found=f"SHA-256 {digest} instead of {file.sha256}")
    except DataError:
        if source.is_relative_to(cache):
            source.unlink()
        raise
    return source


def _unpack(source: Path, target: Path) -> str:
    """Copy a file, decompressed where it is gzip, and return the SHA-256 of what was written."""
    digest = hashlib.sha256()
    with idx.open_binary(source) as content, target.open("wb") as out:
        while chunk := idx.read(content, 2**20, source):
            digest.update(chunk)
            out.write(chunk)
    return digest.hexdigest()
