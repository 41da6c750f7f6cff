"""`data/incoming/`: labelled batches that a team adds to the training images over time.

A batch is a directory or a file in one of the formats of `batch_formats`. It consists of regular files: links are
refused, and hidden files are ignored. DVC stores its content; git stores the pointer `NAME.dvc` beside it.
"""

import errno
import filecmp
import os
import shlex
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pipeline.errors import DataError
from pipeline.rooms import find_remedy

INCOMING = Path("data/incoming")
POINTER = ".dvc"
REGULAR = "regular files only; links are not followed (DVC makes them if its cache.type is symlink)"


def find_batches(directory: Path) -> list[Path]:
    """Return the batches of a directory, sorted by name. `ingest` appends them to the training images in this order.

    Raises:
        DataError: a batch has no pointer, so clones would not have it, or a pointer has no batch.
    """
    batches, pointers = _list_names(directory)
    for name in sorted(batches - pointers):
        raise DataError(
            f"batch {name} has no pointer: other checkouts would not have it",
            expected=str(directory / f"{name}{POINTER}"),
            remedy=f"{find_remedy('add a batch', 'dvc add')} {shlex.quote(str(directory / name))}",
        )
    for name in sorted(pointers - batches):
        raise DataError(
            f"batch {name} is missing: only its pointer exists",
            expected=str(directory / name),
            remedy=f"dvc checkout {shlex.quote(str(directory / name))}{POINTER}, or dvc pull if another machine has it",
        )
    return [directory / name for name in sorted(batches)]


def read_files(path: Path) -> dict[str, tuple[int, int]]:
    """Return size in bytes and modification time in ns of each file of a batch, by path. Ignores hidden files.

    Raises:
        DataError: the batch contains, hidden or not, something other than files and folders, such as a link.
        OSError: a file or folder cannot be accessed.
    """
    files = {}
    for file, status in _walk(path):
        if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
            kind = "a link" if stat.S_ISLNK(status.st_mode) else "a device, a pipe or a socket"
            raise DataError(f"{file} is {kind}", expected=REGULAR)
        if stat.S_ISREG(status.st_mode) and not _is_hidden(file.relative_to(path)):
            files[str(file)] = (status.st_size, status.st_mtime_ns)
    return files


def refuse_links(path: Path) -> None:
    """Refuse a batch that does not consist of regular files only.

    Raises:
        DataError: names the batch and the link, pipe or device.
        OSError: a file or folder cannot be accessed.
    """
    try:
        read_files(path)
    except DataError as error:
        raise as_batch_error(path, error) from None


def read_linked_files(path: Path) -> dict[str, tuple[int, int]]:
    """Like `read_files`, but includes hidden files and follows links: for a path that is not a batch.

    Raises:
        OSError: a file or folder cannot be accessed, or a link is broken.
    """
    statuses = {str(file): file.stat() for file, _ in _walk(path)}
    return {
        file: (status.st_size, status.st_mtime_ns) for file, status in statuses.items() if stat.S_ISREG(status.st_mode)
    }


def find_hidden(path: Path) -> tuple[str, ...]:
    """Return the hidden files and folders of a batch, relative to it. They are ignored when the batch is read."""
    below = (file.relative_to(path) for file, _ in _walk(path))
    return tuple(sorted(str(file) for file in below if _is_hidden(file) and not _is_hidden(file.parent)))


def copy_batch(source: Path, target: Path) -> None:
    """Copy the files of a batch. A file that was replaced by a link or a pipe in the meantime is refused.

    Raises:
        DataError: the batch does not consist of regular files.
        OSError: a file cannot be read or written.
    """
    if stat.S_ISDIR(source.lstat().st_mode):
        target.mkdir(parents=True)
    for name in read_files(source):
        copy = target / Path(name).relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with open(name, "rb", opener=_open_regular) as content, copy.open("wb") as out:
            shutil.copyfileobj(content, out)


def _open_regular(name: str, flags: int) -> int:
    try:
        descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DataError(f"{name} is a link", expected=REGULAR) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(f"{name} is not a file", expected=REGULAR)
    return descriptor


