"""`pipeline review page` and `apply` as processes: verdicts outlive a kill, and what is refused writes nothing."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.data.corrections import CORRECTIONS
from pipeline.review.verdicts import FORMAT, read_verdicts
from tests.processes import wait_until
from tests.review.listed import NAME, make_checkout, read_commands

REVIEW = [sys.executable, "-m", "pipeline.cli", "review"]


def run(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*REVIEW, *arguments], cwd=path, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


@contextmanager
def serving(path: Path, end: signal.Signals) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [*read_commands("Look at the images")[0], "--who", "reader-1", "--first", "3"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "BROWSER": f"sh -c 'echo $0 > {path}/opened' %s"}
    with subprocess.Popen(command, cwd=path, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().removeprefix("page: ").strip()
        finally:
            process.send_signal(end)
            process.communicate(timeout=60)


def send(address: str, verdict: dict[str, Any]) -> None:
    body, headers = json.dumps(verdict).encode(), {"Content-Type": "application/json"}
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
        urllib.request.Request(f"{address}verdicts", body, headers), timeout=30
    ).close()


def test_a_killed_page_loses_no_verdict_and_a_second_one_is_refused(tmp_path: Path) -> None:
    review = make_checkout(tmp_path, pairs=0)
    one, two = review.items[:2]
    with serving(tmp_path, signal.SIGKILL) as (_, address):
        wait_until(lambda: (tmp_path / "opened").exists() and (tmp_path / "opened").read_text())
        opened = Path((tmp_path / "opened").read_text().strip().removeprefix("file://"))
        assert address in opened.read_text()  # not in the arguments of a process, which all users can see
        assert opened.stat().st_mode & 0o077 == 0
        send(address, {"id": one.id, "given": one.given, "verdict": "keep"})
        second = run(tmp_path, "page", "--who", "reader-2")
        assert (second.returncode, "another process holds the lock" in second.stderr) == (1, True)
    with serving(tmp_path, signal.SIGINT) as (process, address):
        send(address, {"id": two.id, "given": two.given, "verdict": "remove"})
    assert process.returncode == 0
    verdicts = read_verdicts(review.verdicts, review.items)
    assert [(each.id, each.verdict, each.who) for each in verdicts] == [
        (one.id, "keep", "reader-1"),
        (two.id, "remove", "reader-1"),
    ]
    shown = {item["id"]: item["verdicts"] for item in json.loads(run(tmp_path, "show", "--json").stdout)}
    assert shown == {id_: {} for id_ in shown} | {one.id: {"reader-1": "keep"}, two.id: {"reader-1": "remove"}}


def test_a_wrong_file_and_a_large_removal_write_nothing(tmp_path: Path) -> None:
    review = make_checkout(tmp_path)
    item = review.items[0]
    record = {"id": item.id, "given": item.given, "verdict": "remove"}
    content = {"format": FORMAT, "review": NAME, "dataset": review.dataset.name, "who": "reader-2"}
    file = tmp_path / "verdicts.json"
    before = (tmp_path / CORRECTIONS).read_bytes()
    for records, message in (
        ([record, record | {"id": "0" * 40 + "-0"}], "not in the list of this review"),
        ([record], "are removed: more than 1%"),
    ):
        file.write_text(json.dumps(content | {"verdicts": records}))
        refused = run(tmp_path, "apply", str(file))
        assert refused.returncode == 1
        assert message in refused.stderr
        assert "remedy:" in refused.stderr
        assert (tmp_path / CORRECTIONS).read_bytes() == before
        assert not review.verdicts.exists()
    assert run(tmp_path, "apply", str(file), "--yes").returncode == 0
    assert ",reader-2," in (tmp_path / CORRECTIONS).read_text()
