"""Unattended retraining: take in new batches and commits, train and judge a model, create a branch.

The retraining runs in a separate checkout (`pipeline.temporary_checkout`); the user's working tree does not change. It
can be killed at any moment: the commit that its runs name is in the user's repository before they start, completed
stages are in DVC's cache, and an interrupted training resumes from its checkpoint.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, chdir, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.batches.incoming import read_digests
from pipeline.batches.quarantine import find_quarantined
from pipeline.data.batches import INCOMING
from pipeline.dvc import edit_yaml, site_cache
from pipeline.errors import FlowError, ParamsError, PipelineError, WorkspaceError
from pipeline.flows.run import IfBusy
from pipeline.git import (
    AUTHOR,
    GIT_VARIABLES,
    SET_AUTHOR,
    commit,
    git,
    lacks_author,
    require_repository,
)
from pipeline.params import PARAMS_FILE
from pipeline.process_lifetime import signals_as_exceptions
from pipeline.retraining import branches
from pipeline.retraining.branches import Branch
from pipeline.retraining.inputs import RetrainingInput, read_input, read_params, set_param
from pipeline.retraining.intake import Intake
from pipeline.retraining.params import RetrainParams
from pipeline.retraining.report import REPORT, REPORTS, Outcome, Retraining, append_to_log, write_report
from pipeline.temporary_checkout import RETRAININGS, checkout, remove_stale_checkouts
from pipeline.workspace import lock, main_repository

if TYPE_CHECKING:
    from pipeline.registry.registration import Registration

Push = Literal["auto", "never"]


def retrain(
    workspace: Path,
    *,
    ref: str | None = None,
    changes: Mapping[str, Any] = {},
    reason: str = "by hand",
    force: bool = False,
    if_busy: IfBusy = "leave",
    push: Push | None = None,
    quiet: bool = False,
) -> Retraining:
    """Take in new batches, run the training flow in a checkout, and apply the champion rule.

    Inside a Prefect flow run, the stages become its tasks. The user's tree is only read.

    Args:
        ref: branch, tag or commit. None means `retrain.ref`, or the current branch if that is empty.
        changes: values of params by dotted key, for this retraining only.
        reason: why the retraining was started, for the report.
        force: run the stages even if nothing is new, and check quarantined batches again.
        if_busy: what to do while another retraining runs.
        push: whether to push the branch and its data to remotes. None means `retrain.push`.
        quiet: print the progress to standard error and keep standard output for the caller.

    Raises:
        ParamsError: the changes, or the params of the ref, cannot be used.
        FlowError: there is no such ref, or git cannot be used.
        OSError: the files of `dataset.path` cannot be read, or the report cannot be written.
            These errors are logged. An error after the input is read is returned as the outcome `failed`, with a
            report and a notification.
        KeyboardInterrupt: Ctrl-C. All started processes have ended.
    """
    require_repository(workspace)
    root = main_repository(workspace)
    with ExitStack() as stack:
        try:
            remedy = "wait for it (pipeline retrain --if-busy wait), or end that process"
            wait = -1 if if_busy == "wait" else 0
            stack.enter_context(lock("retraining", wait=wait, remedy=remedy, root=root))
        except WorkspaceError as busy:
            result = Retraining("skipped", f"another retraining is running: {busy.found}")
            append_to_log(root, result, reason)
            return result
        stack.enter_context(signals_as_exceptions())
        stack.enter_context(_environment(dict.fromkeys(GIT_VARIABLES)))
        try:
            remove_stale_checkouts(root, RETRAININGS)
            result = _Job(workspace, root, reason, force, quiet).run(ref, changes, push)
        except (PipelineError, OSError) as error:
            append_to_log(root, Retraining("failed", str(error)), reason)
            raise
        append_to_log(root, result, reason)
        return result


@dataclass
class _Job:
    """A retraining that holds the lock of its repository."""

    workspace: Path
    root: Path
    reason: str
    force: bool
    quiet: bool
    push: Push = "never"
    earlier: list[Branch] = field(default_factory=list)  # branches of earlier retrainings
    intake: Intake = field(init=False)

    def __post_init__(self) -> None:
        self.intake = Intake(self.workspace, self.root)

    def run(self, ref: str | None, changes: Mapping[str, Any], push: Push | None) -> Retraining:
        self.push = push or self._read_push()
        given = read_input(self.workspace, self.root, ref, changes, with_quarantined=self.force)
        try:
            result = self._retrain(given)
        except (PipelineError, OSError) as error:
            result = self._fail(error, given)
        if self.push == branches.NEVER:
            return result
        # Not inside the checkout: pushing data creates another one.
        return replace(result, warnings=branches.push_missing(self.workspace, self.root, self._print))

    def _retrain(self, given: RetrainingInput) -> Retraining:
        branches.refuse_conflicting_branch(self.workspace)
        self.earlier = branches.read_branches(self.workspace)
        if self._is_done(given):
            return self._nothing_new()
        unfinished = self._find_unfinished(given)
        start = unfinished.commit if unfinished else given.commit
        with checkout(self.workspace, start, parent=RETRAININGS) as directory, _entered(directory):
            if unfinished:
                self.intake.restore_commit(directory, given, except_for={})
                self.intake.taken = dict(given.batches)
            else:
                self.intake.restore_commit(directory, given, except_for=given.batches)
                self.intake.take_in(directory, given.batches)
            given = replace(given, batches=self.intake.taken)
            if self._is_done(given):
                return self._nothing_new()
            name = unfinished.name if unfinished else self._commit_input(directory, given)
            self._print_effects(name)
            return self._train(directory, given, name)

    def _read_push(self) -> Push:
        """Read `retrain.push` from the current branch, even if another commit is retrained: it is the user's choice."""
        try:
            return read_params(self.workspace).section(RetrainParams).push
        except (FlowError, ParamsError) as error:
            self._print(f"nothing will be pushed, because retrain.push cannot be read: {error.problem}")
            return "never"

    def _print(self, line: str) -> None:
        print(line, file=sys.stderr if self.quiet else sys.stdout, flush=True)

    def _is_done(self, given: RetrainingInput) -> bool:
        done = {branch.trailers.get(key) for branch in self.earlier for key in (branches.INPUT, branches.RESULT)}
        return given.digest in done and not self.force

    def _nothing_new(self) -> Retraining:
        result = Retraining("nothing new", "No commit, batch or parameter is new since a retraining that ended.")
        return replace(self._with_batches(result), taken=())

    def _find_unfinished(self, given: RetrainingInput) -> Branch | None:
        """Find an unfinished retraining of the same input. Its commit is reused, because its runs name it."""
        same = [branch for branch in self.earlier if branch.trailers.get(branches.TAKEN) == given.digest]
        return next((branch for branch in same if branches.OUTCOME not in branch.trailers), None)

    def _commit_input(self, directory: Path, given: RetrainingInput) -> str:
        """Commit the input, fetch the commit into the user's repository, and return its branch."""
        name = branches.new_name(self.workspace)
        if given.changes:
            with edit_yaml(directory / PARAMS_FILE) as content:  # comments stay
                for key, value in given.changes.items():
                    set_param(content, key, value)
            git(directory, "add", str(PARAMS_FILE))
        if given.batches:
            git(directory, "add", str(INCOMING))
        if git(directory, "diff", "--cached", "--name-only"):
            what = [f"batch {batch}" for batch in given.batches]
            what += [f"{key}: {value}" for key, value in given.changes.items()]
            message = f"Retrain with {', '.join(what)}\n\n{branches.TAKEN}: {given.digest}\n"
            commit(directory, message, author_of=self.workspace)
            branches.fetch_head(self.workspace, directory, name)
        return name

    def _print_effects(self, name: str) -> None:
        """Print the author of the commits and where they will be pushed, before anything runs."""
        if lacks_author(self.workspace):
            self._print(f"git has no author configured: {AUTHOR['user.name']} will be the commits' ({SET_AUTHOR})")
        if self.push != branches.NEVER and (where := branches.describe_push(self.workspace)):
            self._print(f"{name} will be pushed at the end: {where}; to keep it here: pipeline retrain --push never")

    def _train(self, directory: Path, given: RetrainingInput, name: str) -> Retraining:
        from pipeline.flows.run import run_training
        from pipeline.flows.summary import Summary
        from pipeline.registry.registration import judged_versions
        from pipeline.registry.sync import sync

        head, judged_before = git(directory, "rev-parse", "HEAD"), judged_versions(directory)
        run_training(directory, until=None, force=None, if_busy="wait", quiet=self.quiet, started_by="pipeline retrain")
        synced = sync(directory)
        summary, registration = Summary((), synced, True), synced.registration
        if registration:
            # If this retraining (or its interrupted first start) made the commit, the commit's model is new.
            is_own = head != given.commit and registration.commit == head
            is_new = is_own or (registration.name, registration.version) not in judged_before
            outcome, reason = read_decision(registration, is_new=is_new)
            result = Retraining(outcome, reason, name, registration.version)
        else:
            result = Retraining("not promoted", "The stages ended without a model that can be registered.", name)
        result, links = self._with_batches(result), summary.links()
        result = self._report(result, given, dict(summary.describe()), links)
        if registration:
            # Notify before the commit: after a kill between them, the next start notifies again.
            self._notify_of_decision(registration, result, links)
        self._commit_result(directory, given, result, registration)
        return result

    def _commit_result(
        self, directory: Path, given: RetrainingInput, result: Retraining, registration: "Registration | None"
    ) -> None:
        assert result.branch
        if self.push != branches.NEVER:
            branches.mark_unpushed(self.workspace, self.root, result.branch)
        if (directory / "dvc.lock").exists():
            git(directory, "add", "dvc.lock")
        prefix = git(directory, "rev-parse", "--show-prefix")
        index = git(directory, "write-tree")
        tree = git(directory, "rev-parse", f"{index}:{prefix}")
        trailers = {
            branches.INPUT: given.digest,
            branches.RESULT: given.digest_after_merge(tree),
            branches.OUTCOME: result.outcome,
            **({branches.PUSH: branches.NEVER} if self.push == branches.NEVER else {}),
        }
        if registration and registration.version:
            trailers[branches.VERSION] = _full_name(registration)
        lines = "\n".join(f"{key}: {value}" for key, value in trailers.items())
        message = f"Lock the outputs of the retraining: {result.outcome}\n\n{result.reason}\n\n{lines}\n"
        commit(directory, message, author_of=self.workspace)
        branches.fetch_head(self.workspace, directory, result.branch)

    def _notify_of_decision(self, registration: "Registration", result: Retraining, links: Mapping[str, str]) -> None:
        """Notify about the decision, unless the model existed before or an earlier retraining sent the notice."""
        from pipeline.notices.send import notify_of_decision

        finished = [branch for branch in self.earlier if branches.OUTCOME in branch.trailers]
        notified = {branch.trailers.get(branches.VERSION) for branch in finished}
        if result.reason == registration.decision.reason and _full_name(registration) not in notified:
            notify_of_decision(registration, links)

    def _fail(self, error: PipelineError | OSError, given: RetrainingInput) -> Retraining:
        from pipeline.notices.send import notify_of_failure
        from pipeline.stages.entrypoint import explain

        explained = explain(error) if isinstance(error, OSError) else error
        notify_of_failure("retrain", explained)
        return self._report(self._with_batches(Retraining("failed", str(explained))), given, {}, {})

    def _with_batches(self, result: Retraining) -> Retraining:
        digests, unreadable = read_digests(self.root, self.workspace / INCOMING)
        return replace(
            result,
            taken=tuple(self.intake.taken),
            quarantined=tuple(find_quarantined(self.root, digests)),
            arriving=tuple(self.intake.arriving),
            unreadable=unreadable | self.intake.unreadable,
        )

    def _report(
        self, result: Retraining, given: RetrainingInput, facts: Mapping[str, str], links: Mapping[str, str]
    ) -> Retraining:
        name = result.branch or branches.new_name(self.workspace)
        page = self.root / REPORTS / name.removeprefix(branches.PREFIX) / REPORT
        about = {"started": self.reason, "commit": given.commit}
        about |= {f"param {key}": str(value) for key, value in given.changes.items()}
        write_report(page, result, about, facts, links)
        return replace(result, report=page)


