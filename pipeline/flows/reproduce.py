"""Making a version again: its commit, params and data, every stage up to `evaluate` by force, and a verdict.

The stages run in a checkout of their own (`pipeline.flows.checkout`) and record in a store of their own; both are
thrown away. What remains is the verdict, on the version and in its run.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.data.incoming import INCOMING, POINTER
from pipeline.errors import FlowError
from pipeline.files import file_digest, parse_yaml
from pipeline.flows.checkout import checkout
from pipeline.flows.dvc import is_advice, launch_environment, site_cache
from pipeline.flows.signals import signals_as_exceptions
from pipeline.flows.terminal import Terminal
from pipeline.params import PARAMS_FILE
from pipeline.reports.reproduction import (
    Difference,
    StageResult,
    Verdict,
    compare_predictions,
    describe_difference,
    find_causes,
    judge,
)
from pipeline.tracking.chain import Traced, trace
from pipeline.tracking.outputs import EVALUATION, MODEL, dvc_digest
from pipeline.tracking.reproductions import Origin, machine_of, read_origin, record_reproduction

STAGES = ("ingest", "validate", "split", "train", "evaluate")  # `register` would enter it in a registry
RESTORABLE = ("ingest", "split")  # by whose outputs the rest can start where their own inputs are gone
STARTED = re.compile(r"Running stage '([^']+)':$")
PINS = Path("pins.txt")
SHOWN_LINES = 15  # of the output, where a stage failed


@dataclass(frozen=True)
class Reproduction:
    """A version that was made again, or not."""

    traced: Traced
    verdict: Verdict
    seconds: float
    log: tuple[str, ...]  # what DVC and the stages printed

    @property
    def last_lines(self) -> tuple[str, ...]:
        return self.log[-SHOWN_LINES:]


def reproduce(workspace: Path, number: str, name: str | None, *, quiet: bool) -> Reproduction:
    """Make a version again, judge what came of it, and record that on the version.

    Args:
        number: of the version, or an alias.
        name: of the registered model; None takes the workspace's.
        quiet: show the progress on standard error, so that standard output is the caller's.

    Raises:
        TrackingError: there is no such version, or the store cannot be used.
        WorkspaceError: another reproduction is going on.
        FlowError: the record does not say what it was made from, or its commit or its data are not to be had.
        KeyboardInterrupt: by Ctrl-C; everything that was started has ended, and nothing was recorded.
    """
    started = time.monotonic()
    with (
        signals_as_exceptions(),
        Terminal(stderr=quiet) as terminal,
        tempfile.TemporaryDirectory() as scratch,
    ):
        with terminal.waiting("reading the record"):
            traced = trace(workspace, number, name)
            origin = read_origin(traced, Path(scratch))
        changed = " with its changes" if origin.diff else ""
        terminal.show(f"{traced.label}: commit {origin.commit[:10]}{changed}, run {traced.run.info.run_id}")
        with checkout(workspace, origin.commit, origin.diff) as directory:
            remake = _Remake(workspace, directory, origin, terminal)
            results = remake.run()
            agreement = compare_predictions(*(root / EVALUATION / "predictions.parquet" for root in remake.roots))
            causes = find_causes(origin.machine, machine_of(directory)) + _find_other_versions(directory / PINS)
        verdict = judge(results, agreement, causes)
        if origin.left_out and verdict.outcome != "identical":
            missing = f"{verdict.reason}. The record lacks files that were too large for it: {origin.left_out}"
            verdict = replace(verdict, reason=missing)
        with terminal.waiting("recording the verdict"):
            record_reproduction(traced, verdict, "\n".join(remake.log))
    return Reproduction(traced, verdict, time.monotonic() - started, tuple(remake.log))


class _Remake:
    """The stages of a recorded commit, run in its checkout."""

    def __init__(self, workspace: Path, directory: Path, origin: Origin, terminal: Terminal) -> None:
        self.log: list[str] = []
        self._workspace, self._directory, self._origin, self._terminal = workspace, directory, origin, terminal
        self._seconds: dict[str, float] = {}  # of the stages that have begun, in order
        self._restored: tuple[str, ...] = ()
        self._failed: str | None = None

    @property
    def roots(self) -> tuple[Path, Path]:
        """Below which the outputs of then and of now stand; of then only what the run keeps."""
        return self._origin.directory, self._directory

    def run(self) -> list[StageResult]:
        """Run every stage up to `evaluate`, from the first whose data can be had, and compare what they put out."""
        if self._origin.lock:
            (self._directory / "dvc.lock").write_bytes(self._origin.lock)
        with self._terminal.waiting("fetching batches and local files"):
            missing = self._bring_sources()
        if not missing:
            self._repro("evaluate")
            if self._failed == "ingest":
                missing = ["ingest could not fetch the images: " + " ".join(self.log[-3:])]
        if missing:
            self._start_from_recorded_data(missing)
        return [self._result(stage) for stage in STAGES]

    def _bring_sources(self) -> list[str]:
        """Put in place what `ingest` reads and git does not hold; in words, what cannot be had."""
        missing = []
        pointers = [str(path.relative_to(self._directory)) for path in (self._directory / INCOMING).glob(f"*{POINTER}")]
        if pointers and self._dvc("checkout", *pointers) and self._dvc("pull", *pointers):
            missing.append(f"DVC's cache and remote lack one of {', '.join(sorted(pointers))}")
        place = Path(parse_yaml((self._directory / PARAMS_FILE).read_bytes())["dataset"]["path"])
        recorded = self._origin.read_by("ingest").get(place.as_posix())
        if recorded and recorded != _digest(self._directory / place):
            if _digest(self._workspace / place) != recorded:
                return [*missing, f"{place} holds other files than then (MD5 {recorded})"]
            shutil.copytree(self._workspace / place, self._directory / place, dirs_exist_ok=True)
        return missing

    def _start_from_recorded_data(self, missing: Sequence[str]) -> None:
        for stage in RESTORABLE:
            if not self._dvc("checkout", stage) or not self._dvc("pull", stage):
                done = STAGES.index(stage) + 1
                self._restored, self._failed = STAGES[:done], None
                self._terminal.show(f"{'; '.join(missing)}: starting from the recorded outputs of {stage}")
                self._repro("--single-item", *STAGES[done:])
                return
        raise FlowError(
            "the data of this version is not to be had",
            expected="its sources, or the outputs of ingest or split in DVC's cache or in a remote",
            found="; ".join(missing),
            remedy="bring them back (dvc pull, data/local/, the network), then run the same command again",
        )

    def _repro(self, *targets: str) -> None:
        # Without --no-commit, outputs that differ would enter the run-cache, and one day the reader's workspace.
        arguments = ["repro", "--force", "--no-commit", *targets]
        begun = time.monotonic()
        stage: str | None = None
        with contextlib.ExitStack() as waiting, self._lines(*arguments) as (process, lines):
            for line in lines:
                if (found := STARTED.match(line)) and found[1] in STAGES:
                    self._end(stage, begun)
                    stage, begun = found[1], time.monotonic()
                    waiting.close()
                    waiting.enter_context(self._terminal.waiting(stage, announce=False))
            failed = process.wait() != 0
        self._end(stage, begun)
        if failed:
            self._failed = stage or STAGES[0]

    def _end(self, stage: str | None, begun: float) -> None:
        if stage:
            self._seconds[stage] = time.monotonic() - begun
            self._terminal.show(f"{stage:9} {self._seconds[stage]:6.1f} s")

    def _dvc(self, *arguments: str) -> int:
        """Run a command of DVC; its exit code."""
        with self._lines(*arguments) as (process, lines):
            for _ in lines:
                pass
            return process.wait()

    @contextmanager
    def _lines(self, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], Iterator[str]]]:
        """A DVC at work and the lines that it and its stages print. None of it outlives the block."""
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=self._directory,
            env=_environment(self._directory),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert process.stdout
        try:
            yield process, self._logged(process.stdout)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS answers so for a group of zombies
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()

    def _logged(self, output: Any) -> Iterator[str]:
        for text in output:
            line = text.rstrip()
            if not is_advice(line):
                self.log.append(line)
                yield line

    def _result(self, stage: str) -> StageResult:
        recorded = self._origin.outputs.get(stage, {})
        seconds = self._seconds.get(stage, 0.0)
        if stage in self._restored:
            return StageResult(stage, "restored")
        if stage == self._failed:
            return StageResult(stage, "failed", seconds)
        if stage not in self._seconds:
            return StageResult(stage, "not reached")
        return StageResult(stage, "ran", seconds, tuple(self._compare(recorded)), compared=bool(recorded))

    def _compare(self, recorded: Mapping[str, str]) -> Iterator[Difference]:
        then, now = self.roots
        for path, digest in recorded.items():
            found = _digest(now / path, "sha256" if path == MODEL else "md5")
            if found != digest:
                yield Difference(path, digest, found, describe_difference(then / path, now / path))


def _digest(path: Path, algorithm: str = "md5") -> str:
    if not path.exists():
        return "missing"
    return file_digest(path, algorithm) if path.is_file() else dvc_digest(path)


def _environment(directory: Path) -> dict[str, str]:
    """Of a DVC that works in the checkout and nowhere else."""
    ours = ("MLFLOW_", "PIPELINE_", "DVC_ROOT", "DVC_STAGE", "DVC_EXP_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return inherited | launch_environment() | {"DVC_SITE_CACHE_DIR": str(site_cache(directory))}


def _find_other_versions(pins: Path) -> list[str]:
    """The libraries that are not installed in the version that a commit pins, in words."""
    text = pins.read_text(encoding="utf-8") if pins.is_file() else ""
    pinned = re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)
    return [f"{name}: {wanted} pinned, {_installed(name)} now" for name, wanted in pinned if _installed(name) != wanted]


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
