"""Report newer versions of the declared packages, why each is held back, and what breaks with them: `make outdated`.

The newest versions are resolved without the upper bounds of pyproject.toml and without pins.txt, installed in a
temporary environment, and used by the fast tests and the pipeline on `tiny`, in a clone of the last commit. Exits 0
with a report, whatever it says. Another code means that there is no report.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
HEAD = ["| package | locked | newest together | newest | held back by |", "|---|---|---|---|---|"]
LONGEST = 40  # lines of a failed check in the report


def read_declared(text: str) -> dict[Requirement, str]:
    """Return the packages of a pyproject.toml with the comment beside each. Leaves out the project and a GPU's."""
    project = tomllib.loads(text)["project"]
    extras = {name: entries for name, entries in project["optional-dependencies"].items() if name != "gpu"}
    comments = {}
    for line in text.splitlines():
        found = re.search(r'"[],\s]*#\s*(.+)$', line)
        comments |= dict.fromkeys(re.findall(r'"([^"]+)"', line), found[1] if found else "")
    entries = [entry for packages in (project["dependencies"], *extras.values()) for entry in packages]
    return {Requirement(entry): comments[entry] for entry in entries if not entry.startswith(project["name"])}


def remove_bound(package: Requirement) -> str:
    """Return a requirement without its upper bound."""
    free = Requirement(str(package))
    free.specifier = SpecifierSet(",".join(str(part) for part in free.specifier if part.operator == ">="))
    return str(free)


def read_versions(text: str) -> dict[str, str]:
    """Return the version of each package in a lock, for this Python and platform."""
    lines = [Requirement(line.rstrip("\\ ")) for line in text.splitlines() if re.match("[a-z]", line)]
    found = [line for line in lines if line.marker is None or line.marker.evaluate()]
    return {line.name: str(line.specifier).removeprefix("==") for line in found}


def make_table(
    declared: Mapping[Requirement, str],
    pins: Collection[str],
    locked: Mapping[str, str],
    together: Mapping[str, str],
    newest: Mapping[str, str],
) -> list[str]:
    """Return the packages that have a newer version, and what holds each back, as rows of Markdown.

    Args:
        together: the newest versions that all packages accept, without our bounds.
        newest: the newest version of each package by itself.
    """
    rows = []
    for package, comment in sorted(declared.items(), key=lambda item: item[0].name):
        name = package.name
        if name not in newest or locked[name] == newest[name]:
            continue
        if name in pins:
            reason = "pins.txt: it determines the bytes of outputs"
        elif not package.specifier.contains(newest[name]):
            reason = f"`{package.specifier}`: {comment or 'no reason is given'}"
        else:
            reason = "nothing: `make lock` raises it" if together[name] == newest[name] else "another package"
        rows.append(f"| {name} | {locked[name]} | {together[name]} | {newest[name]} | {reason} |")
    return [*HEAD, *rows] if rows else ["Every declared package has its newest version."]


def resolve(requirements: Sequence[str], *options: str) -> str:
    """Resolve requirements with uv, for this Python, and return the lock."""
    command = ["uv", "pip", "compile", "-", "--python", sys.executable, "--quiet", "--no-annotate", "--no-header"]
    given = "\n".join(requirements)
    return subprocess.run([*command, *options], input=given, stdout=subprocess.PIPE, text=True, check=True).stdout


def check(title: str, command: Sequence[str], project: Path, minutes: float) -> list[str]:
    """Run a command in the temporary environment, and return its paragraph of the report."""
    environment = {**os.environ, "PATH": f"{project.parent / 'venv/bin'}:{os.environ['PATH']}"}
    shown = project.parent / "output.txt"
    with shown.open("w") as file:
        process = subprocess.Popen(
            command, cwd=project, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            result = f"exit code {process.wait(minutes * 60)}"
        except subprocess.TimeoutExpired:
            result = f"not finished within {minutes:g} minutes"
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if result == "exit code 0":
        return ["", f"**{title}**: passed"]
    return ["", f"**{title}**: {result}", "", "```text", *shown.read_text().splitlines()[-LONGEST:], "```"]


def report(minutes: float) -> str:
    """Return the report as Markdown. `minutes` is the time limit of each of the two checks."""
    pins, locked = (read_versions((ROOT / name).read_text("utf-8")) for name in ("pins.txt", "requirements-dev.lock"))
    declared = read_declared((ROOT / "pyproject.toml").read_text("utf-8"))
    unbound = [remove_bound(package) for package in declared]
    lock, newest = resolve(unbound), read_versions(resolve(unbound, "--no-deps"))
    lines = ["# Newer versions of the declared packages", ""]
    lines += make_table(declared, pins, locked, read_versions(lock), newest)
    lines += ["", "With all versions of the column `newest together`:"]
    with tempfile.TemporaryDirectory(prefix="outdated-") as directory:
        project, python = Path(directory, "project"), f"{directory}/venv/bin/python"
        Path(directory, "newest.txt").write_text(lock)
        install = ("uv", "pip", "install", "--quiet", "--python", python)
        for command in (
            ("git", "clone", "--quiet", str(ROOT), str(project)),
            ("uv", "venv", "--quiet", "--python", sys.executable, f"{directory}/venv"),
            (*install, "-r", f"{directory}/newest.txt"),
            (*install, "--no-deps", "--editable", str(project)),
        ):
            subprocess.run(command, check=True, stdout=sys.stderr)
        tests = ["tests/unit", *(str(path.relative_to(project)) for path in project.glob("tests/*/unit"))]
        of_locks = "pinned_versions_are_locked_and_installed"
        lines += check("the fast tests", ["pytest", "-n", "2", "-q", "-k", f"not {of_locks}", *tests], project, minutes)
        params = project / "params.yaml"
        params.write_text(re.sub(r"(?m)^  name: \S+", "  name: tiny", params.read_text("utf-8"), count=1), "utf-8")
        lines += check("the pipeline on `tiny`", ["pipeline", "run"], project, minutes)
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--md", type=Path, metavar="FILE", help="write the report to this file")
    parser.add_argument("--minutes", type=float, default=30, help="time limit of each check (30)")
    arguments = parser.parse_args()
    text = report(arguments.minutes)
    arguments.md.write_text(text, "utf-8") if arguments.md else print(text, end="")