def read_decision(registration: "Registration", *, is_new: bool) -> tuple[Outcome, str]:
    """Derive the outcome and the reason of a retraining from its model's registration.

    A decision is stored with its model. A commit that changes no stage leads to a model that was judged earlier, and
    perhaps promoted and rolled back since.

    Args:
        is_new: whether this retraining judged the model. Times cannot show it: the store may use another machine's
            clock.
    """
    from pipeline.flows.summary import describe_version

    decision = registration.decision
    is_current = decision.outcome != "champion" or decision.outcome in registration.aliases
    if decision.outcome == "rejected" or (is_new and is_current):
        return decision.outcome, decision.reason
    state = "is no longer the champion" if is_new else "existed before this retraining"
    return (
        "not promoted",
        f"The model is {describe_version(registration)}, which {state}. Its decision was: {decision.reason}",
    )


def _full_name(registration: "Registration") -> str:
    """Name of a model version, unique across datasets."""
    return f"{registration.name}/{registration.version}"


@contextmanager
def _entered(directory: Path) -> Iterator[None]:
    """Change to a temporary directory for a block, with DVC's site cache inside it."""
    with _environment({"DVC_SITE_CACHE_DIR": str(site_cache(directory))}), chdir(directory):
        yield


@contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables for a block; unset those whose value is None."""
    former = {name: os.environ.pop(name, None) for name in values}
    os.environ |= {name: value for name, value in values.items() if value is not None}
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        os.environ |= {name: value for name, value in former.items() if value is not None}
