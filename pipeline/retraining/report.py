"""Result of a retraining: its report page and the log of all retrainings."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.batches.quarantine import Quarantined
from pipeline.files import atomic_file
from pipeline.workspace import STATE

Outcome = Literal["nothing new", "champion", "challenger", "not promoted", "rejected", "failed", "skipped"]

REPORTS = STATE / "retraining"  # in the main repository: a directory for each report, and the log
LOG = REPORTS / "log.jsonl"
REPORT = "report.md"


@dataclass(frozen=True)
class Retraining:
    """Result of a retraining."""

    outcome: Outcome  # after a training: the decision of the champion rule
    reason: str  # explanation of the decision, or why there is none
    branch: str | None = None
    version: str | None = None  # of the registered model
    taken: tuple[str, ...] = ()  # batches taken in that the retrained commit lacks
    quarantined: tuple[Quarantined, ...] = ()  # batches in data/incoming/ that are not taken in
    arriving: tuple[str, ...] = ()  # batches that changed while they were copied
    unreadable: Mapping[str, str] = field(default_factory=dict)  # batch name: reason
    warnings: tuple[str, ...] = ()  # failed pushes
    report: Path | None = None

    def list_batches(self) -> list[dict[str, str]]:
        """Return what happened to each batch, as the rows of a table."""
        happened = {
            **dict.fromkeys(self.taken, ("taken in", "")),
            **{batch.name: ("quarantined", batch.reason) for batch in self.quarantined},
            **{name: ("unreadable", problem) for name, problem in self.unreadable.items()},
            **dict.fromkeys(self.arriving, ("still arriving", "the next retraining takes it in")),
        }
        return [{"batch": name, "what happened": what, "why": why} for name, (what, why) in sorted(happened.items())]

    def describe(self) -> Iterator[tuple[str, str]]:
        """Yield pairs of a name and a sentence."""
        yield "outcome", self.outcome
        yield "reason", self.reason
        if self.taken:
            yield "taken in", ", ".join(self.taken)
        for batch in self.quarantined:
            yield "quarantined", f"{batch.name}: {batch.reason}"
        for name, problem in sorted(self.unreadable.items()):
            yield "unreadable", f"{name}: {problem}"
        for name in self.arriving:
            yield "not yet", f"{name} was still arriving or changing: the next retraining takes it in"
        for warning in self.warnings:
            yield "warning", f"{warning}; the next retraining tries again, or: pipeline retrain"
        if self.branch:
            yield "branch", f"{self.branch}: to keep it, git merge {self.branch}"


def write_report(
    page: Path, result: Retraining, about: Mapping[str, str], facts: Mapping[str, str], links: Mapping[str, str]
) -> None:
    """Write the report of a retraining, and attach it to the current Prefect flow run, if there is one.

    Args:
        about: what was retrained.
        facts: the facts of the training run.
        links: addresses by their label.
    """
    lines = [f"# Retraining {page.parent.name}: {result.outcome}", ""]
    lines += [f"- **{name}**: {text}" for name, text in (*about.items(), *result.describe(), *facts.items())]
    lines += [f"- [{name}]({address})" for name, address in links.items()]
    text = "\n".join([*lines, ""])
    with atomic_file(page) as partial:
        partial.write_text(text, "utf-8")
    if "prefect.context" in sys.modules:
        from prefect.artifacts import create_markdown_artifact, create_table_artifact
        from prefect.context import FlowRunContext

        if FlowRunContext.get():
            description = f"{result.outcome}; started: {about['started']}"
            create_markdown_artifact(text, key="retraining", description=description)
            if batches := result.list_batches():
                create_table_artifact(batches, key="batches", description="The batches in data/incoming/")


def append_to_log(root: Path, result: Retraining, reason: str) -> None:
    """Append a retraining, even a skipped one, to the log of the main repository.

    Args:
        reason: why the retraining was started.
    """
    entry = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "started": reason,
        "outcome": result.outcome,
        "reason": result.reason,
        "branch": result.branch,
        "version": result.version,
    }
    (root / LOG).parent.mkdir(parents=True, exist_ok=True)
    with (root / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, ensure_ascii=False) + "\n")
