"""The accepted findings of `make audit`: each is of a package in the lock, says why, and ends."""

import os
import shutil
import subprocess
import tomllib
from datetime import date
from pathlib import Path

from tests.conftest import REPOSITORY

ACCEPTED = REPOSITORY / "audit-accepted.toml"
KEYS = {"id", "package", "version", "until", "what", "through", "who", "why"}


def test_each_accepted_finding_is_of_a_package_in_the_lock_and_says_why() -> None:
    locked = {line.split(" ")[0] for line in (REPOSITORY / "requirements-extras.lock").read_text().splitlines()}
    for finding in tomllib.loads(ACCEPTED.read_text())["finding"]:
        assert finding.keys() == KEYS
        assert all(finding.values())
        date.fromisoformat(finding["until"])
        assert f"{finding['package']}=={finding['version']}" in locked, f"{finding['id']}: look again"


def test_only_findings_whose_day_has_not_passed_are_ignored(tmp_path: Path) -> None:
    """`make audit` itself, with a stand-in for `uv` that prints what it was given: the service needs a network."""
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    entry = '[[finding]]\nid = "{}"\npackage = "one"\nuntil = "{}"\n'
    (tmp_path / ACCEPTED.name).write_text(entry.format("CVE-1", "2000-01-01") + entry.format("CVE-2", "2999-12-31"))
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("uv", "python"):
        (tmp_path / ".venv/bin" / name).write_text('#!/bin/sh\necho "$@"\n')
        (tmp_path / ".venv/bin" / name).chmod(0o755)
    command = ["make", "--no-print-directory", "audit"]
    told = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=True).stdout
    assert "--requirement requirements-extras.lock --require-hashes --disable-pip --strict" in told
    assert told.split()[-2:] == ["--ignore-vuln", "CVE-2"]
    assert "CVE-1" not in told
