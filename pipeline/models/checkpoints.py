"""Checkpoints: a killed training resumes after its last finished epoch, and ends with the same bytes."""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.files import atomic_file, file_digest


def derive_key(determinants: Mapping[str, Any], files: Iterable[Path]) -> str:
    """Return a digest of everything that determines the result of a training: the key of its checkpoint.

    Args:
        determinants: parameters, and the properties of the machine that change bits.
        files: data and code. Their content counts, not their paths.
    """
    content = {"determinants": determinants, "digests": [file_digest(path) for path in files]}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Snapshot:
    """The state of a training after an epoch."""

    variables: list[np.ndarray]  # of the network and its optimizer
    best: list[np.ndarray]  # variables of the network after the best epoch so far
    history: list[dict[str, Any]]  # one record for each epoch


@dataclass(frozen=True)
class Checkpoint:
    """The file with the newest snapshot of a training. Its name is from `derive_key`.

    Args:
        read_only: do not write; of several workers, only the chief writes.
    """

    path: Path
    read_only: bool = False

    def save(self, snapshot: Snapshot) -> None:
        """Replace the file atomically. If the process is killed, the previous snapshot remains."""
        if self.read_only:
            return
        arrays: dict[str, Any] = {"history": np.array(json.dumps(snapshot.history))}
        arrays |= {f"variable_{i}": array for i, array in enumerate(snapshot.variables)}
        arrays |= {f"best_{i}": array for i, array in enumerate(snapshot.best)}
        content = io.BytesIO()
        np.savez(content, **arrays)
        with atomic_file(self.path) as partial:
            partial.write_bytes(content.getbuffer())

    def load(self) -> Snapshot | None:
        """Read the newest snapshot. Returns None if there is none, or if a power failure damaged it.

        Raises:
            OSError: the file exists and cannot be read.
        """
        try:
            with np.load(self.path) as content:
                history = json.loads(str(content["history"]))
                return Snapshot(_numbered(content, "variable"), _numbered(content, "best"), history)
        except (FileNotFoundError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def remove(self) -> None:
        """Delete the file after the training has finished and its outputs are written."""
        self.path.unlink(missing_ok=True)


def _numbered(content: Any, name: str) -> list[np.ndarray]:
    count = sum(key.startswith(f"{name}_") for key in content.files)
    return [content[f"{name}_{i}"] for i in range(count)]
