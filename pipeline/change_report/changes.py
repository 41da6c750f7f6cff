"""Compare a commit with this checkout: files, params, metrics and stage outputs. Changes nothing."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.dvc import query_diff
from pipeline.dvc_yaml import read_stages
from pipeline.errors import FlowError
from pipeline.files import read_json
from pipeline.flows.temporary_checkout_data import restore
from pipeline.git import find_reason, git, git_or_none, require_repository
from pipeline.temporary_checkout import checkout
from pipeline.tracking.stage_outputs import EVALUATION, TRAINING, Outputs
from pipeline.workspace import STATE

CHECKOUTS = STATE / "change-reports"
SPLIT_REPORT = "reports/split.json"
NOT_LISTED = {"dvc.lock", "params.yaml"}  # the report has other tables of them
NEEDED = (EVALUATION, TRAINING, SPLIT_REPORT)  # outputs of the base that a report reads; the largest are the figures


@dataclass(frozen=True)
class Base:
    """The commit that a checkout is compared with, and its outputs."""

    name: str  # as the user wrote it
    commit: str
    missing_commits: int  # commits of the base that the checkout does not have; those of dvc.lock alone do not count
    outputs: Outputs  # of a temporary checkout
    has_outputs: bool  # the outputs in NEEDED are there
    problem: str = ""  # why not

    def __str__(self) -> str:
        return self.name if self.commit.startswith(self.name) else f"{self.name} ({self.commit[:10]})"


@dataclass(frozen=True)
class Value:
    """A param or metric in both states. None: it is not there."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Output:
    """A stage output whose content differs, with its MD5 in each `dvc.lock`. Empty: it is not there."""

    stage: str
    path: str
    before: str
    after: str


@contextmanager
def open_base(workspace: Path, name: str) -> Iterator[Base]:
    """Yield a commit with its outputs from DVC's cache or a remote, in a temporary checkout.

    Args:
        name: a branch, tag or commit.

    Raises:
        FlowError: git does not know it, or it has no `dvc.lock`.
    """
    require_repository(workspace)
    commit = git_or_none(workspace, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if commit is None:
        raise FlowError(
            f"cannot compare with {name}: git has no such commit here",
            expected="a branch, tag or commit of this clone, such as origin/main",
            remedy="git fetch --unshallow, or git fetch origin, then the same command again",
        )
    if git_or_none(workspace, "cat-file", "-e", f"{commit}:./dvc.lock") is None:
        raise FlowError(
            f"cannot compare with {name}: this commit has no dvc.lock, so no run of it is recorded",
            expected="a commit with the dvc.lock of a run",
            remedy=f"git log --oneline {commit[:10]} -- dvc.lock",
        )
    missing = int(git(workspace, "rev-list", "--count", f"HEAD..{commit}", "--", ".", ":(exclude)dvc.lock"))
    with checkout(workspace, commit, parent=CHECKOUTS) as directory:
        outputs = Outputs(directory)
        targets = [path for path in NEEDED if path in outputs.locked_outputs()]
        restored, lines = restore(directory, *targets) if targets else (False, [])
        complete = restored and outputs.are_of("evaluate", EVALUATION)
        reason = find_reason("\n".join(lines)).removeprefix("ERROR: ").rstrip(".: ")
        problem = "" if complete else reason or "its dvc.lock does not have them"
        yield Base(name, commit, missing, outputs, complete, problem)


def require_evaluation(workspace: Path) -> Outputs:
    """Return the outputs of a checkout whose model is evaluated.

    Raises:
        FlowError: the outputs are missing, or not those of its `dvc.lock`.
    """
    outputs = Outputs(workspace)
    if not outputs.evaluation.is_dir() or not outputs.training.is_dir():
        raise FlowError(
            "nothing to report: this checkout has no evaluated model",
            expected=f"{TRAINING} and {EVALUATION}",
            remedy="dvc pull, or pipeline run",
        )
    if not outputs.are_of("evaluate", EVALUATION):
        raise FlowError(
            f"{EVALUATION} is not the one in dvc.lock",
            expected="the outputs of the last run",
            remedy="pipeline run, or: dvc checkout evaluate",
        )
    return outputs


def list_changed_files(workspace: Path, commit: str) -> dict[str, list[str]]:
    """List the files that differ from a commit by the stages that read them: new files too, params and locks not.

    Returns:
        the files by the name of a stage, in the order of the stages; "" has those that no stage reads.
    """
    changed = git(workspace, "diff", "--name-only", "--no-renames", "--relative", "-z", commit, "--", ".").split("\0")
    new = git(workspace, "ls-files", "--others", "--exclude-standard", "-z", "--", ".").split("\0")
    files = sorted({name for name in (*changed, *new) if name} - NOT_LISTED)
    by_stage = {
        stage: [file for file in files if any(_is_in(file, path) for path in definition.deps)]
        for stage, definition in read_stages(workspace).items()
    }
    read = {file for found in by_stage.values() for file in found}
    return {stage: found for stage, found in by_stage.items() if found} | {"": [f for f in files if f not in read]}


def _is_in(file: str, path: str) -> bool:
    return file == path or file.startswith(f"{path}/")


def list_changed_outputs(before: Outputs, after: Outputs, stages: Mapping[str, Any]) -> list[Output]:
    """List the outputs whose MD5 differs between two `dvc.lock`."""
    found = []
    for stage in stages:
        old, new = before.locked_outputs(stage), after.locked_outputs(stage)
        found += [
            Output(stage, path, old.get(path, ""), new.get(path, ""))
            for path in sorted(old.keys() | new.keys())
            if old.get(path) != new.get(path)
        ]
    return found


def count_images(outputs: Outputs) -> dict[str, int]:
    """Return the number of images in each split. Empty without a report of `split`."""
    file = outputs.root / SPLIT_REPORT
    splits = read_json(file)["splits"] if file.is_file() else {}
    return {name: splits[name]["images"] for name in ("train", "validation", "test") if name in splits}


def diff_params(workspace: Path, commit: str) -> list[Value]:
    """Return the params of the stages that differ from a commit: `dvc params diff`."""
    return _diff(workspace, "params", commit)


def diff_metrics(workspace: Path, commit: str) -> list[Value]:
    """Return all metrics here and at a commit: `dvc metrics diff`. Those of the validation split are first."""
    return sorted(_diff(workspace, "metrics", commit, "--all"), key=lambda metric: not metric.name.startswith(TRAINING))


def _diff(workspace: Path, kind: str, *arguments: str) -> list[Value]:
    return [
        Value(f"{file}:{name}", value.get("old"), value.get("new"))
        for file, values in query_diff(workspace, kind, *arguments).items()
        for name, value in sorted(values.items())
    ]
