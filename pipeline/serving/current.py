"""The file by which the resolver names the version to serve to the processes that answer."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.files import write_json

MODELS = "models"  # folder beside it: a folder for each SHA-256 of a model.tflite


@dataclass(frozen=True)
class Current:
    """The version to serve, and when the registry said so."""

    name: str  # of the registered model
    version: str | None  # None: the alias or the version does not exist
    sha256: str | None  # of model.tflite
    checked_at: float | None  # seconds since 1970; None: the registry has not answered yet
    problem: str | None = None  # the reason that this may be stale, or that nothing can be served


def write_current(path: Path, current: Current) -> None:
    """Replace the file."""
    write_json(path, asdict(current))


def read_current(path: Path) -> Current | None:
    """Read the file. Returns None if it is missing or of another version of this program."""
    try:
        return Current(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
