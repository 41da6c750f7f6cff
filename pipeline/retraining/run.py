"""Unattended retraining: take in new batches and commits, train and judge a model, create a branch.

The retraining runs in a separate checkout (`pipeline.checkout`); the user's working tree does not change. It can be
killed at any moment: the commit that its runs name is in the user's repository before they start, completed stages
are in DVC's cache, and an interrupted training resumes from its checkpoint.
"""

import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, chdir, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.batches.quarantine import (
    Quarantined,
    copy_files,
    copy_whole,
    find_quarantined,
    quarantine,
    read_digest,
    read_digests,
    read_pointers,
    read_quarantine,
    release,
    remove,
)
from pipeline.checkout import RETRAININGS, checkout, remove_left_behind
from pipeline.data.batches import INCOMING, POINTER
from pipeline.dvc import TRANSFER_SECONDS, run_in_checkout, site_cache
from pipeline.errors import DataError, FlowError, ParamsError, PipelineError, WorkspaceError
from pipeline.files import atomic_file, parse_yaml
from pipeline.flows.run import IfBusy
from pipeline.git import (
    AUTHOR,
    OF_ANOTHER_COMMAND,
    SET_AUTHOR,
    commit,
    git,
    lacks_author,
    require_repository,
    telling_line,
)
from pipeline.params import PARAMS_FILE, Params, load_params, parse_params
from pipeline.process import signals_as_exceptions
from pipeline.retraining import branches
from pipeline.retraining.branches import Branch
from pipeline.retraining.params import RetrainParams
from pipeline.tracking.outputs import dvc_digest
from pipeline.workspace import STATE, lock, main_repository

if TYPE_CHECKING:
    from pipeline.batches.inspection import Known
    from pipeline.data.table import Dataset
    from pipeline.registry.registration import Registration

Push = Literal["auto", "never"]
Outcome = Literal["nothing new", "champion", "challenger", "not promoted", "rejected", "failed", "skipped"]

HISTORY = STATE / "retraining"  # in the main repository: a directory for each report, and the log
LOG = HISTORY / "log.jsonl"
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


@dataclass(frozen=True)
class _Input:
    """Input of a retraining. If a finished retraining has the same digest, nothing is new."""

    commit: str
    tree: str  # the project's git tree: merging a retraining leads to the same tree
    changes: Mapping[str, Any]  # dotted key: value of a param that differs from the commit's
    local: str  # digest of the files of `dataset.path`; empty for none
    own: Mapping[str, str]  # batch name: digest, of batches that HEAD and the commit lack

    @property
    def digest(self) -> str:
        content = [self.tree, self.changes, self.local, self.own]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def once_merged(self, tree: str) -> str:
        """Compute the digest of the input after the resulting tree is merged."""
        return replace(self, tree=tree, changes={}, own={}).digest


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
            skipped = Retraining("skipped", f"another retraining is going on: {busy.found}")
            return _log(root, skipped, reason)
        stack.enter_context(signals_as_exceptions())
        stack.enter_context(_environment(dict.fromkeys(OF_ANOTHER_COMMAND)))
        try:
            remove_left_behind(root, RETRAININGS)
            result = _Work(workspace, root, reason, force, quiet, push).do(ref, changes)
        except (PipelineError, OSError) as error:
            _log(root, Retraining("failed", str(error)), reason)
            raise
        return _log(root, result, reason)


