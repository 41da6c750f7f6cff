"""Files of JSON lines to which several processes append."""

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.files import SHARED


def append_json(path: Path, records: Iterable[Any], *, mode: int = SHARED) -> None:
    """Append a line for each record, and return when they are on the disk. Creates a file that is missing.

    Args:
        mode: permissions of a new file, before the umask.
    """
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    with open(path, "a+b", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
            lines = "\n" + lines  # a killed writer left a part of a line, which stays a line of its own
        file.write(lines.encode(errors="backslashreplace"))  # a path may not be UTF-8
        file.flush()
        os.fsync(file.fileno())
