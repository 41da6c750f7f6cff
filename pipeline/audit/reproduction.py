"""Reproduction of a version: rerun its stages from the recorded code, params and data, and compare what they write.

The stages run in a temporary checkout with an MLflow store of its own. Only the verdict is kept, on the version.
"""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from pipeline.audit.lineage import Lineage, find_lineage
from pipeline.audit.original_run import RecordedRun, read_machine, read_recorded_run, record_verdict
from pipeline.audit.verdict import (
    Difference,
    ReproducedStage,
    StageOutcome,
    Verdict,
    compare_predictions,
    decide_verdict,
    describe_difference,
    find_causes,
)
from pipeline.data.batches import INCOMING, POINTER
from pipeline.dvc import run_in_checkout
from pipeline.dvc_yaml import read_stages, stages_up_to
from pipeline.errors import FlowError
from pipeline.evaluation.predictions import PREDICTIONS
from pipeline.files import file_digest
from pipeline.flows.temporary_checkout_data import dataset_path, provide_dataset_files, restore
from pipeline.flows.terminal import Terminal
from pipeline.process_lifetime import signals_as_exceptions
from pipeline.temporary_checkout import checkout
from pipeline.tracking.logged_models import OUTPUT_PATHS
from pipeline.tracking.provenance import COMMIT_TAG
from pipeline.tracking.stage_outputs import EVALUATION, Outputs, dvc_digest

LAST_STAGE = "evaluate"  # `register`, which comes after it, writes to the registry
RESTORABLE = ("ingest", "split")  # the later stages can start from their recorded outputs
EVENT = re.compile(r"(Running stage|ERROR: failed to reproduce) '([^']+)'")  # in DVC's output
# Variables of the caller's run. With them, the stages would not use the checkout.
NOT_INHERITED = ("MLFLOW_", "PIPELINE_", "DVC_ROOT", "DVC_STAGE", "DVC_EXP_")


def reproduce(workspace: Path, number: str, name: str | None, *, quiet: bool) -> tuple[Lineage, Verdict]:
    """Run the stages of a version again, compare their outputs with the recorded ones, and record the verdict.

    Args:
        number: of the version, or an alias.
        name: of the registered model; None: the workspace's.
        quiet: show the progress on standard error.

    Returns:
        the version, and the verdict.

    Raises:
        TrackingError: the version does not exist or does not record its code, or the store cannot be used.
        WorkspaceError: another reproduction is running.
        FlowError: the commit or the data cannot be found.
        KeyboardInterrupt: by Ctrl-C. All processes have ended, and nothing was recorded.
    """
    with signals_as_exceptions(), Terminal(stderr=quiet) as terminal, tempfile.TemporaryDirectory() as scratch:
        with terminal.waiting("reading the record"):
            lineage = find_lineage(workspace, number, name)
            recorded = read_recorded_run(lineage, Path(scratch))
        commit, left_out = lineage.tags[COMMIT_TAG], lineage.tags.get("git.left_out")
        changes = " with uncommitted changes" if recorded.diff else ""
        terminal.show(f"{lineage.label}: commit {commit[:10]}{changes}, run {lineage.run.info.run_id}")
        with checkout(workspace, commit, recorded.diff) as directory:
            rerun = _Rerun(workspace, directory, lineage.data_stages, terminal)
            rerun.run()
            stages = [_compare(stage, outcome, recorded, directory) for stage, outcome in rerun.outcomes.items()]
            predictions = (recorded.find_copy(EVALUATION), directory / EVALUATION)
            agreement = compare_predictions(*(path / PREDICTIONS for path in predictions))
            causes = _find_causes(lineage, directory)
        verdict = decide_verdict(stages, agreement, causes)
        if left_out and verdict.outcome != "identical":
            reason = f"{verdict.reason}. Files that were too large to be recorded are missing: {left_out}"
            verdict = replace(verdict, reason=reason)
        with terminal.waiting("recording the verdict"):
            record_verdict(lineage, verdict, "\n".join(rerun.log))
    return lineage, verdict


