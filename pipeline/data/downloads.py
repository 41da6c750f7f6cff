"""Downloads with time limits: a file from a mirror, or a Debian package through apt."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import DataError

STALL_SECONDS = 10.0  # the download fails if no chunk arrives for this long
CHUNK_BYTES = 2**16
PROGRESS_SECONDS = 2.0
APT_SECONDS = 300.0  # limit of each apt command


def download(url: str, file: Path) -> None:
    """Download a file. A transfer that breaks off is retried once.

    Raises:
        DataError: the host cannot be reached, refuses the request, or sends nothing for `STALL_SECONDS`.
    """
    import requests

    try:
        try:
            _transfer(url, file)
        except requests.RequestException as error:
            if not _is_transient(error):
                raise
            _transfer(url, file)
    except requests.RequestException as error:
        raise DataError(f"{file.name} cannot be fetched", found=_cause(error)) from None


def download_package(package: str, directory: Path) -> Path:
    """Download a Debian package from apt's sources and unpack it into `directory`. Needs no root permissions.

    Returns:
        the unpacked root directory: the package's `/usr/share/...` is below it.

    Raises:
        DataError: apt is not installed, or cannot download the package.
    """
    missing = [tool for tool in ("apt-get", "dpkg-deb") if not shutil.which(tool)]
    if missing:
        raise DataError(f"this machine has no {' and no '.join(missing)}")
    options = {
        "APT::Sandbox::User": "root",  # otherwise apt warns that its download user cannot write here
        "Acquire::Retries": "0",
        "Acquire::http::Timeout": f"{STALL_SECONDS:.0f}",
        "Acquire::https::Timeout": f"{STALL_SECONDS:.0f}",
    }
    try:
        _apt_get("download", package, options=options, directory=directory)
    except DataError as error:
        if "Failed to fetch" in error.found and "404" not in error.found:
            raise  # the package exists, but its host cannot be reached
        # The machine's package lists are missing or stale, and only root may update them.
        print("updating apt's package lists in a temporary directory", flush=True)
        own = directory / "apt"
        (own / "lists/partial").mkdir(parents=True)
        options |= {
            "Dir::State": str(own),
            "Dir::State::lists": str(own / "lists"),
            "Dir::State::status": "/var/lib/dpkg/status",
            "Dir::Cache": str(own),
            "APT::Update::Error-Mode": "any",
        }
        _apt_get("update", options=options, directory=directory)
        _apt_get("download", package, options=options, directory=directory)
    archive = next(directory.glob(f"{package}_*.deb"))
    _run(["dpkg-deb", "--extract", archive.name, "unpacked"], directory)
    return directory / "unpacked"


class _Progress:
    """A progress bar for pooch: prints a line every few seconds, and records when the last chunk arrived."""

    total = 0  # bytes, set by pooch; 0 where the server does not say

    def __init__(self, name: str) -> None:
        self._name, self._done = name, 0
        self.last_chunk_at = self._printed = time.monotonic()

    def update(self, count: int) -> None:
        self._done += count
        self.last_chunk_at = time.monotonic()
        if self.last_chunk_at - self._printed >= PROGRESS_SECONDS:
            self._printed = self.last_chunk_at
            print(f"  {self._name}: {self._done / 1e6:.1f} of {self.total / 1e6:.1f} MB", flush=True)

    def reset(self) -> None:
        self._done = 0

    def close(self) -> None:
        """Do nothing: pooch requires this method."""


def _transfer(url: str, file: Path) -> None:
    """Try a download once, in a thread: socket timeouts do not limit name resolution, or many addresses in a row."""
    import pooch

    progress = _Progress(file.name)
    downloader = pooch.HTTPDownloader(progressbar=progress, chunk_size=CHUNK_BYTES, timeout=STALL_SECONDS)
    failures: list[Exception] = []

    def work() -> None:
        try:
            downloader(url, str(file), None)
        except Exception as error:  # raised again below, in the thread that waits
            failures.append(error)

    thread = threading.Thread(target=work, name="download", daemon=True)
    thread.start()
    while thread.is_alive():
        remaining = progress.last_chunk_at + STALL_SECONDS - time.monotonic()
        if remaining <= 0:
            raise DataError(f"{file.name} cannot be fetched", found=f"no data for {STALL_SECONDS:g} seconds")
        thread.join(remaining)
    if failures:
        raise failures[0]


def _is_transient(error: Exception) -> bool:
    """Return True if a retry may succeed: the host responded, but the transfer failed."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code >= 500
    return isinstance(error, requests.exceptions.ChunkedEncodingError)


def _cause(error: Exception) -> str:
    """Return the innermost reason of an exception that requests and urllib3 have wrapped."""
    inner = getattr(error.args[0], "reason", error) if error.args else error
    return str(inner).rpartition("): ")[2] or repr(error)


def _apt_get(*arguments: str, options: Mapping[str, str], directory: Path) -> None:
    flags = [flag for name, value in options.items() for flag in ("-o", f"{name}={value}")]
    _run(["apt-get", *flags, *arguments], directory)


def _run(command: Sequence[str], directory: Path) -> None:
    """Run an apt command and show its output."""
    sys.stdout.flush()
    try:
        result = subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=APT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DataError(f"{command[0]} did not finish within {APT_SECONDS:.0f} seconds") from None
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.startswith(("E:", "dpkg-deb: error"))]
        raise DataError(f"{command[0]} failed", found=" ".join(lines) or result.stderr.strip())
