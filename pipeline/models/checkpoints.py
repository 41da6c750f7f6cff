"""What a killed training needs to go on from its last finished epoch and end with the same bytes."""

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
    """A name for all that determines the result of a training, so that no other training goes on from its checkpoint.

    Args:
        determinants: parameters, and what of the machine the bits depend on.
        files: data and code, whose content counts, wherever they are.
    """
    content = {"determinants": determinants, "digests": [file_digest(path) for path in files]}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Snapshot:
    """A training after some epochs."""

    variables: list[np.ndarray]  # of the network and its optimizer
    best: list[np.ndarray]  # the network's, after the best epoch so far
    history: list[dict[str, Any]]  # one record an epoch


@dataclass(frozen=True)
class Checkpoint:
    """A file that holds the newest snapshot of one training; `derive_key` makes its name.

    Args:
        read_only: leave writing to another process, which trains the same: the chief of several workers.
    """

    path: Path
    read_only: bool = False

    def save(self, snapshot: Snapshot) -> None:
        """Replace the file in one step: a process killed meanwhile leaves the former snapshot."""
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
        """The newest snapshot; None where there is none, or one that a power cut has damaged.

        Raises:
            OSError: it is there and cannot be read.
        """
        try:
            with np.load(self.path) as content:
                history = json.loads(str(content["history"]))
                return Snapshot(_numbered(content, "variable"), _numbered(content, "best"), history)
        except (FileNotFoundError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def remove(self) -> None:
        """Forget the training: it is finished, and its outputs are written."""
        self.path.unlink(missing_ok=True)


def _numbered(content: Any, name: str) -> list[np.ndarray]:
    count = sum(key.startswith(f"{name}_") for key in content.files)
    return [content[f"{name}_{i}"] for i in range(count)]
