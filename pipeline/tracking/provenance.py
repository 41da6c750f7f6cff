"""Provenance of a model: its code, environment, machine and data, as tags of its run."""

import getpass
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

from pipeline.data.batches import INCOMING, POINTER
from pipeline.files import file_digest, parse_yaml
from pipeline.models.cpu_features import read_processor
from pipeline.tracking.stage_outputs import DATASET, RAW, Outputs, dvc_digest

LARGEST_UNTRACKED_FILE = 1 << 20  # bytes; larger files are probably data, and only their names are recorded
LARGEST_DIFF = 10 << 20  # bytes
PACKAGES = ("tensorflow", "keras", "ai-edge-litert", "numpy", "mlflow", "dvc")

COMMIT_TAG = "mlflow.source.git.commit"
BATCH_TAG = "data.batch."  # followed by the MD5 of a batch; its name may have characters that a tag's key cannot have

_SCOPE = ("--", ".", ":(exclude)dvc.lock")


@dataclass(frozen=True)
class Tree:
    """A git work tree: its commit and its uncommitted changes."""

    commit: str
    diff: bytes = b""  # for `git apply` on the commit; empty if the tree is clean, or the diff too large to record
    left_out: tuple[str, ...] = ()  # files too large for the diff; `.`: the whole diff is too large

    @property
    def dirty(self) -> bool:
        return bool(self.diff or self.left_out)


def read_tree(workspace: Path) -> Tree | None:
    """Read a workspace's commit and its uncommitted changes. Returns None if the project is not in git.

    Excludes `dvc.lock`, because the stages before `train` have just written it. Includes untracked files, which may
    contain code of the training. Passwords must therefore be in files that git ignores.
    """
    try:
        commit = _git(workspace, "rev-parse", "--verify", "--quiet", "HEAD").decode().strip()
        _git(workspace, "rev-parse", "--verify", "--quiet", "HEAD:./dvc.yaml")  # not in an unrelated repository
    except (subprocess.CalledProcessError, FileNotFoundError):
        return None
    listing = ("status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=all")
    changes = os.fsdecode(_git(workspace, *listing, *_SCOPE)).split("\0")[:-1]
    if not changes:
        return Tree(commit)
    top = Path(os.fsdecode(_git(workspace, "rev-parse", "--show-toplevel")).rstrip("\n"))
    # `A`: in the index but not in the commit, such as the pointer of a new batch.
    unknown = [change[3:] for change in changes if change.startswith("??") or "A" in change[:2]]
    new = [name for name in unknown if os.path.lexists(top / name)]
    large = tuple(name for name in new if _is_large(top / name))
    diff = _diff(workspace, top, [name for name in new if name not in large])
    return Tree(commit, diff, large) if len(diff) <= LARGEST_DIFF else Tree(commit, b"", (".",))


def environment_tags(workspace: Path) -> dict[str, str]:
    """Return tags with the versions of the main packages and of Python, and the digest of `requirements.lock`."""
    tags = {f"version.{package}": version(package) for package in PACKAGES}
    lock = workspace / "requirements.lock"
    return {
        **tags,
        "version.python": platform.python_version(),
        **({"environment.lock": file_digest(lock)} if lock.is_file() else {}),
    }


def host_tags() -> dict[str, str]:
    """Return tags for the machine and its user. They are not params, because they do not define the training."""
    processor = read_processor()
    return {
        "mlflow.user": user(),
        "host.name": platform.node(),
        "host.platform": platform.platform(),
        "host.cpu": processor.name,
        "host.cpu_features": " ".join(processor.features),
        "host.cores": str(len(psutil.Process().cpu_affinity()) if sys.platform == "linux" else os.cpu_count()),
        "host.memory_gib": f"{psutil.virtual_memory().total / 2**30:.0f}",
    }


def tree_tags(tree: Tree | None) -> dict[str, str]:
    """Return tags for the commit and its uncommitted changes. Empty if the project is not in git."""
    if tree is None:
        return {}
    tags = {COMMIT_TAG: tree.commit, "git.dirty": str(tree.dirty).lower()}
    return tags | ({"git.left_out": " ".join(tree.left_out)} if tree.left_out else {})


def data_tags(outputs: Outputs, splits: Mapping[str, str]) -> dict[str, str]:
    """Return tags for the data that some splits were made from.

    Reads `dvc.lock`, which has the stages before `train` by then. If a single stage was run, it may describe other
    splits. The result is then empty.

    Args:
        splits: MD5 by name of the splits that were read.

    Returns:
        `data.raw`, `data.dataset`, and `data.batch.MD5` with the name of each batch.
    """
    ingest, split = outputs.locked("ingest"), outputs.locked("split")
    same_splits = all(split.get(f"data/splits/{name}.parquet") == digest for name, digest in splits.items())
    if not same_splits or not ingest.get(DATASET) or split.get(DATASET) != ingest[DATASET]:
        return {}
    incoming = outputs.root / INCOMING
    same_batches = incoming.is_dir() and dvc_digest(incoming, hidden=False) == ingest.get(INCOMING.as_posix())
    batches = _read_pointers(incoming) if same_batches else {}
    return {
        "data.raw": ingest[RAW],
        "data.dataset": ingest[DATASET],
        **{f"{BATCH_TAG}{digest}": name for name, digest in batches.items()},
    }


def _read_pointers(incoming: Path) -> dict[str, str]:
    """Read the MD5 of each batch from DVC's pointers, by the batch's name."""
    pointers = [parse_yaml(path.read_text(encoding="utf-8")) for path in sorted(incoming.glob(f"*{POINTER}"))]
    return {out["path"]: out["md5"] for pointer in pointers for out in pointer["outs"]}


def _diff(workspace: Path, top: Path, new: list[str]) -> bytes:
    """Return a diff of tracked and new files. Uses a temporary index and object store."""
    with tempfile.TemporaryDirectory() as scratch:
        objects = os.fsdecode(_git(workspace, "rev-parse", "--git-path", "objects")).rstrip("\n")
        temporary = {
            "GIT_INDEX_FILE": f"{scratch}/index",
            "GIT_OBJECT_DIRECTORY": scratch,
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str((workspace / objects).resolve()),
        }
        _git(top, "read-tree", "HEAD", environment=temporary)
        _git(top, "add", "--update", environment=temporary)
        if new:
            names = "\0".join(new).encode(errors="surrogateescape")
            _git(top, "--literal-pathspecs", "add", "--pathspec-from-file=-", "--pathspec-file-nul",
                 environment=temporary, stdin=names)  # fmt: skip
        # All options are explicit, because the user's git configuration may produce a diff that `git apply` rejects.
        return _git(workspace, "diff", "--cached", "--binary", "--no-color", "--no-ext-diff", "--no-renames",
                    "--no-relative", "--src-prefix=a/", "--dst-prefix=b/", "HEAD", *_SCOPE,
                    environment=temporary)  # fmt: skip


def _git(
    directory: Path, *arguments: str, environment: Mapping[str, str] | None = None, stdin: bytes | None = None
) -> bytes:
    command = ["git", "--no-optional-locks", "-C", str(directory), *arguments]
    variables = os.environ | (environment or {})
    return subprocess.run(command, env=variables, input=stdin, capture_output=True, check=True).stdout


def _is_large(path: Path) -> bool:
    """Return True for a large file, and for a directory: in git's list of new files, that is another repository."""
    return path.is_dir() or path.lstat().st_size > LARGEST_UNTRACKED_FILE


def user() -> str:
    """Return the name of the current user, or else the user id."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, the user id may have no name
        return str(os.getuid())
