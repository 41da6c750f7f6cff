"""The API key: made once for each main repository, in a file that only its owner can read."""

import os
import secrets
from pathlib import Path

from pipeline.files import PRIVATE, atomic_file, make_private
from pipeline.serving.errors import ServeError
from pipeline.workspace import STATE, lock, make_state

KEY_FILE = STATE / "serving.key"
KEY_VARIABLE = "PIPELINE_SERVE_API_KEY"  # replaces the file
WAIT_SECONDS = 10
LEAST_LETTERS = 16


def load_or_create_key(root: Path) -> str:
    """Return the API key of a main repository. The first call creates it.

    Raises:
        ServeError: the key in the environment is too short.
    """
    if given := os.environ.get(KEY_VARIABLE, "").strip():
        if len(given) < LEAST_LETTERS:
            raise ServeError(
                f"{KEY_VARIABLE} is too short for a secret",
                expected=f"{LEAST_LETTERS} characters or more",
                found=f"{len(given)}",
                remedy="make one: python -c 'import secrets; print(secrets.token_urlsafe())'",
            )
        return given
    path = root / KEY_FILE
    if kept := _read(path):
        return kept
    with lock(path.name, wait=WAIT_SECONDS, remedy="run the same command again", root=root):
        if kept := _read(path):
            return kept
        make_state(root)
        made = secrets.token_urlsafe(32)
        with atomic_file(path, mode=PRIVATE) as partial:
            partial.write_text(f"{made}\n", encoding="utf-8")
    return made


def _read(path: Path) -> str:
    make_private(path)
    try:
        return path.read_text("utf-8").strip()
    except FileNotFoundError:
        return ""
