"""Quarantine of bad batches: records of content that a retraining does not take in again.

A bad batch stays in `data/incoming/`. Its record is named by DVC's digest of its content: a corrected batch has another
digest and is checked again.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.files import read_cached_json, write_json
from pipeline.workspace import STATE

QUARANTINE = STATE / "quarantine"


@dataclass(frozen=True)
class Quarantined:
    """A batch that is not taken in until its content changes."""

    name: str
    digest: str  # DVC's MD5 of its content
    reason: str
    since: str  # UTC


def read_quarantine(root: Path) -> dict[str, Quarantined]:
    """Read the quarantine records of a main repository, by digest."""
    files = sorted((root / QUARANTINE).glob("[!.]*.json"))
    return {path.stem: Quarantined(**record) for path in files if (record := read_cached_json(path))}


def find_quarantined(root: Path, digests: Mapping[str, str]) -> list[Quarantined]:
    """Find the quarantine records for the digests of batches, in the order of the batch names."""
    records = read_quarantine(root)
    return [records[digest] for _, digest in sorted(digests.items()) if digest in records]


def quarantine(root: Path, name: str, digest: str, reason: str) -> None:
    """Record that the content of a batch must not be taken in."""
    record = Quarantined(name, digest, reason, time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()))
    write_json(root / QUARANTINE / f"{digest}.json", asdict(record))


def release(root: Path, digest: str) -> None:
    """Delete the quarantine record of content that was taken in later."""
    (root / QUARANTINE / f"{digest}.json").unlink(missing_ok=True)
