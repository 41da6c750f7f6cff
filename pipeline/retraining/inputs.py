"""Input of a retraining: a commit, changed params, new batches and the files of `dataset.path`."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.batches.incoming import read_digest, read_digests, read_pointers
from pipeline.batches.quarantine import read_quarantine
from pipeline.data.batches import INCOMING, POINTER
from pipeline.errors import FlowError, ParamsError
from pipeline.files import parse_yaml
from pipeline.git import git
from pipeline.params import PARAMS_FILE, Params, parse_params
from pipeline.retraining.params import RetrainParams


@dataclass(frozen=True)
class RetrainingInput:
    """If a finished retraining has an input with the same digest, nothing is new."""

    commit: str
    tree: str  # the project's git tree: merging a retraining leads to the same tree
    changes: Mapping[str, Any]  # dotted key: value of a param that differs from the commit's
    dataset_files: str  # DVC's digest of the files of `dataset.path`; empty for none
    batches: Mapping[str, str]  # name: DVC's digest, of batches that HEAD and the commit lack

    @property
    def digest(self) -> str:
        content = [self.tree, self.changes, self.dataset_files, self.batches]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def digest_after_merge(self, tree: str) -> str:
        """Compute the digest of the input after the resulting tree is merged."""
        return replace(self, tree=tree, changes={}, batches={}).digest


def read_input(
    workspace: Path, root: Path, ref: str | None, changes: Mapping[str, Any], *, with_quarantined: bool
) -> RetrainingInput:
    """Read the input of a retraining from git and from the user's tree.

    Args:
        root: the main repository.
        ref: branch, tag or commit. None means `retrain.ref`, or the current branch if that is empty.
        changes: values of params by dotted key.
        with_quarantined: include quarantined batches.

    Raises:
        ParamsError: the changes, or the params of the ref, cannot be used.
        FlowError: there is no such ref.
        OSError: the files of `dataset.path` cannot be read.
    """
    ref = ref or read_params(workspace).section(RetrainParams).ref or "HEAD"
    try:
        commit = git(workspace, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    except FlowError:
        raise FlowError(
            f"there is no commit {ref!r} in this repository",
            expected="a branch, a tag or a commit, by retrain.ref or --ref",
            remedy="git fetch, or commit first; git branch --all lists the branches",
        ) from None
    content = _read_raw_params(workspace, commit, ref)
    differing = {key: value for key, value in changes.items() if set_param(content, key, value)}
    place = workspace / parse_params(content, f"{PARAMS_FILE} of {ref}", of_commit=True).dataset.path
    is_tracked = place.with_name(f"{place.name}{POINTER}").exists()  # then the commit's pointer selects the content
    has_files = not is_tracked and place.is_dir() and any(not path.name.startswith(".") for path in place.iterdir())
    return RetrainingInput(
        commit,
        git(workspace, "rev-parse", f"{commit}:./"),
        differing,
        read_digest(root, place) if has_files else "",
        _find_new_batches(workspace, root, commit, with_quarantined=with_quarantined),
    )


def read_params(workspace: Path) -> Params:
    """Read the params of HEAD. The file in the working tree is not read: it may be half edited.

    Raises:
        ParamsError: they cannot be used.
        FlowError: there is no commit.
    """
    return parse_params(_read_raw_params(workspace, "HEAD", "HEAD"), f"{PARAMS_FILE} of HEAD", of_commit=True)


def set_param(params: Any, key: str, value: Any) -> bool:
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


def _read_raw_params(workspace: Path, commit: str, ref: str) -> Any:
    try:
        return parse_yaml(git(workspace, "show", f"{commit}:./{PARAMS_FILE}"))
    except ValueError as error:
        remedy = f"correct {PARAMS_FILE} and commit it, or choose another commit: pipeline retrain --ref"
        raise ParamsError(f"{PARAMS_FILE} of {ref} is not YAML", found=str(error), remedy=remedy) from None


def _find_new_batches(workspace: Path, root: Path, commit: str, *, with_quarantined: bool) -> dict[str, str]:
    """Find the batches in data/incoming/ whose content neither HEAD nor the commit has."""
    present, _ = read_digests(root, workspace / INCOMING)
    if not present:
        return {}
    pointers, of_commit = (read_pointers(workspace, at) for at in ("HEAD", commit))
    excluded = {} if with_quarantined else read_quarantine(root)
    return {
        name: digest
        for name, digest in present.items()
        if digest not in (pointers.get(name), of_commit.get(name)) and digest not in excluded
    }