@dataclass
class _Work:
    """A retraining that holds the lock of its repository."""

    workspace: Path
    root: Path
    why: str
    force: bool
    quiet: bool
    push: Push | None
    known: list[Branch] = field(default_factory=list)
    fresh: list[Quarantined] = field(default_factory=list)  # quarantined by this retraining
    arriving: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)  # batch name: reason
    taken: tuple[str, ...] = ()

    def do(self, ref: str | None, changes: Mapping[str, Any]) -> Retraining:
        self.push = self.push or self._read_push()
        given = self._read_input(ref, changes)
        try:
            result = self._retrain(given)
        except (PipelineError, OSError) as error:
            result = self._give_up(error, given)
        return self._push(result)

    def _retrain(self, given: _Input) -> Retraining:
        branches.require_room(self.workspace)
        self.known = branches.read_branches(self.workspace)
        if self._is_done(given):
            return self._nothing_new()
        unfinished = self._find_unfinished(given)
        start = unfinished.commit if unfinished else given.commit
        with checkout(self.workspace, start, place=RETRAININGS) as directory, _entered(directory):
            self._bring_local_files(directory, given)
            self._bring_contents(directory, {} if unfinished else given.own)
            own = given.own if unfinished else self._take_in(directory, given.own)
            self.taken, given = tuple(own), replace(given, own=own)
            if self._is_done(given):
                return self._nothing_new()
            name = self._commit_input(directory, given, unfinished)
            self._announce(name)
            return self._train(directory, given, name)

    def _read_push(self) -> Push:
        """Read `retrain.push` from the current branch, even if another commit is retrained: it is the user's choice."""
        try:
            return self._params_of("HEAD", "HEAD")[1].section(RetrainParams).push
        except (FlowError, ParamsError) as error:
            self._say(f"nothing will be pushed, because retrain.push cannot be read: {error.problem}")
            return "never"

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr if self.quiet else sys.stdout, flush=True)

    def _read_input(self, ref: str | None, changes: Mapping[str, Any]) -> _Input:
        ref = ref or self._params_of("HEAD", "HEAD")[1].section(RetrainParams).ref or "HEAD"
        try:
            sha = git(self.workspace, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
        except FlowError:
            raise FlowError(
                f"there is no commit {ref!r} in this repository",
                expected="a branch, a tag or a commit, by retrain.ref or --ref",
                remedy="git fetch, or commit first; git branch --all shows what there is",
            ) from None
        content, _ = self._params_of(sha, ref)
        differing = {key: value for key, value in changes.items() if _change(content, key, value)}
        dataset = parse_params(content, f"{PARAMS_FILE} of {ref}", of_commit=True).dataset
        place = self.workspace / dataset.path
        holds_files = place.is_dir() and any(not path.name.startswith(".") for path in place.iterdir())
        local = read_digest(self.root, place) if holds_files else ""
        return _Input(sha, git(self.workspace, "rev-parse", f"{sha}:./"), differing, local, self._find_own(sha))

    def _params_of(self, sha: str, ref: str) -> tuple[Any, Params]:
        """Read a commit's params, raw and parsed. The file in the working tree is not read: it may be half edited."""
        try:
            content = parse_yaml(git(self.workspace, "show", f"{sha}:./{PARAMS_FILE}"))
        except ValueError as error:
            remedy = f"correct {PARAMS_FILE} and commit it, or name another commit: pipeline retrain --ref"
            raise ParamsError(f"{PARAMS_FILE} of {ref} is not YAML", found=str(error), remedy=remedy) from None
        return content, parse_params(content, f"{PARAMS_FILE} of {ref}", of_commit=True)

    def _find_own(self, sha: str) -> dict[str, str]:
        """Find new batches in data/incoming/: neither HEAD nor the retrained commit has their content."""
        present, _ = read_digests(self.root, self.workspace / INCOMING)
        if not present:
            return {}
        pointers = read_pointers(self.workspace, "HEAD")
        of_ref = read_pointers(self.workspace, sha)
        bad = {} if self.force else read_quarantine(self.root)
        return {
            name: digest
            for name, digest in present.items()
            if digest not in (pointers.get(name), of_ref.get(name)) and digest not in bad
        }

    def _is_done(self, given: _Input) -> bool:
        done = {branch.trailers.get(key) for branch in self.known for key in (branches.INPUT, branches.RESULT)}
        return given.digest in done and not self.force

    def _nothing_new(self) -> Retraining:
        result = Retraining("nothing new", "No commit, batch or parameter is new since a retraining that ended.")
        return self._with_batches(result)

    def _find_unfinished(self, given: _Input) -> Branch | None:
        """Find an unfinished retraining of the same input. Its commit is reused, because its runs name it."""
        ends = [branch for branch in self.known if branch.trailers.get(branches.TAKES) == given.digest]
        return next((branch for branch in ends if branches.OUTCOME not in branch.trailers), None)

    def _bring_local_files(self, directory: Path, given: _Input) -> None:
        """Copy the files of `dataset.path`, which are not in git."""
        place = load_params(directory / PARAMS_FILE, of_commit=True).dataset.path
        if not given.local or Path(place).is_absolute():
            return
        copy_files(self.workspace / place, directory / place)
        if dvc_digest(directory / place) != given.local:
            raise FlowError(f"the files in {place} changed while they were copied", remedy="pipeline retrain, later")

    def _bring_contents(self, directory: Path, own: Mapping[str, str]) -> None:
        """Restore the data of the commit from DVC's cache; batches also from the user's tree or a remote."""
        if not run_in_checkout(directory, "checkout")[0]:  # also restores stage outputs that are in the cache
            return
        wanted = {name: digest for name, digest in read_pointers(directory, "HEAD").items() if name not in own}
        here, _ = read_digests(self.root, self.workspace / INCOMING)
        for name, digest in wanted.items():
            source, target = self.workspace / INCOMING / name, directory / INCOMING / name
            if not target.exists() and here.get(name) == digest and copy_whole(source, target, digest):
                run_in_checkout(directory, "commit", "--force", f"{target}{POINTER}")
        missing = [f"{INCOMING / name}{POINTER}" for name in wanted if not (directory / INCOMING / name).exists()]
        ended, lines = run_in_checkout(directory, "pull", *missing, seconds=TRANSFER_SECONDS) if missing else (0, [])
        if ended:
            taken = shlex.join(missing)
            raise FlowError(
                f"the content of {', '.join(missing)} is not to be had",
                expected="it in DVC's cache, in a remote, or in data/incoming/",
                found=telling_line("\n".join(lines)),
                remedy=f"dvc push where the batch was added; or take it out: dvc remove {taken} && git commit --all",
            )

    def _take_in(self, directory: Path, own: Mapping[str, str]) -> dict[str, str]:
        """Add the user's valid batches to the checkout, like `pipeline add-data`; quarantine the others."""
        if not own:
            return {}
        from pipeline.batches.add import add_batch
        from pipeline.data.catalog import load_entry

        params = load_params()
        dataset, taken = load_entry(params.dataset.name).dataset, {}
        known = _read_known(directory, dataset)
        for name, digest in sorted(own.items()):
            target = INCOMING / name
            remove(target)  # the commit's version
            try:
                is_whole = copy_whole(self.workspace / INCOMING / name, target, digest)
            except PermissionError as error:  # the permissions changed after its digest was cached
                remove(target)
                self.unreadable[name] = error.strerror or str(error)
                continue
            if not is_whole:
                self.arriving.append(name)
            else:
                try:
                    added = add_batch(target.resolve(), name, dataset, params.validate, known)
                    known = known.with_batch(name, added.features)  # the next one must not repeat this one
                    taken[name] = digest
                    release(self.root, digest)
                    continue
                except DataError as error:
                    remove(target)
                    told = f"{error.problem}{': ' if error.found else ''}{' '.join(error.found.split())}"
                    self.fresh.append(quarantine(self.root, name, digest, told))
            pointer = Path(f"{target}{POINTER}")
            if pointer.exists() and run_in_checkout(directory, "checkout", str(pointer))[0]:
                run_in_checkout(directory, "pull", str(pointer), seconds=TRANSFER_SECONDS)
        self._tell_of_quarantined()
        return taken

    def _tell_of_quarantined(self) -> None:
        from pipeline.notices.send import notify

        for batch in self.fresh:
            notify("quarantined", f"batch {batch.name} is quarantined", batch.reason)

    def _commit_input(self, directory: Path, given: _Input, unfinished: Branch | None) -> str:
        """Commit the input, fetch the commit into the user's repository, and return its branch."""
        if unfinished:
            return unfinished.name
        name = branches.new_name(self.workspace)
        if given.changes:
            from dvc.utils.serialize import modify_yaml

            with modify_yaml(str(directory / PARAMS_FILE)) as content:  # comments stay
                for key, value in given.changes.items():
                    _change(content, key, value)
            git(directory, "add", str(PARAMS_FILE))
        if given.own:
            git(directory, "add", str(INCOMING))
        if git(directory, "diff", "--cached", "--name-only"):
            what = [
                *(f"batch {batch}" for batch in given.own),
                *(f"{key}: {value}" for key, value in given.changes.items()),
            ]
            message = f"Retrain with {', '.join(what)}\n\n{branches.TAKES}: {given.digest}\n"
            commit(directory, message, author_of=self.workspace)
            branches.bring(self.workspace, directory, name)
        return name

    def _announce(self, name: str) -> None:
        """Print the author of the commits and where they will be pushed, before anything runs."""
        if lacks_author(self.workspace):
            self._say(f"git has no author configured: {AUTHOR['user.name']} will be the commits' ({SET_AUTHOR})")
        if self.push != "never" and (where := branches.describe_push(self.workspace)):
            self._say(f"{name} will be pushed at the end: {where}; to keep it here: pipeline retrain --push never")

    def _train(self, directory: Path, given: _Input, name: str) -> Retraining:
        from pipeline.flows.run import run_training
        from pipeline.flows.summary import Summary
        from pipeline.registry.registration import judged_versions
        from pipeline.registry.sync import sync

        head, before = git(directory, "rev-parse", "HEAD"), judged_versions(directory)
        run_training(directory, until=None, force=None, if_busy="wait", quiet=self.quiet)
        synced = sync(directory)
        summary, registration = Summary((), synced, True), synced.registration
        if registration:
            # If this retraining (or its interrupted first start) made the commit, the commit's model is new.
            is_own = head != given.commit and registration.commit == head
            is_new = is_own or (registration.name, registration.version) not in before
            outcome, reason = read_decision(registration, is_new=is_new)
            result = Retraining(outcome, reason, name, registration.version)
        else:
            result = Retraining("not promoted", "The stages ended without a model that can be registered.", name)
        result = self._with_batches(replace(result, taken=tuple(given.own)))
        facts, links = dict(summary.describe()), summary.links()
        result = self._report(result, given, facts, links)
        if registration:
            # Notify before the commit: after a kill between them, the next start notifies again.
            self._tell_of_decision(registration, result, links)
        self._commit_result(directory, given, result, registration)
        return result

    def _commit_result(
        self, directory: Path, given: _Input, result: Retraining, registration: "Registration | None"
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
            branches.RESULT: given.once_merged(tree),
            branches.OUTCOME: result.outcome,
            **({branches.PUSH: branches.NEVER} if self.push == branches.NEVER else {}),
        }
        if registration and registration.version:
            trailers[branches.VERSION] = _full_name(registration)
        lines = "\n".join(f"{key}: {value}" for key, value in trailers.items())
        message = f"Lock what the retraining made: {result.outcome}\n\n{result.reason}\n\n{lines}\n"
        commit(directory, message, author_of=self.workspace)
        branches.bring(self.workspace, directory, result.branch)

    def _tell_of_decision(self, registration: "Registration", result: Retraining, links: Mapping[str, str]) -> None:
        """Notify about the decision. Skip models that existed before or that an earlier retraining announced."""
        from pipeline.notices.send import notify_of_decision

        told = {branch.trailers.get(branches.VERSION) for branch in self.known if branches.OUTCOME in branch.trailers}
        if result.reason == registration.decision.reason and _full_name(registration) not in told:
            notify_of_decision(registration, links)

    def _give_up(self, error: PipelineError | OSError, given: _Input) -> Retraining:
        from pipeline.notices.send import notify_of_failure
        from pipeline.stages.entrypoint import explain

        told = explain(error) if isinstance(error, OSError) else error
        notify_of_failure("retrain", told)
        return self._report(self._with_batches(Retraining("failed", str(told), taken=self.taken)), given, {}, {})

    def _with_batches(self, result: Retraining) -> Retraining:
        digests, unreadable = read_digests(self.root, self.workspace / INCOMING)
        quarantined = tuple(find_quarantined(self.root, digests))
        return replace(
            result, quarantined=quarantined, arriving=tuple(self.arriving), unreadable=unreadable | self.unreadable
        )

    def _report(
        self, result: Retraining, given: _Input, facts: Mapping[str, str], links: Mapping[str, str]
    ) -> Retraining:
        stamp = result.branch or branches.new_name(self.workspace)
        page = self.root / HISTORY / stamp.removeprefix(branches.PREFIX) / REPORT
        about = {"started": self.why, "commit": given.commit}
        about |= {f"param {key}": str(value) for key, value in given.changes.items()}
        lines = [f"- **{name}**: {text}" for name, text in (*about.items(), *result.describe(), *facts.items())]
        lines += [f"- [{name}]({address})" for name, address in links.items()]
        with atomic_file(page) as partial:
            partial.write_text(
                "\n".join([f"# Retraining {page.parent.name}: {result.outcome}", "", *lines, ""]), "utf-8"
            )
        _publish(page)
        return replace(result, report=page)

    def _push(self, result: Retraining) -> Retraining:
        """Push finished branches. Call this outside the checkout: pushing data creates another one."""
        if self.push == "never":
            return result
        return replace(result, warnings=branches.push_missing(self.workspace, self.root, self._say))


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
    stands = decision.outcome != "champion" or decision.outcome in registration.aliases
    if decision.outcome == "rejected" or (is_new and stands):
        return decision.outcome, decision.reason
    there = "is no longer the champion" if is_new else "was there before this retraining"
    return (
        "not promoted",
        f"The model is {describe_version(registration)}, which {there}. Decided then: {decision.reason}",
    )


def _full_name(registration: "Registration") -> str:
    """Name of a model version, unique across datasets."""
    return f"{registration.name}/{registration.version}"


def _read_known(directory: Path, dataset: "Dataset") -> "Known":
    """Read the images of the checked-out commit, which a new batch must not repeat.

    Raises:
        FlowError: they are not available, and `ingest` cannot make them.
    """
    from pipeline.batches.add import TABLES
    from pipeline.batches.inspection import read_known

    if (known := read_known(TABLES, dataset)).test:
        return known
    run_in_checkout(directory, "pull", "ingest", seconds=TRANSFER_SECONDS)
    if (known := read_known(TABLES, dataset)).test:
        return known
    ended, lines = run_in_checkout(directory, "repro", "--single-item", "ingest")
    if ended:
        raise FlowError(
            "the images that a new batch must not repeat are not to be had",
            expected=f"{TABLES} of this commit in DVC's cache or in a remote, or that ingest can make it",
            found="\n".join(lines),
            remedy="pipeline run, or dvc pull; then pipeline retrain",
        )
    return read_known(TABLES, dataset)


def _publish(page: Path) -> None:
    """Attach a report to the current Prefect flow run, if there is one."""
    if "prefect.context" in sys.modules:
        from prefect.artifacts import create_markdown_artifact
        from prefect.context import FlowRunContext

        if FlowRunContext.get():
            create_markdown_artifact(page.read_text("utf-8"), key="retraining")


@contextmanager
def _entered(directory: Path) -> Iterator[None]:
    """Change to a temporary directory for a block, with DVC's site cache inside it."""
    with _environment({"DVC_SITE_CACHE_DIR": str(site_cache(directory))}), chdir(directory):
        yield


@contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables for a block; unset those whose value is None."""
    former = {name: os.environ.get(name) for name in values}
    _set_environment(values)
    try:
        yield
    finally:
        _set_environment(former)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _change(params: Any, key: str, value: Any) -> bool:
    """Set a parameter by its dotted key. Returns True if the value changed.

    Raises:
        ParamsError: the key does not exist.
    """
    *sections, last = key.split(".")
    for section in sections:
        params = params.get(section) if isinstance(params, Mapping) else None
    if not isinstance(params, Mapping) or last not in params:
        raise ParamsError(
            f"{key} is no key of {PARAMS_FILE}", expected="a dotted key, such as train.preset", remedy="pipeline schema"
        )
    differs = params[last] != value
    params[last] = value  # type: ignore[index]
    return bool(differs)


def _log(root: Path, result: Retraining, reason: str) -> Retraining:
    """Append a retraining, even a skipped one, to the log of the main repository."""
    entry: dict[str, str | None] = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "started": reason,
        "outcome": result.outcome,
    }
    entry |= {"reason": result.reason, "branch": result.branch, "version": result.version}
    (root / LOG).parent.mkdir(parents=True, exist_ok=True)
    with (root / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    return result
