"""Watching the batches in `data/incoming/` for drift: compared, judged, reported, and told once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.files import atomic_directory, read_kept, write_json
from pipeline.monitoring import drift
from pipeline.monitoring.comparison import compare_batches
from pipeline.monitoring.drift import BatchDrift
from pipeline.notices.send import notify
from pipeline.params import PARAMS_FILE, load_params
from pipeline.workspace import STATE, lock

REPORTS, REPORT = Path("reports/monitoring"), "report.md"
TOLD = STATE / "monitoring/told.json"
LOCK_WAIT_SECONDS = 600
DIGITS = 4  # of an effect in the evidence


@dataclass(frozen=True)
class Monitoring:
    """What a look at the batches came to."""

    drifted: bool  # the latest batch did
    asks_retraining: bool  # and so did as many of the last as the parameters say
    evidence: Mapping[str, Any]  # small, and JSON
    sentence: str
    report: Path  # the page; its figures are beside it
    batches: tuple[BatchDrift, ...]  # those that could be read, in the order of their names, the latest last
    unreadable: Mapping[str, str]  # why, by name
    champion: str  # who was asked for confidences, or why nobody was


def monitor(workspace: Path) -> Monitoring:
    """Compare each batch in `data/incoming/` with the training data, write a report, and give notice of what is new.

    The reference is the dataset's own training images, which no batch is part of; for the confidence, those of them in
    the validation split, on which the champion was not trained. A batch that cannot be read is named and left out.

    Raises:
        DataError: there are batches, and no training data to compare them with.
        TrackingError: the registry cannot be used.
        WorkspaceError: another process has been monitoring here for ten minutes.
    """
    from pipeline.monitoring.report import Findings, write_report  # matplotlib takes a second to import

    params = load_params(workspace / PARAMS_FILE).monitor
    with lock("monitoring", wait=LOCK_WAIT_SECONDS, remedy="wait for it, or end that process", root=workspace):
        compared = compare_batches(workspace, params)
        batches = compared.batches
        sentence = drift.describe(batches, sorted(compared.unreadable), params)
        findings = Findings(batches, compared.unreadable, compared.reference, compared.champion, sentence)
        with atomic_directory(workspace / REPORTS) as directory:
            write_report(directory / REPORT, findings, params)
        new = _tell_new(workspace, batches, compared.digests, sentence)
    last = batches[-params.last :]
    return Monitoring(
        drifted=bool(last and last[-1].drifted),
        asks_retraining=drift.asks_retraining(batches, params),
        evidence={
            "latest": last[-1].name if last else None,
            "looked_at": [batch.name for batch in last],
            "drifted": {batch.name: _effects(batch) for batch in last if batch.drifted},
            "new": new,
            "unreadable": sorted(compared.unreadable),
            "champion": compared.champion,
        },
        sentence=sentence,
        report=workspace / REPORTS / REPORT,
        batches=batches,
        unreadable=compared.unreadable,
        champion=compared.champion,
    )


def _tell_new(
    workspace: Path, batches: Sequence[BatchDrift], digests: Mapping[str, str], sentence: str
) -> dict[str, list[str]]:
    """Give notice of drifts that were not told before, of this content of a batch, and return them by its name."""
    file = workspace / TOLD
    told = {tuple(found) for found in read_kept(file) or []}
    found = {(digests[batch.name], quantity) for batch in batches for quantity in batch.drifted}
    new = {
        batch.name: fresh
        for batch in batches
        if (fresh := [quantity for quantity in batch.drifted if (digests[batch.name], quantity) not in told])
    }
    if new:
        notify("drift", f"drift in {drift.list_names(list(new))}", sentence, {"report": str(REPORTS / REPORT)})
        here = set(digests.values())
        write_json(file, sorted(found | {entry for entry in told if entry[0] in here}))
    return new


def _effects(batch: BatchDrift) -> dict[str, float]:
    return {
        comparison.quantity: round(comparison.effect, DIGITS)
        for comparison in batch.comparisons
        if comparison.quantity in batch.drifted
    }
