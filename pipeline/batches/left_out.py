"""The lines of `pipeline status` about batches that a retraining leaves out."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.batches.incoming import read_digests
from pipeline.batches.quarantine import find_quarantined
from pipeline.data.batches import INCOMING
from pipeline.workspace import main_repository


def describe_left_out(workspace: Path) -> Iterator[tuple[str, str]]:
    """Describe the quarantined and the unreadable batches in `data/incoming/`: pairs of a name and a sentence."""
    root = main_repository(workspace)
    digests, unreadable = read_digests(root, workspace / INCOMING)
    for batch in find_quarantined(root, digests):
        yield "quarantined", f"{batch.name}: {batch.reason}"
    for name, reason in sorted(unreadable.items()):
        yield "unreadable", f"{name}: {reason}"