def _walk(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield a path and everything below it. Does not follow links, and skips files that were just deleted."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    with suppress(FileNotFoundError):
        yield path, path.lstat()
    for directory, folders, names in os.walk(path, onerror=refuse):
        for name in (*folders, *names):
            with suppress(FileNotFoundError):
                file = Path(directory, name)
                status = file.lstat()
                yield file, status


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def read_state(directory: Path) -> dict[str, tuple[int, int]]:
    """Return size and modification time of the files of all batches and pointers, by path.

    Skips batches that contain a link: `read_batch` refuses them.
    """
    files: dict[str, tuple[int, int]] = {}
    for path in directory.glob("*"):
        if not path.name.startswith("."):
            with suppress(DataError):
                files |= read_files(path)
    return files


def require_unchanged(directory: Path, before: dict[str, tuple[int, int]]) -> None:
    """Refuse batches that changed while they were read.

    Args:
        before: the result of `read_state` before reading.

    Raises:
        DataError: a file was added, deleted or changed since.
    """
    now = read_state(directory)
    if changed := sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path)):
        raise DataError(
            f"{directory} changed while it was read",
            expected="no change until the stage has ended",
            found=f"added, deleted or changed: {changed[0]}{f', and {len(changed) - 1} more' if changed[1:] else ''}",
            remedy="run the same command again",
        )


def require_same_batches(here: Path, main: Path) -> None:
    """Refuse a temporary copy or a worktree that lacks a batch, or an edit of one, of the main repository.

    Such a copy contains only what git and DVC store. Without this check, a batch that was never added to DVC would be
    left out silently.

    Args:
        here: `data/incoming` of the workspace.
        main: `data/incoming` of its main repository.

    Raises:
        DataError: names the batch that differs, and the commands that add it.
    """
    if here.resolve() == main.resolve():
        return
    batches, pointers = _list_names(main)
    for name in sorted(batches | pointers):
        pointer = main / f"{name}{POINTER}"
        batch_word, pointer_word = shlex.quote(str(main / name)), shlex.quote(str(pointer))  # for a shell
        same_pointer = _same_content(here / pointer.name, pointer)
        if (here / name).exists() and (main / name).exists():
            if _same_content(here / name, main / name):
                continue
            found = f"{main / name} differs from {here / name}"
            remedy = f"dvc add {batch_word}, and commit {pointer_word}" if same_pointer else f"commit {pointer_word}"
        elif same_pointer:
            continue
        elif pointer.exists():
            found, remedy = (
                f"{pointer} differs from the one in {here}, or is missing there",
                f"git add {pointer_word}, and commit",
            )
        else:
            add = find_remedy("add a batch", "dvc add")
            found, remedy = f"there is no {pointer}", f"{add} {batch_word}, and commit {pointer_word}"
        raise DataError(
            f"this workspace does not have batch {name} as the main repository has it",
            expected=f"the same in {here} and {main}",
            found=found,
            remedy=remedy,
        )


def require_same_local_data(here: Path, main: Path) -> None:
    """Refuse a temporary copy or a worktree that lacks the files of `dataset.path`, which are not in git.

    Without them, `ingest` would use the catalogue's dataset instead of the user's own. Files that DVC tracks are not
    compared: the catalogue entry in git has their digests.

    Raises:
        DataError: the main repository has other files there.
    """
    if here.with_name(f"{here.name}{POINTER}").exists():
        return
    if here.resolve() != main.resolve() and main.is_dir() and not _same_content(here, main):
        raise DataError(
            f"this workspace does not have the files of dataset.path as {main} has them",
            expected="the same files in both; a temporary workspace contains only what is in git",
            found=f"others, or none, in {here}",
            remedy=f"set dataset.path to {main.resolve()} while you experiment",
        )


def as_batch_error(path: Path, error: DataError) -> DataError:
    """Convert an error about a file of a batch to an error that names the batch."""
    in_place = path.parent.resolve() == INCOMING.resolve()
    word = shlex.quote(str(path))
    removal = f", or remove it: dvc remove {word}{POINTER}; rm -r {word}" if in_place else ""
    return DataError(
        f"batch {path.name} is refused: {error.problem}",
        expected=error.expected,
        found=error.found,
        remedy=f"correct {path}{removal}",
    )


def _list_names(directory: Path) -> tuple[set[str], set[str]]:
    """Return the names of the batches in a directory, and the names in its pointers."""
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    visible = {name for name in names if not name.startswith(".")}
    pointers = {name for name in visible if name.endswith(POINTER)}
    return visible - pointers, {name.removesuffix(POINTER) for name in pointers}


def _same_content(one: Path, other: Path) -> bool:
    if not one.is_dir() or not other.is_dir():
        return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)
    files = _files(one)
    return files == _files(other) and all(filecmp.cmp(one / name, other / name, shallow=False) for name in files)


def _files(directory: Path) -> list[Path]:
    """Return the files below a directory, relative to it and sorted, without hidden ones."""
    found = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return sorted(path for path in found if not _is_hidden(path))
