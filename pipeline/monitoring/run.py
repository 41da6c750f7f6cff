"""Drift monitor: compare the batches in `data/incoming/`, write a report, notify once about each drift."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.events import record_event
from pipeline.files import atomic_directory, read_cached_json, write_json
from pipeline.monitoring import drift
from pipeline.monitoring.comparison import ComparedBatches, compare_batches
from pipeline.monitoring.drift import BatchDrift
from pipeline.monitoring.params import MonitorParams
from pipeline.notices.send import notify
from pipeline.params import PARAMS_FILE, load_params
from pipeline.workspace import STATE, lock, main_repository

REPORTS, REPORT = Path("reports/monitoring"), "report.md"
NOTIFIED = STATE / "monitoring/told.json"  # pairs of a batch's digest and a quantity whose drift was notified about
LOCK_WAIT_SECONDS = 600
DIGITS = 4  # decimals of an effect in the evidence


@dataclass(frozen=True)
class Monitoring:
    """Result of a run of the drift monitor."""

    drifted: bool  # the latest batch drifted
    asks_retraining: bool  # by the rule of `drift.asks_retraining`
    evidence: Mapping[str, Any]  # small, JSON-serializable
    sentence: str
    report: Path  # the page; its figures are in the same directory
    batches: tuple[BatchDrift, ...]  # readable batches, sorted by name, the latest last
    unreadable: Mapping[str, str]  # batch name: reason
    champion: str  # the champion that gave the confidences, or why there are none


def monitor(workspace: Path) -> Monitoring:
    """Compare each batch in `data/incoming/` with the training data, write a report, and notify about new drift.

    The reference is the dataset's own training images, without images from batches. For the confidence, it is the
    dataset's own validation images, because the champion was not trained on them. Unreadable batches are listed and
    left out.

    Raises:
        DataError: there are batches, but no training data to compare them with.
        TrackingError: the registry cannot be used.
        WorkspaceError: another monitor still runs here after ten minutes of waiting.
    """
    from pipeline.monitoring.report import write_report  # matplotlib takes a second to import

    project = load_params(workspace / PARAMS_FILE)
    params = project.section(MonitorParams)
    with lock("monitoring", wait=LOCK_WAIT_SECONDS, remedy="wait for it, or end that process", root=workspace):
        compared = compare_batches(workspace, params)
        batches = compared.batches
        sentence = drift.describe(batches, sorted(compared.unreadable), params)
        with atomic_directory(workspace / REPORTS) as directory:
            write_report(directory / REPORT, compared, sentence, params)
        new = _notify_about_new_drift(workspace, project.dataset.name, compared, sentence)
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


def _notify_about_new_drift(
    workspace: Path, dataset: str, compared: ComparedBatches, sentence: str
) -> dict[str, list[str]]:
    """Notify about drift that no notice reported for a batch's content. Returns the new quantities by batch name."""
    file = workspace / NOTIFIED
    notified = {(digest, quantity) for digest, quantity in read_cached_json(file) or []}
    new: dict[str, list[str]] = {}
    for batch in compared.batches:
        for quantity in batch.drifted:
            if (compared.digests[batch.name], quantity) not in notified:
                new.setdefault(batch.name, []).append(quantity)
    if new:
        record_event("drift.batch", {"drifted": new}, dataset=dataset, root=main_repository(workspace))
        notify("drift", f"drift in {drift.list_names(list(new))}", sentence, {"report": str(REPORTS / REPORT)})
        notified |= {(compared.digests[name], quantity) for name, quantities in new.items() for quantity in quantities}
        existing = set(compared.digests.values())
        write_json(file, sorted(pair for pair in notified if pair[0] in existing))
    return new


def _effects(batch: BatchDrift) -> dict[str, float]:
    return {
        comparison.quantity: round(comparison.effect, DIGITS)
        for comparison in batch.comparisons
        if comparison.quantity in batch.drifted
    }
