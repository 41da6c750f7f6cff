"""Upload of a run's model card: gather the facts from the stage outputs and the run, and log the card."""

import hashlib
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pipeline.data import table
from pipeline.data.catalog import CATALOG, load_catalog
from pipeline.files import read_json
from pipeline.registry.descriptions import describe
from pipeline.registry.model_card import CARD, FIGURES, PAGE, render_html, write_markdown
from pipeline.registry.model_card_facts import Facts
from pipeline.tracking.stage_outputs import Outputs, read_csv
from pipeline.tracking.store import explained
from pipeline.tracking.training_runs import Record

if TYPE_CHECKING:
    from pipeline.registry.registration import Registration

CARD_TAG = "card.sha256"  # of a run: digest of both, set last


def upload_card(record: Record, outputs: Outputs, registration: "Registration") -> None:
    """Log the card of a model as artifacts of its run, and describe its version and registered model.

    Skips a card with the same content. Keeps a description that a user has edited.

    Raises:
        TrackingError: the store cannot be used.
    """
    facts = collect_facts(record, outputs, registration)
    card, page = write_markdown(facts), render_html(facts)
    digest = hashlib.sha256((card + page).encode()).hexdigest()
    if record.tags.get(CARD_TAG) != digest:
        with explained(record.store):
            record.client.log_text(record.id, card, CARD)
            record.client.log_text(record.id, page, PAGE)
        record.set_tags({CARD_TAG: digest})
    if registration.version:
        with explained(record.store):
            describe(record.client, facts)


def collect_facts(record: Record, outputs: Outputs, registration: "Registration") -> Facts:
    """Gather the facts for the card of the workspace's model. Its run and evaluation must be complete."""
    dataset, contract = table.read_dataset(outputs.split("test")), outputs.contract()
    reports = outputs.root / "reports"
    name, version = registration.name, registration.version
    return Facts(
        name=name,
        version=version,
        model_uri=f"models:/{name}/{version}" if version else str(record.logged_model(outputs).model_uri),
        outcome=registration.decision.outcome,
        reason=registration.decision.reason,
        dataset=dataset,
        entry=load_catalog(outputs.root / CATALOG).get(dataset.name),
        sources=_count_sources(outputs),
        validation=read_json(reports / "validation.json"),
        split=read_json(reports / "split.json"),
        settings=outputs.settings(),
        history=outputs.history(),
        metrics=read_json(outputs.evaluation / "metrics.json"),
        gate=read_json(outputs.evaluation / "gate.json"),
        classes=read_csv(outputs.evaluation / "per_class.csv"),
        confusions=Counter((row["actual"], row["predicted"]) for row in read_csv(outputs.evaluation / "confusion.csv")),
        reliability=read_csv(outputs.evaluation / "reliability.csv"),
        model_bytes=(outputs.exported_model if contract else outputs.model).stat().st_size,
        contract=contract,
        run_id=record.id,
        experiment=str(record.run.info.experiment_id),
        recorded=f"{datetime.fromtimestamp(record.run.info.start_time / 1000, UTC):%Y-%m-%d %H:%M} UTC",
        tags=record.tags,
        figures={path: (reports / path).read_bytes() for path in FIGURES if (reports / path).is_file()},
    )


def _count_sources(outputs: Outputs) -> Counter[str]:
    """Count the training and validation images by source."""
    counts: Counter[str] = Counter()
    for split in ("train", "validation"):
        for rows in table.stream_columns(outputs.split(split), ["source"]):
            counts.update(rows.column("source").to_pylist())
    return counts
