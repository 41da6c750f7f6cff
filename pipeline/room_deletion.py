"""Delete rooms, and what the other files contain about them: see `docs/rooms.md`.

`python -m pipeline.room_deletion ROOM...` deletes rooms from this checkout.
"""

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from pipeline.errors import PipelineError, WorkspaceError
from pipeline.git import git
from pipeline.mentions import remove_mentions
from pipeline.rooms import PACKAGE, find_dependents, find_rooms, list_paths

COMMAND = re.compile(r'^@command\([^)]*\)\ndef (\w+)|^\w+ = group\("([\w-]+)"', re.MULTILINE)


def delete_rooms(root: Path, names: Iterable[str]) -> list[str]:
    """Delete rooms, and the rooms that import them, from a checkout or a copy of this project.

    Deletes their files, their sections of `params.yaml`, their flows in `prefect.yaml`, their servers in
    `compose.yaml`, the Makefile's targets that run their commands, GitLab's jobs of that name, their pages in
    `mkdocs.yml`, and the passages of README and docs that mention their commands or files.

    Args:
        root: the root of the checkout or copy, with the same rooms as the running code.

    Returns:
        The names of all deleted rooms.

    Raises:
        WorkspaceError: this project has no such room.
    """
    names, rooms = list(names), find_rooms()
    check_rooms(names)
    deleted = find_dependents(names)
    if not deleted:
        return []
    paths, commands = list_paths(deleted), [command for name in deleted for command in _list_commands(root, name)]
    remove_paths(root, paths)
    for name in deleted:
        if section := rooms[name].section:
            edit(root / "params.yaml", partial(_remove_section, section[0]))
        for flow in rooms[name].flows:
            edit(root / "prefect.yaml", partial(_remove_deployment, flow))
        for server in rooms[name].servers:
            edit(root / "compose.yaml", partial(_remove_service, server))
    edit(root / "Makefile", partial(_remove_targets, commands))
    edit(root / ".gitlab-ci.yml", partial(_remove_jobs, commands))
    remove_from_docs(root, paths, deleted, commands)
    return deleted


def check_rooms(names: Iterable[str]) -> None:
    """Raise a WorkspaceError if this project does not have a room with one of these names."""
    rooms = find_rooms()
    if unknown := set(names) - rooms.keys():
        raise WorkspaceError(
            "cannot delete rooms that this project does not have",
            expected=f"some of {', '.join(rooms)}" if rooms else "none: this project has no rooms",
            found=", ".join(sorted(unknown)),
        )


def remove_from_docs(root: Path, paths: Sequence[str], rooms: Iterable[str] = (), commands: Iterable[str] = ()) -> None:
    """Remove the passages of README and docs that mention deleted files, rooms or commands, and the site's pages."""
    edit(root / "mkdocs.yml", partial(_remove_pages, paths))
    names = [rf"\bpipeline {command}\b(?!-)" for command in commands]
    names += [rf"(?<![\w-]){room}/|^\| `{room}` \|" for room in rooms]
    for page in (*root.glob("*.md"), *root.glob("docs/**/*.md")):
        if page.name == "CHANGELOG.md":  # describes earlier states
            continue
        patterns = [rf"\]\({re.escape(os.path.relpath(root / path, page.parent))}" for path in paths]
        if page.parent.name != "decisions":  # decisions may name deleted files, but not link to them
            patterns += [*names, *(rf"(?<![\w/-]){re.escape(path)}" for path in paths)]
        if patterns:
            edit(page, partial(remove_mentions, re.compile("|".join(patterns), re.MULTILINE)))


def remove_paths(root: Path, paths: Iterable[str]) -> None:
    """Remove files and directories that exist, given relative to `root`."""
    for path in (root / name for name in paths):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def edit(path: Path, change: Callable[[str], str]) -> None:
    """Change the text of a file, if it exists."""
    if path.is_file():
        before = path.read_text("utf-8")
        if (after := change(before)) != before:
            path.write_text(after, "utf-8")


def _list_commands(root: Path, room: str) -> list[str]:
    text = "".join(path.read_text("utf-8") for path in sorted((root / "pipeline" / room).glob("*.py")))
    return [(match[1] or match[2]).replace("_", "-") for match in COMMAND.finditer(text)]


def _remove_section(key: str, params: str) -> str:
    return re.sub(rf"^{key}:.*\n(?:[ \t].*\n|\n)*", "", params, flags=re.MULTILINE).rstrip("\n") + "\n"


def _remove_deployment(name: str, prefect: str) -> str:
    return re.sub(rf"^  - name: {name}\n(?: {{4}}.*\n|\n)*", "", prefect, flags=re.MULTILINE).rstrip("\n") + "\n"


def _remove_service(name: str, compose: str) -> str:
    return re.sub(rf"^  {name}:.*\n(?: {{4}}.*\n|\n)*", "", compose, flags=re.MULTILINE)


def _remove_jobs(commands: Iterable[str], jobs: str) -> str:
    named = rf"^(?:{'|'.join(commands)}):.*\n(?:[ \t].*\n|\n)*"
    return re.sub(named, "", jobs, flags=re.MULTILINE).rstrip("\n") + "\n"


def _remove_targets(commands: Iterable[str], makefile: str) -> str:
    running = rf"^(\w+):.*\n(?:\t.*\n)*\t@?pipeline (?:{'|'.join(commands)})\b.*\n(?:\t.*\n)*\n?"
    for target in re.findall(running, makefile, re.MULTILINE):
        makefile = re.sub(rf"^{target}:.*\n(?:\t.*\n)*\n?", "", makefile, flags=re.MULTILINE)
        makefile = re.sub(rf"^(\.PHONY:.*) {target}\b", r"\1", makefile, flags=re.MULTILINE)
    return makefile


def _remove_pages(paths: Iterable[str], mkdocs: str) -> str:
    pages = {path.removeprefix("docs/") for path in paths}
    kept = [line for line in mkdocs.splitlines(keepends=True) if line.strip().removeprefix("- ") not in pages]
    empty = re.compile(r"^( *)- [^:\n]+:\n(?!\1 )", re.MULTILINE)  # a section without its pages
    return empty.sub("", "".join(kept))


def main() -> None:
    """Delete the rooms named on the command line from this checkout."""
    root, names = PACKAGE.parent, sys.argv[1:]
    if not names:
        sys.exit(f"usage: python -m pipeline.room_deletion ROOM...\nrooms: {', '.join(find_rooms())}")
    try:
        if changes := git(root, "status", "--porcelain", "--untracked-files=no"):
            raise WorkspaceError(
                "cannot delete rooms: the checkout has uncommitted changes", found=changes, remedy="commit them first"
            )
        print("deleted:", ", ".join(delete_rooms(root, names)))
    except PipelineError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
