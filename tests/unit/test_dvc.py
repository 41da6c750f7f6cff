"""What DVC says, read: its messages line by line, and its status as a plan."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.dvc import Announcement, is_advice, parse_announcement, remove_stale_rwlock_entries
from pipeline.errors import FlowError
from pipeline.flows.plan import Plan, parse_plan

STAGES = ["ingest", "validate", "split", "train"]


def plan_of(**status: object) -> Plan:
    """Four stages, each behind the one before, with what `dvc status` finds about some of them."""
    upstream = {name: STAGES[max(0, place - 1) : place] for place, name in enumerate(STAGES)}
    return parse_plan({"order": STAGES, "upstream": upstream, "status": status})


@pytest.mark.parametrize(
    ("line", "announcement"),
    [
        ("Stage 'train' didn't change, skipping", Announcement("train", "unchanged")),
        ("Stage 'train' is cached - skipping run, checking out outputs", Announcement("train", "restored")),
        ("Running stage 'train':", Announcement("train", "ran")),
        ("> python -m pipeline.stages.train", None),
        ("epoch 1/8: Stage 'train' didn't change, skipping", None),
        (
            "ERROR: failed to reproduce 'ingest': failed to run: python -m pipeline.stages.ingest, exited with 75",
            Announcement("ingest", "failed", 75),
        ),
        (
            "ERROR: failed to reproduce 'train': failed to run: python -m pipeline.stages.train, exited with -15",
            Announcement("train", "failed", -15),
        ),
        (
            "ERROR: failed to reproduce 'train': dependency 'data' does not exist",
            Announcement("train", "failed"),
        ),
        ("the program exited with 75", None),
    ],
)
def test_messages_of_dvc_are_parsed(line: str, announcement: Announcement | None) -> None:
    assert parse_announcement(line) == announcement


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Updating lock file 'dvc.lock'",
        "Generating lock file 'dvc.lock'",
        "To track the changes with git, run:",
        "\tgit add dvc.lock out/.gitignore",
        "To enable auto staging, run:",
        "\tdvc config core.autostage true",
        "Use `dvc push` to send your updates to remote storage.",
        "Data and pipelines are up to date.",
    ],
)
def test_dvcs_advice_is_told_from_a_stages_output(line: str) -> None:
    assert is_advice(line)
    assert not is_advice(f"note: {line}")


def test_status_becomes_reasons_in_words() -> None:
    plan = plan_of(
        train=[
            {"changed deps": {"data/train.parquet": "modified", "params.yaml": {"train.epochs": "modified"}}},
            {"changed outs": {"models/model.keras": "deleted"}},
            "changed command",
        ],
        ingest=[{"changed deps": dict.fromkeys("abcdef", "new")}],
    )
    assert plan.stage("train").changes == (
        "modified: data/train.parquet, params.yaml:train.epochs",
        "output deleted: models/model.keras",
        "changed command",
    )
    assert plan.stage("ingest").changes == ("new: a, b, c, d and 2 more",)
    assert plan.stage("split").changes == ()


def test_a_change_makes_everything_behind_it_pending() -> None:
    changed = plan_of(split=["changed command"])
    assert changed.pending() == ("split", "train")
    assert plan_of().pending() == ()
    assert plan_of().pending(["validate"]) == ("validate", "split", "train")


def test_until_keeps_what_the_stage_depends_on() -> None:
    diamond = parse_plan(
        {
            "order": ["raw", "left", "right", "joined", "report"],
            "upstream": {"raw": [], "left": ["raw"], "right": ["raw"], "joined": ["left", "right"], "report": ["raw"]},
            "status": {},
        }
    )
    assert diamond.until("joined").names == ("raw", "left", "right", "joined")
    assert diamond.until("left").names == ("raw", "left")
    with pytest.raises(FlowError, match="one of raw, left"):
        diamond.until("middle")


def test_what_a_killed_dvc_held_is_free_although_its_number_is_in_use_again(tmp_path: Path) -> None:
    waiting, pipes = [sys.executable, "-c", "input('here\\n')"], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(waiting, **pipes) as other, subprocess.Popen([*waiting, "dvc"], **pipes) as dvc:
        for process in (other, dvc):  # a process that is only beginning has no command line yet
            assert process.stdout
            assert process.stdout.readline() == b"here\n"
        ours, theirs = {"pid": dvc.pid, "cmd": "dvc repro"}, {"pid": other.pid, "cmd": "dvc repro"}
        list_of_files = tmp_path / ".dvc/tmp/rwlock"
        list_of_files.parent.mkdir(parents=True)
        list_of_files.write_text(
            json.dumps({"write": {"a": ours, "b": theirs}, "read": {"c": [ours, theirs], "d": [theirs]}})
        )
        remove_stale_rwlock_entries(tmp_path)
        assert json.loads(list_of_files.read_text()) == {"write": {"a": ours}, "read": {"c": [ours]}}
        for process in (other, dvc):
            process.kill()


@pytest.mark.parametrize("content", ["", "{", '{"write": {}, "read": {"data/raw": [{"pi'])
def test_a_list_of_files_in_use_that_a_killed_dvc_left_cut_off_is_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    (tmp_path / ".dvc/tmp/rwlock").write_text(content)
    remove_stale_rwlock_entries(tmp_path)
    assert (tmp_path / ".dvc/tmp/rwlock").read_text() == "{}"


@pytest.mark.parametrize("content", [None, "[1]"])
def test_a_list_of_files_in_use_that_is_none_is_left_to_dvc(tmp_path: Path, content: str | None) -> None:
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    if content:
        (tmp_path / ".dvc/tmp/rwlock").write_text(content)
    remove_stale_rwlock_entries(tmp_path)
    assert [path.read_text() for path in (tmp_path / ".dvc/tmp").iterdir()] == ([content] if content else [])
