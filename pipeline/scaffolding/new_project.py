"""Create a project from this one: a copy of the code under another name, without history, data and results."""

import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from pipeline.errors import WorkspaceError
from pipeline.files import atomic_directory
from pipeline.git import SET_AUTHOR, commit, git, lacks_author, require_repository
from pipeline.room_deletion import check_rooms, delete_rooms, edit, remove_from_docs, remove_paths
from pipeline.rooms import PACKAGE
from pipeline.workspace import lock, project_name

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
MOST_CHARACTERS = 64
# Not copied: results of this project, data that is only in its DVC cache, and tests of its releases.
LEFT_OUT = (
    "CITATION.cff",
    "benchmarks/*.md",
    "benchmarks/*.png",
    "data/incoming/*",
    "data/own/*",
    "data/local/*",
    "docs/measured.md",
    "tests/e2e/release_0_1_0.py",
    "tests/e2e/test_outputs_unchanged.py",
    "tests/e2e/test_upgrade_from_0_1_0.py",
)
PUBLIC_DATASET = "fashion-mnist"


@dataclass(frozen=True)
class Created:
    """A new project."""

    path: Path
    files: int
    commit: str  # SHA-1 of its first commit
    without: list[str]  # deleted rooms, with those that import them


def create_project(workspace: Path, name: str, directory: Path | None = None, without: Iterable[str] = ()) -> Created:
    """Create a project from the checkout `workspace`, with a git repository of one commit.

    The copy has the tracked files as they are in the working tree. The directory appears only when it is complete.

    Args:
        name: of the project: its package, download cache, container image and README.
        directory: absolute path of a directory that does not exist or is empty. Default: `name` beside the checkout.
        without: names of rooms to delete.

    Raises:
        WorkspaceError: the name, the directory or a room cannot be used, or git has no author.
        FlowError: `workspace` is not a git repository.
    """
    without = list(without)
    _check_code(workspace)
    _check_name(workspace, name)
    directory = directory or workspace.with_name(name)
    _check_directory(workspace, directory)
    check_rooms(without)
    require_repository(workspace)
    if lacks_author(workspace):
        raise WorkspaceError(
            "git has no author for the first commit", expected="user.name and user.email", remedy=SET_AUTHOR
        )
    origin = _describe_origin(workspace)
    with (
        lock("new project", wait=60, remedy="wait until it ends", root=workspace),
        atomic_directory(directory) as partial,
    ):
        left_out = list(_copy(workspace, partial))
        former = project_name()
        deleted = delete_rooms(partial, without)
        remove_from_docs(partial, left_out)
        _rename(partial, former, name)
        _remove_former_data(partial, origin, left_out, deleted)
        git(partial, "init", "--quiet")
        git(partial, "add", "--all", "--force")  # a user's own ignore rules must not remove files
        revision = commit(partial, f"Create {name}\n\nFrom {origin}.", author_of=workspace)
        files = len(git(partial, "ls-files").splitlines())
    return Created(directory, files, revision, deleted)


def _check_code(workspace: Path) -> None:
    """Refuse to run with the code of another checkout: it could have other rooms than the copy."""
    if workspace != PACKAGE.parent.resolve():
        raise WorkspaceError(
            "the running code belongs to another checkout",
            expected=f"the code of {workspace}",
            found=str(PACKAGE.parent),
            remedy="activate the environment of this checkout",
        )


def _check_name(workspace: Path, name: str) -> None:
    if not NAME.fullmatch(name) or len(name) > MOST_CHARACTERS:
        raise WorkspaceError(
            "cannot use this name for a project",
            expected=f"lower-case letters and digits, joined by single hyphens; at most {MOST_CHARACTERS} characters",
            found=name,
        )
    for path in workspace.glob("requirements*.lock"):
        if re.search(rf"^{name}(\[.*\])?==", path.read_text("utf-8"), re.MULTILINE):
            raise WorkspaceError(
                f"cannot use the name {name}: the project installs a package of this name",
                expected="a name that is not in the locks",
                found=path.name,
            )


def _check_directory(workspace: Path, directory: Path) -> None:
    expected = "a directory that does not exist or is empty, outside this checkout"
    if directory.is_relative_to(workspace):
        raise WorkspaceError(f"{directory} is inside this checkout", expected=expected, remedy="name another DIRECTORY")
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        found = "a directory with files in it" if directory.is_dir() else "a file"
        raise WorkspaceError(
            f"{directory} exists already", expected=expected, found=found, remedy="name another DIRECTORY"
        )


def _describe_origin(workspace: Path) -> str:
    changed = (
        " with uncommitted changes" if git(workspace, "status", "--porcelain", "--untracked-files=no", ".") else ""
    )
    return f"{project_name()} at commit {git(workspace, 'rev-parse', '--short', 'HEAD')}{changed}"


def _copy(workspace: Path, target: Path) -> Iterator[str]:
    """Copy the tracked files. Yields the paths that are left out."""
    for name in filter(None, git(workspace, "ls-files", "-z").split("\0")):
        source, copy = workspace / name, target / name
        if any(fnmatch(name, pattern) for pattern in LEFT_OUT) and source.name != ".gitkeep":
            yield name
        elif source.is_file() or source.is_symlink():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy, follow_symlinks=False)


def _rename(root: Path, former: str, name: str) -> None:
    """Replace the name of the project in the files that contain it, and set its version to 0.1.0."""

    def change_metadata(text: str) -> str:
        text = re.sub(r'(?m)^name = ".*"$', f'name = "{name}"', text, count=1)
        text = re.sub(rf'"{former}\[', f'"{name}[', text)  # the extras among the development tools
        return re.sub(r'(?m)^version = ".*"$', 'version = "0.1.0"', text, count=1)

    edit(root / "pyproject.toml", change_metadata)
    edit(root / "compose.yaml", lambda text: re.sub(rf"(?m)^(\s*image: ){former}:.*$", rf"\g<1>{name}:0.1.0", text))
    for readme in root.glob("README*.md"):
        edit(readme, lambda text: re.sub(r"\A# .*", f"# {name}", text))


def _remove_former_data(root: Path, origin: str, left_out: Iterable[str], without: Iterable[str]) -> None:
    """Remove the former project's changelog, measurements, DVC remotes, own datasets and corrections."""
    rooms = f", without the rooms {', '.join(without)}" if without else ""
    (root / "CHANGELOG.md").write_text(f"# Changelog\n\n## Unreleased\n\n- Created from {origin}{rooms}.\n", "utf-8")
    edit(root / "data/corrections.csv", lambda text: text[: text.find("\n") + 1])
    edit(root / ".dvc/config", _remove_remotes)
    own = [Path(path).stem for path in left_out if fnmatch(path, "data/own/*.dvc")]
    remove_paths(root, [f"data/catalog/{name}.yaml" for name in own])
    if own and re.search(rf"(?m)^  name: (?:{'|'.join(own)})\b", (root / "params.yaml").read_text("utf-8")):
        edit(root / "params.yaml", _select_public_dataset)
        remove_paths(root, ["dvc.lock"])  # it describes that dataset


def _select_public_dataset(params: str) -> str:
    params = re.sub(r"(?m)^(  name: )\S+", rf"\g<1>{PUBLIC_DATASET}", params, count=1)
    return re.sub(r"(?m)^(  path: )data/own/\S+", r"\g<1>data/local", params)


def _remove_remotes(config: str) -> str:
    config = re.sub(r"(?m)^\s*remote = .*\n", "", config)
    return re.sub(r"(?ms)^\['remote .*?(?=^\[|\Z)", "", config)
