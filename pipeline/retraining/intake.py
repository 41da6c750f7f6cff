"""Intake of a retraining: restore the data of its commit in the checkout, and take in new batches."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.batches.incoming import copy_if_complete, read_digests, read_pointers, remove
from pipeline.batches.quarantine import quarantine, release
from pipeline.data.batches import INCOMING, POINTER
from pipeline.dvc import TRANSFER_SECONDS, run_in_checkout
from pipeline.errors import DataError, FlowError
from pipeline.flows.temporary_checkout_data import (
    dataset_path,
    dataset_pointer,
    provide_dataset_files,
    restore,
)
from pipeline.git import find_reason
from pipeline.params import load_params
from pipeline.retraining.inputs import RetrainingInput

if TYPE_CHECKING:
    from pipeline.batches.inspection import Known
    from pipeline.data.features import Features
    from pipeline.data.table import Dataset
    from pipeline.params import ValidateParams


@dataclass
class Intake:
    """Data that a retraining copies to its checkout, the current directory."""

    workspace: Path
    root: Path  # the main repository
    taken: dict[str, str] = field(default_factory=dict)  # new batches, name: DVC's digest
    arriving: list[str] = field(default_factory=list)  # batches that changed while they were copied
    unreadable: dict[str, str] = field(default_factory=dict)  # batch name: reason

    def restore_commit(self, directory: Path, given: RetrainingInput, except_for: Mapping[str, str]) -> None:
        """Restore the data of the commit: the files of `dataset.path`, outputs from DVC's cache, and batches.

        Batches come from DVC's cache, from the user's tree or from a remote.

        Args:
            except_for: names of batches that are not needed.

        Raises:
            FlowError: the content of a batch or of imported data cannot be found, or the files of `dataset.path` are
                changing.
        """
        if given.dataset_files and not provide_dataset_files(self.workspace, directory, given.dataset_files):
            place = dataset_path(directory)
            raise FlowError(f"the files in {place} changed while they were copied", remedy="pipeline retrain, later")
        if not run_in_checkout(directory, "checkout")[0]:  # also restores stage outputs that are in the cache
            return
        own = dataset_pointer(directory)
        if (directory / own).exists() and not (directory / own).with_suffix("").exists():
            restored, lines = restore(directory, str(own), seconds=TRANSFER_SECONDS)
            if not restored:
                raise FlowError(
                    f"the content of {own} cannot be found",
                    expected="content in DVC's cache or in a remote",
                    found=find_reason("\n".join(lines)),
                    remedy="dvc push where the data was imported; then pipeline retrain",
                )
        wanted = {name: digest for name, digest in read_pointers(directory, "HEAD").items() if name not in except_for}
        present, _ = read_digests(self.root, self.workspace / INCOMING)
        for name, digest in wanted.items():
            source, target = self.workspace / INCOMING / name, directory / INCOMING / name
            if not target.exists() and present.get(name) == digest and copy_if_complete(source, target, digest):
                run_in_checkout(directory, "commit", "--force", f"{target}{POINTER}")
        missing = [f"{INCOMING / name}{POINTER}" for name in wanted if not (directory / INCOMING / name).exists()]
        restored, lines = restore(directory, *missing, seconds=TRANSFER_SECONDS) if missing else (True, [])
        if not restored:
            raise FlowError(
                f"the content of {', '.join(missing)} cannot be found",
                expected="content in DVC's cache, in a remote, or in data/incoming/",
                found=find_reason("\n".join(lines)),
                remedy="dvc push where the batch was added; or remove it: "
                f"dvc remove {shlex.join(missing)} && git commit --all",
            )

    def take_in(self, directory: Path, batches: Mapping[str, str]) -> None:
        """Add the user's valid batches to the checkout, like `pipeline add-data`; quarantine the others.

        Args:
            batches: DVC's digest by name.
        """
        from pipeline.data.catalog import load_entry
        from pipeline.data.thresholds import resolve_thresholds

        if not batches:
            return
        params = load_params()
        entry = load_entry(params.dataset.name)
        dataset, thresholds = entry.dataset, resolve_thresholds(params.validate, entry)
        known = _read_known(directory, dataset)
        for name, digest in sorted(batches.items()):
            remove(INCOMING / name)  # the commit's version
            is_copied = self._copy(name, digest)
            features = self._add(name, digest, dataset, thresholds, known) if is_copied else None
            if features:
                known = known.with_batch(name, features)  # the next one must not repeat this one
            elif (pointer := INCOMING / f"{name}{POINTER}").exists():
                restore(directory, str(pointer), seconds=TRANSFER_SECONDS)

    def _copy(self, name: str, digest: str) -> bool:
        """Copy a batch from the user's tree. Returns True if it was copied."""
        try:
            if copy_if_complete(self.workspace / INCOMING / name, INCOMING / name, digest):
                return True
            self.arriving.append(name)
        except PermissionError as error:  # the permissions changed after its digest was cached
            remove(INCOMING / name)
            self.unreadable[name] = error.strerror or str(error)
        return False

    def _add(
        self, name: str, digest: str, dataset: "Dataset", thresholds: "ValidateParams", known: "Known"
    ) -> "Features | None":
        """Add a copied batch. Returns the features of its images, or None if it is quarantined."""
        from pipeline.batches.add import add_batch
        from pipeline.events import record_event
        from pipeline.notices.send import notify

        path = INCOMING / name
        try:
            added = add_batch(path.resolve(), name, dataset, thresholds, known)
        except DataError as error:
            remove(path)
            reason = ": ".join(filter(None, [error.problem, " ".join(error.found.split())]))
            quarantine(self.root, name, digest, reason)
            record_event("batch.quarantined", {"batch": name, "reason": reason}, dataset=dataset.name, root=self.root)
            notify("quarantined", f"batch {name} is quarantined", reason)
            return None
        self.taken[name] = digest
        release(self.root, digest)
        return added.features


def _read_known(directory: Path, dataset: "Dataset") -> "Known":
    """Read the images of the checked-out commit, which a new batch must not repeat.

    Raises:
        FlowError: they cannot be found, and `ingest` cannot make them.
    """
    from pipeline.batches.add import TABLES
    from pipeline.batches.inspection import read_known

    if (known := read_known(TABLES, dataset)).test:
        return known
    run_in_checkout(directory, "pull", "ingest", seconds=TRANSFER_SECONDS)
    if (known := read_known(TABLES, dataset)).test:
        return known
    code, lines = run_in_checkout(directory, "repro", "--single-item", "ingest")
    if code:
        raise FlowError(
            "the images that a new batch must not repeat cannot be found",
            expected=f"{TABLES} of this commit in DVC's cache or in a remote, or sources for ingest",
            found="\n".join(lines),
            remedy="pipeline run, or dvc pull; then pipeline retrain",
        )
    return read_known(TABLES, dataset)
