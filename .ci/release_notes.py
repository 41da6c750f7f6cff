"""Print the section of CHANGELOG.md for a tag `vX.Y.Z`, and check that pyproject.toml has that version."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def find_notes(tag: str, changelog: str, version: str) -> str:
    """Return the section of a tag.

    Raises:
        ValueError: the tag is not of this version, or the changelog has no section with text for it.
    """
    if tag != f"v{version}":
        raise ValueError(f"the tag is not of the version in pyproject.toml. Expected v{version}, found {tag or 'none'}")
    section = re.search(rf"^## {re.escape(version)}\b[^\n]*\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if section is None or not section[1].strip():
        raise ValueError(f"CHANGELOG.md has no section `## {version}` with text: rename `## Unreleased`")
    return section[1].strip()


if __name__ == "__main__":
    try:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        print(find_notes(sys.argv[1], (ROOT / "CHANGELOG.md").read_text("utf-8"), project["version"]))
    except ValueError as error:
        sys.exit(f"cannot write the notes of the release: {error}")
