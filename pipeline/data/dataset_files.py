"""Fetch the four idx files of a dataset. The sources are tried in order, and every file's SHA-256 is checked.

The order is: a local directory, the download cache, the directory of an installed Debian package, the mirrors, and the
Debian package, downloaded with apt.
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
from pipeline.data.catalog import LOCAL, OWN_FILES, DatasetFile, DebianPackage, Entry
from pipeline.data.downloads import download, download_package
from pipeline.data.table import Dataset
from pipeline.errors import DataError
from pipeline.files import file_digest
from pipeline.workspace import project_name

CACHE_VARIABLE = "PIPELINE_CACHE"
FORMER_CACHE_VARIABLE = "FASHION_MNIST_CACHE"  # of release 0.1.0; it works for one more release
CHECKSUMS = "SHA256SUMS"  # in the format of `sha256sum --check`


@dataclass(frozen=True)
class Fetched:
    """The fetched files of a dataset, and the facts about it."""

    dataset: Dataset  # with its own name if a local directory has other content than the catalogue's
    origin: str  # the source, in words
    train: tuple[Path, Path]  # images and labels
    test: tuple[Path, Path]


def fetch(entry: Entry, local: Path, into: Path) -> Fetched:
    """Write the four files of a dataset, decompressed and checked, and their digests in `SHA256SUMS`.

    Args:
        entry: of the catalogue.
        local: a directory (`dataset.path`). If it has files, gzip or plain, they are used.
        into: the empty directory to write to.

    Raises:
        DataError: some files in `local` are missing or malformed, or no source has all files. Lists the reason for
            each source.
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
    write_checksums(into, digests)
    train_images, train_labels, test_images, test_labels = (into / name for name in digests)
    return Fetched(dataset, origin, (train_images, train_labels), (test_images, test_labels))


def write_checksums(directory: Path, digests: Mapping[str, str]) -> None:
    """Write `SHA256SUMS`. digests: SHA-256 by file name."""
    (directory / CHECKSUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))


def cache_directory() -> Path:
    """Return the directory of downloads for all checkouts: `PIPELINE_CACHE`, or one in the user's cache."""
    if directory := os.environ.get(CACHE_VARIABLE):
        return Path(directory)
    if directory := os.environ.get(FORMER_CACHE_VARIABLE):
        print(f"warning: rename the variable {FORMER_CACHE_VARIABLE} to {CACHE_VARIABLE}; the next release ignores it")
        return Path(directory)
    return Path(platformdirs.user_cache_dir(project_name()))


def _find_local(directory: Path, names: Sequence[str]) -> dict[str, Path]:
    """Return the files of a local directory by name: all of them, or none if it has only hidden files."""
    if not directory.is_dir():
        name = shlex.quote(str(directory))
        remedy = f"rm {name} && mkdir {name}, or another dataset.path" if directory.exists() else f"mkdir -p {name}"
        raise DataError(f"dataset.path is {directory}, which is not a directory", remedy=remedy)
    if all(path.name.startswith(".") for path in directory.iterdir()):
        return {}
    found = {name: file for name in names if (file := _find(directory, name))}
    if len(found) < len(names) and all((directory / name).exists() for name in OWN_FILES):
        raise DataError(
            f"dataset.path is {directory}, which holds imported data, and dataset.name is that of another dataset",
            expected="both of the same dataset",
            remedy=f"set dataset.name to {directory.name}, or dataset.path to data/local",
        )
    if len(found) < len(names):
        raise DataError(
            f"{directory} has only some of the dataset's files",
            expected=f"{', '.join(names)}, each with or without .gz",
            found=f"no {', '.join(name for name in names if name not in found)}",
            remedy="add the missing files, or empty the directory to use the catalogue's sources",
        )
    return found


def _find(directory: Path, name: str) -> Path | None:
    candidates = (directory / name, directory / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def _local_dataset(entry: Entry, files: Mapping[str, Path], digests: Mapping[str, str]) -> Dataset:
    """Check files that are not the catalogue's, and return their dataset, which is named after their digests."""
    train_images, train_labels, test_images, test_labels = files.values()
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        for _ in idx.stream_pair(images, labels, entry.dataset):
            pass
    combined = hashlib.sha256("".join(digests.values()).encode()).hexdigest()
    return replace(entry.dataset, name=f"{entry.name}{LOCAL}{combined[:8]}")


def _use_first(entry: Entry, local: Path, into: Path) -> str:
    """Unpack the files from the first source that has all of them, and cache downloads. Returns the source's name."""
    cache = cache_directory() / entry.name
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot create the download cache {cache}",
            found=error.strerror or str(error),
            remedy=f"set {CACHE_VARIABLE} to a directory that you can write to",
        ) from None
    failures = []
    # A second checkout that needs the same download waits here, and then finds the files in the cache.
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
        remedy=f"make one of these sources available, or put the files, gzip or plain, into {local}",
        temporary=bool(entry.mirrors or entry.debian),  # a retry may reach them
    )


def _sources(entry: Entry, cache: Path, work: Path) -> Iterator[tuple[str, Callable[[], Path]]]:
    """Yield the name of each source, and a function that fetches its files and returns their directory."""
    yield f"download cache {cache}", lambda: cache
    if entry.debian:
        installed = entry.debian.directory
        yield f"Debian package's directory {installed}", lambda: installed
    for mirror in entry.mirrors:
        yield mirror, partial(_fetch_mirror, mirror, entry.files, work)
    if entry.debian:
        yield f"apt-get download {entry.debian.package}", partial(_fetch_package, entry.debian, work)


def _fetch_mirror(mirror: str, files: Sequence[DatasetFile], work: Path) -> Path:
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
    """Create an empty directory for downloads in the cache's file system. Removes that of a killed process."""
    work = cache / ".partial"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _unpack_checked(directory: Path, file: DatasetFile, into: Path, cache: Path) -> Path:
    """Unpack a file of a source and return its path. A wrong file is deleted from the cache."""
    source = _find(directory, file.name)
    if not source:
        raise DataError(f"{file.name} is missing")
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
    """Copy a file, decompressing gzip, and return the SHA-256 of the copy."""
    digest = hashlib.sha256()
    with idx.open_binary(source) as content, target.open("wb") as out:
        while chunk := idx.read(content, 2**20, source):
            digest.update(chunk)
            out.write(chunk)
    return digest.hexdigest()