class _Rerun:
    """A rerun of the stages up to `evaluate` in a checkout."""

    def __init__(self, workspace: Path, directory: Path, recorded: Mapping[str, Any], terminal: Terminal) -> None:
        self.log: list[str] = []
        self._stages = stages_up_to(LAST_STAGE, read_stages(directory))
        self.outcomes: dict[str, StageOutcome] = dict.fromkeys(self._stages, "not reached")
        self._workspace, self._directory, self._recorded, self._terminal = workspace, directory, recorded, terminal

    def run(self) -> None:
        """Run the stages from the sources, or else from recorded data."""
        if self._recorded:
            lock = {"schema": "2.0", "stages": self._recorded}
            (self._directory / "dvc.lock").write_text(json.dumps(lock))  # JSON is valid YAML
        with self._terminal.waiting("fetching batches and local files"):
            missing = self._fetch_sources()
        if not missing:
            self._repro(LAST_STAGE)
            if self.outcomes["ingest"] == "failed":
                missing = ["ingest failed"]
        if missing:
            self._start_from_recorded_data(missing)

    def _fetch_sources(self) -> list[str]:
        """Fetch the inputs of `ingest` that are not in git. Returns a description of each missing one."""
        missing = []
        pointers = sorted(f"{INCOMING / path.name}" for path in (self._directory / INCOMING).glob(f"*{POINTER}"))
        if pointers and not self._restore(*pointers):
            missing.append(f"one of {', '.join(pointers)} is neither in DVC's cache nor in a remote")
        place = dataset_path(self._directory)
        digest = Outputs(self._directory).locked("ingest").get(place.as_posix())
        if (
            self._recorded
            and digest
            and not provide_dataset_files(self._workspace, self._directory, digest, without=NOT_INHERITED)
        ):
            missing.append(f"{place} does not hold the recorded files (MD5 {digest})")
        return missing

    def _start_from_recorded_data(self, missing: Sequence[str]) -> None:
        for stage in RESTORABLE:
            if stage in self._recorded and self._restore(stage):
                first = self._stages.index(stage) + 1
                self.outcomes |= dict.fromkeys(self._stages[:first], "restored")
                self.outcomes |= dict.fromkeys(self._stages[first:], "not reached")
                self._terminal.show(f"{'; '.join(missing)}: starting from the recorded outputs of {stage}")
                self._repro("--single-item", *self._stages[first:])
                return
        raise FlowError(
            "cannot reproduce the version: its data cannot be found",
            expected="the sources, or the outputs of ingest or split in DVC's cache or in a remote",
            found="; ".join(missing),
            remedy="bring them back (dvc pull, data/local/, the network), then run the same command again",
        )

    def _restore(self, *targets: str) -> bool:
        restored, lines = restore(self._directory, *targets, without=NOT_INHERITED)
        self.log += lines
        return restored

    def _repro(self, *targets: str) -> None:
        def read_outcome(line: str) -> None:
            self._terminal.show(line)
            if found := EVENT.match(line):
                self.outcomes[found[2]] = "ran" if found[1] == "Running stage" else "failed"

        # Without --no-commit, outputs that differ would enter the run-cache, and later the user's workspace.
        with self._terminal.waiting("running the stages", announce=False):
            command = ("repro", "--force", "--no-commit", *targets)
            code, lines = run_in_checkout(self._directory, *command, without=NOT_INHERITED, on_line=read_outcome)
        self.log += lines
        if code and "failed" not in self.outcomes.values():  # DVC could not start a stage
            first = next((stage for stage in self._stages if self.outcomes[stage] == "not reached"), LAST_STAGE)
            self.outcomes[first] = "failed"


def _compare(stage: str, outcome: StageOutcome, recorded: RecordedRun, directory: Path) -> ReproducedStage:
    """Compare the outputs of a stage that ran in a checkout with the recorded ones."""
    outputs = recorded.outputs.get(stage, {}) if outcome == "ran" else {}
    found = {path: _digest(directory, path) for path in outputs}
    differences = [
        Difference(path, digest, found[path], describe_difference(recorded.find_copy(path), directory / path))
        for path, digest in outputs.items()
        if found[path] != digest
    ]
    return ReproducedStage(stage, outcome, tuple(differences), compared=bool(outputs))


def _digest(directory: Path, path: str) -> str:
    """Return the SHA-256 of a file of the model, or DVC's MD5 of any other output."""
    if not (found := directory / path).exists():
        return "missing"
    return file_digest(found) if path in OUTPUT_PATHS.values() else dvc_digest(found)


def _find_causes(lineage: Lineage, directory: Path) -> list[str]:
    """Describe differences in machine, settings and libraries. The commit's `pins.txt` lists more libraries."""
    pins = directory / "pins.txt"
    text = pins.read_text(encoding="utf-8") if pins.is_file() else ""
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))
    installed = {name: next((found.version for found in distributions(name=name)), "none") for name in pinned}
    return find_causes(lineage.tags | pinned, read_machine(directory) | installed)
