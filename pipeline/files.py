"""Files: atomic writes, JSON, YAML and digests."""

import errno
import fcntl
import glob
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

SHARED, PRIVATE = 0o666, 0o600  # permissions of a new file, before the umask: for all, for its owner only
MOST_NESTED = 3_000  # lists and mappings in brackets in a YAML file
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@contextmanager
def atomic_file(path: Path, *, mode: int = SHARED) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write to. It is renamed to `path` only if the block succeeds.

    The file is complete after a kill or a power failure. Each writer locks its own sibling, and removes those of killed
    writers. If several write at once, the last one to finish wins.

    Args:
        mode: permissions of the file, before the umask.

    Raises:
        OSError: for a disk error without a file name, `path` is added.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, glob.escape(path.name))
    partial, file = _open_locked(path, mode)
    with file:
        try:
            yield partial
            os.fsync(file.fileno())  # otherwise the new name may reach the disk before the content
            os.replace(partial, path)
        except OSError as error:
            if error.filename is None and error.errno in DISK_ERRORS:
                error.filename = str(path)
            raise
        finally:
            partial.unlink(missing_ok=True)


def remove_abandoned(directory: Path, pattern: str) -> None:
    """Remove temporary files of killed writers of `atomic_file` from a directory.

    Args:
        pattern: glob of the names of the files to be written.
    """
    for former in directory.glob(f".{pattern}.{8 * '[0-9a-f]'}.partial"):
        with suppress(OSError), former.open("rb") as file:  # locked by its writer, or renamed by now
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            former.unlink()


def _open_locked(path: Path, mode: int) -> tuple[Path, IO[bytes]]:
    """Create and lock a new sibling of `path`. If another writer removes it before the lock is taken, retry."""
    while True:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        file = open(partial, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115
        fcntl.flock(file, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), partial.stat()):
                return partial, file
        file.close()


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty temporary sibling of `path`. It replaces the directory `path` only if the block succeeds."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            shutil.rmtree(path)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def make_private(*paths: Path) -> None:
    """Remove all permissions on files and directories except their owner's.

    Skips files that are missing or belong to another user.
    """
    for path in paths:
        with suppress(FileNotFoundError, PermissionError):
            if (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
                path.chmod(mode & 0o700)


def write_json(path: Path, content: Any, *, mode: int = SHARED) -> None:
    """Write JSON with equal bytes for equal values: sorted keys, two spaces, one newline, no NaN."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with atomic_file(path, mode=mode) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def parse_yaml(text: str | bytes) -> Any:
    """Parse YAML 1.2 with the same library as DVC.

    DVC writes small numbers as `1e-05`, which YAML 1.1, and therefore PyYAML, reads as text.

    Raises:
        ValueError: it is not YAML. The message has the position.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    content = text.decode(errors="replace") if isinstance(text, bytes) else text
    nested = max([content.count("[") + content.count("{"), *(line.count("- ") for line in content.splitlines())])
    if nested > MOST_NESTED:  # the parser, written in C, would crash the process
        raise ValueError(f"more than {MOST_NESTED:,} levels or lists")
    try:
        return YAML(typ="safe").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}{error.problem or error.context}") from None
    # The last four: an unhashable key of a mapping, and values that do not fit their tags.
    except (YAMLError, RecursionError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(str(error).strip() or type(error).__name__) from None


def compose_yaml(text: str) -> Any:
    """Parse YAML to ruamel's nodes, which have their positions in the text, for an edit that keeps the rest.

    Raises:
        ValueError: it is not YAML.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="rt").compose(text)
    except YAMLError as error:
        raise ValueError(str(error)) from None


def format_yaml(content: Any, *, on_one_line: bool = False) -> str:
    """Format plain values as YAML, mappings in their order. Equal values give equal text."""
    from ruamel.yaml import YAML

    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style, writer.allow_unicode, writer.width = on_one_line, True, 10_000 if on_one_line else 120
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    out = io.StringIO()
    writer.dump(content, out)
    return out.getvalue()


def replace_yaml_values(text: str, values: Mapping[str, Any]) -> str:
    """Replace values in YAML, and nothing else: comments, order and layout stay.

    Args:
        values: by key; a dot separates the key of a mapping from those in it. Every key must be there.

    Raises:
        ValueError: it is not YAML.
        KeyError: a key is missing.
    """
    root = compose_yaml(text)
    edits = []
    for key, value in values.items():
        node = root
        for part in key.split("."):
            pairs = node.value if hasattr(node, "value") and isinstance(node.value, list) else []
            node = next((found for name, found in pairs if name.value == part), None)
            if node is None:
                raise KeyError(key)
        is_text = isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w./-]*", value) and parse_yaml(value) == value
        is_plain = is_text and value.lower() not in ("y", "n", "yes", "no", "on", "off")  # YAML 1.1 takes them as bool
        written = value if is_plain else json.dumps(value, ensure_ascii=False)  # JSON is YAML
        edits.append((node.start_mark.index, node.end_mark.index, written))
    for start, end, written in sorted(edits, reverse=True):
        rest = text[end:]
        if comment := re.match(" +(?=#)", rest):  # it stays in its column
            gap = " " * max(1, end - start + len(comment[0]) - len(written))
            rest = gap + rest.removeprefix(comment[0])
        text = text[:start] + written + rest
    return text


def read_cached_json(path: Path) -> Any:
    """Read a cached JSON file. Returns None if it is missing or corrupt."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the hex digest of a file's content. DVC uses `md5`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
