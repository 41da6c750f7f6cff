"""What a model came from: code, environment and machine, as facts that the tags of a run can hold."""

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
from pipeline.models.processor import read_processor
from pipeline.tracking.outputs import DATASET, RAW, Outputs, dvc_digest

LARGEST_UNTRACKED_FILE = 1 << 20  # bytes; a larger one is data that somebody forgot to ignore, and is only named
LARGEST_DIFF = 10 << 20  # bytes
PACKAGES = ("tensorflow", "keras", "numpy", "mlflow", "dvc")

COMMIT_TAG = "mlflow.source.git.commit"
BATCH_TAG = "data.batch."  # followed by the MD5 of a batch's content: a name may hold what no tag's may

_SCOPE = ("--", ".", ":(exclude)dvc.lock")


@dataclass(frozen=True)
class Tree:
    """A git work tree: a commit, and how it differs from it."""

    commit: str
    diff: bytes = b""  # turns the commit into this tree with `git apply`; empty when clean, or when too large to keep
    left_out: tuple[str, ...] = ()  # files too large for the diff; `.` when that is all of it

    @property
    def dirty(self) -> bool:
        return bool(self.diff or self.left_out)


def read_tree(workspace: Path) -> Tree | None:
    """The commit that a workspace stands on and what differs from it; None where git does not know the project.

    `dvc.lock` does not count: the stages before `train` have just written it. Files that are new to git do, unless they
    are ignored: they may hold code that trains. So what git does not ignore is recorded: no place for a password.
    """
    try:
        commit = _git(workspace, "rev-parse", "--verify", "--quiet", "HEAD").decode().strip()
        _git(workspace, "rev-parse", "--verify", "--quiet", "HEAD:./dvc.yaml")  # not merely inside another repository
    except (subprocess.CalledProcessError, FileNotFoundError):
        return None
    listing = ("status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=all")
    changes = os.fsdecode(_git(workspace, *listing, *_SCOPE)).split("\0")[:-1]
    if not changes:
        return Tree(commit)
    top = Path(os.fsdecode(_git(workspace, "rev-parse", "--show-toplevel")).rstrip("\n"))
    # `A`: in the index already, as `pipeline add-data` leaves a batch's pointer, and not in the commit.
    unknown = [change[3:] for change in changes if change.startswith("??") or "A" in change[:2]]
    new = [name for name in unknown if os.path.lexists(top / name)]
    large = tuple(name for name in new if _is_large(top / name))
    diff = _diff(workspace, top, [name for name in new if name not in large])
    return Tree(commit, diff, large) if len(diff) <= LARGEST_DIFF else Tree(commit, b"", (".",))


def environment_tags(workspace: Path) -> dict[str, str]:
    """The versions that compute, and the digest of the file that pins them all."""
    tags = {f"version.{package}": version(package) for package in PACKAGES}
    lock = workspace / "requirements.lock"
    return {
        **tags,
        "version.python": platform.python_version(),
        **({"environment.lock": file_digest(lock)} if lock.is_file() else {}),
    }


def host_tags() -> dict[str, str]:
    """The machine and who uses it. Tags and not params: they tell runs apart, they do not define them."""
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
    """Where the code came from; nothing where git does not know it."""
    if tree is None:
        return {}
    tags = {COMMIT_TAG: tree.commit, "git.dirty": str(tree.dirty).lower()}
    return tags | ({"git.left_out": " ".join(tree.left_out)} if tree.left_out else {})


def data_tags(outputs: Outputs, splits: Mapping[str, str]) -> dict[str, str]:
    """What some splits were made from: the digests by which a version is found again from its data.

    While `train` runs, `dvc.lock` tells of the stages before it. It need not tell of these very splits, where somebody
    ran a single stage; then nothing is said.

    Args:
        splits: MD5 by name of the splits that were read.

    Returns:
        `data.raw`, `data.dataset`, and `data.batch.MD5` with the name of each batch in it.
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
    """MD5 of each batch by its name, as DVC's pointers have it."""
    pointers = [parse_yaml(path.read_text(encoding="utf-8")) for path in sorted(incoming.glob(f"*{POINTER}"))]
    return {out["path"]: out["md5"] for pointer in pointers for out in pointer["outs"]}


def _diff(workspace: Path, top: Path, new: list[str]) -> bytes:
    """Of known and new files alike, through an index and an object store that are thrown away afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        objects = os.fsdecode(_git(workspace, "rev-parse", "--git-path", "objects")).rstrip("\n")
        aside = {
            "GIT_INDEX_FILE": f"{scratch}/index",
            "GIT_OBJECT_DIRECTORY": scratch,
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str((workspace / objects).resolve()),
        }
        _git(top, "read-tree", "HEAD", environment=aside)
        _git(top, "add", "--update", environment=aside)
        if new:
            names = "\0".join(new).encode(errors="surrogateescape")
            _git(top, "--literal-pathspecs", "add", "--pathspec-from-file=-", "--pathspec-file-nul",
                 environment=aside, stdin=names)  # fmt: skip
        # Spelt out, because `git apply` must be able to read it whatever a user's configuration asks of a diff.
        return _git(workspace, "diff", "--cached", "--binary", "--no-color", "--no-ext-diff", "--no-renames",
                    "--no-relative", "--src-prefix=a/", "--dst-prefix=b/", "HEAD", *_SCOPE,
                    environment=aside)  # fmt: skip


def _git(
    directory: Path, *arguments: str, environment: Mapping[str, str] | None = None, stdin: bytes | None = None
) -> bytes:
    command = ["git", "--no-optional-locks", "-C", str(directory), *arguments]
    variables = os.environ | (environment or {})
    return subprocess.run(command, env=variables, input=stdin, capture_output=True, check=True).stdout


def _is_large(path: Path) -> bool:
    """A directory in git's list of new files is another repository: not ours to keep."""
    return path.is_dir() or path.lstat().st_size > LARGEST_UNTRACKED_FILE


def user() -> str:
    """Who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return str(os.getuid())
