"""Retraining on stand-in stages: its input, its results, and the user's tree, which does not change."""

import itertools
import json
import os
import shlex
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.batches import incoming
from pipeline.cli.__main__ import app
from pipeline.data import table, tiny
from pipeline.data.catalog import load_entry
from pipeline.errors import FlowError, ParamsError
from pipeline.notices.send import URLS_VARIABLE
from pipeline.retraining.branches import UNPUSHED
from pipeline.retraining.report import Retraining
from pipeline.retraining.run import retrain
from pipeline.temporary_checkout import RETRAININGS
from pipeline.workspace import lock
from tests.conftest import STAGES, Project
from tests.documentation import read_blocks
from tests.notices.integration.test_send import Endpoint, endpoint
from tests.processes import wait_until, wait_until_idle
from tests.stand_ins import behave, started_stages

__all__ = ["endpoint"]  # a fixture

pytestmark = pytest.mark.xdist_group("prefect")

Retrain = Callable[..., Retraining]


@pytest.fixture
def again(stand_ins: Project, prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Retrain]:
    """Retrains in the project, in this process."""
    monkeypatch.chdir(stand_ins.path)
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "PIPELINE_NOTIFY_URLS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    monkeypatch.setenv("STAND_INS", str(stand_ins.path))
    return lambda **arguments: retrain(stand_ins.path, **arguments)


def add_batch(project: Project, name: str, seed: int, images: int = 20, old: bool = True) -> Path:
    """Put a batch into the user's data/incoming/, with a change time of ten minutes ago."""
    path = project.path / "data/incoming" / name
    path.parent.mkdir(exist_ok=True)
    pixels, labels = tiny.generate(images, seed)
    np.savez(path, images=pixels, labels=labels)
    if old:
        os.utime(path, (path.stat().st_mtime - 600,) * 2)
    return path


def spoil(path: Path) -> None:
    """Give an archive a header that NumPy cannot parse, for which it raises an error of Python's tokenizer."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("images.npy", "labels.npy"):
            archive.writestr(name, b"\x93NUMPY\x01\x00\x28\x23" + b"(" * 9000)
    os.utime(path, (path.stat().st_mtime - 600,) * 2)


def snapshot(project: Project) -> dict[str, tuple[int, int]]:
    """Size and time of the last change of each of the user's files."""
    tools = {".git", ".dvc", ".pipeline", "mlruns", "mlflow.db", "started.txt"}
    files = [path for path in project.path.rglob("*") if path.relative_to(project.path).parts[0] not in tools]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def files_of(project: Project, branch: str) -> set[str]:
    return set(project.run("git", "ls-tree", "-r", "--name-only", branch).stdout.split())


def branches_of(project: Project) -> list[str]:
    return project.run("git", "for-each-ref", "--format=%(refname:short)", "refs/heads/retrain/").stdout.split()


def outcomes_of(project: Project) -> list[str]:
    """The outcomes of all retrainings in the log."""
    return [json.loads(line)["outcome"] for line in (project.path / ".pipeline/retraining/log.jsonl").open()]


def checkouts_of(project: Project) -> list[Path]:
    return list((project.path / RETRAININGS).glob("*"))


def test_a_new_batch_is_taken_in_and_the_users_tree_does_not_change(
    again: Retrain, stand_ins: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_batch(stand_ins, "march.npz", seed=7)
    (stand_ins.path / "stage.py").write_text("an edit in progress")
    before, status = snapshot(stand_ins), stand_ins.run("git", "status", "--porcelain").stdout
    head = stand_ins.run("git", "rev-parse", "HEAD", "HEAD:stage.py").stdout

    with monkeypatch.context() as hook:  # with the variables that git sets
        hook.setenv("GIT_DIR", str(stand_ins.path / ".git"))
        hook.setenv("GIT_INDEX_FILE", str(stand_ins.path / ".git/index"))
        result = again(reason="a test")
        assert os.environ["GIT_DIR"]
    assert result.taken == ("march.npz",)
    assert result.branch
    assert branches_of(stand_ins) == [result.branch]
    assert {"data/incoming/march.npz.dvc", "data/incoming/.gitignore", "dvc.lock"} <= files_of(stand_ins, result.branch)
    assert "data/incoming/march.npz" not in files_of(stand_ins, result.branch)
    history = stand_ins.run("git", "log", "--format=%s", f"HEAD..{result.branch}").stdout.splitlines()
    assert history == ["Lock the outputs of the retraining: not promoted", "Retrain with batch march.npz"]
    assert stand_ins.run("git", "rev-parse", "HEAD", f"{result.branch}:stage.py").stdout == head
    assert result.report
    assert "taken in**: march.npz" in result.report.read_text()
    assert "started**: a test" in result.report.read_text()

    assert (snapshot(stand_ins), stand_ins.run("git", "status", "--porcelain").stdout) == (before, status)
    assert checkouts_of(stand_ins) == []

    assert again().outcome == "nothing new"
    (stand_ins.path / "stage.py").write_text(stand_ins.run("git", "show", "HEAD:stage.py").stdout)
    shutil.rmtree(stand_ins.path / "data/incoming")
    stand_ins.run("git", "merge", "--quiet", "--no-ff", "-m", "take it", result.branch)
    assert again().outcome == "nothing new"  # the merge added nothing new
    assert branches_of(stand_ins) == [result.branch]


def test_nothing_new_creates_no_checkout_and_imports_no_tool(again: Retrain, stand_ins: Project) -> None:
    again()
    command = (
        "import sys; from pathlib import Path; from pipeline.retraining.run import retrain; "
        "print(retrain(Path.cwd()).outcome, *{'mlflow', 'prefect', 'tensorflow', 'dvc'} & set(sys.modules))"
    )
    (stand_ins.path / "started.txt").unlink(missing_ok=True)
    (stand_ins.path / RETRAININGS).rmdir()
    assert stand_ins.run("python", "-c", command).stdout.strip() == "nothing new"
    assert not (stand_ins.path / RETRAININGS).exists()
    assert started_stages(stand_ins) == []
    assert outcomes_of(stand_ins)[1:] == ["nothing new"]


def test_a_bad_batch_is_quarantined_until_it_changes(again: Retrain, stand_ins: Project) -> None:
    twin = stand_ins.path / "data/incoming/twin.npz"
    shutil.copy2(add_batch(stand_ins, "good.npz", seed=7), twin)
    np.savez(twin, **np.load(twin), unused=0)  # the same images, in a file of its own
    os.utime(twin, (0, 0))
    spoil(add_batch(stand_ins, "bad.npz", seed=8))
    (stand_ins.path / "data/incoming/linked/Bag").mkdir(parents=True)
    (stand_ins.path / "data/incoming/linked/Bag/.again").symlink_to(".")
    first = again()
    assert first.taken == ("good.npz",)
    assert first.unreadable == {"linked": "linked/Bag/.again is a link"}
    reasons = {batch.name: batch.reason for batch in first.quarantined}
    assert set(reasons) == {"bad.npz", "twin.npz"}
    assert reasons["bad.npz"].startswith("batch bad.npz is refused: bad.npz is damaged: ")
    assert "already_there" in reasons["twin.npz"]
    assert first.branch
    assert "data/incoming/bad.npz.dvc" not in files_of(stand_ins, first.branch)
    assert first.report
    assert "quarantined**: bad.npz" in first.report.read_text()
    assert "unreadable**: linked: linked/Bag/.again is a link" in first.report.read_text()
    assert "bad.npz" in stand_ins.run("python", "-m", "pipeline.cli", "status").stdout

    second = again()  # the same bytes are not checked again
    assert (second.outcome, [batch.since for batch in second.quarantined]) == (
        "nothing new",
        [batch.since for batch in first.quarantined],
    )
    spoil_differently = stand_ins.path / "data/incoming/worse.npz"
    spoil_differently.write_bytes(b"nor is this")
    third = again()  # a bad one alone is no reason to train
    assert third.outcome == "nothing new"
    assert {batch.name for batch in third.quarantined} == {"bad.npz", "twin.npz", "worse.npz"}

    spoil_differently.unlink()
    twin.unlink()
    add_batch(stand_ins, "bad.npz", seed=9)
    fourth = again()
    assert (fourth.taken, fourth.quarantined) == (("bad.npz", "good.npz"), ())


def test_an_edited_batch_is_taken_in(again: Retrain, stand_ins: Project) -> None:
    """It may repeat images of its last version. If no cache has the known images, `ingest` makes them again."""
    batch = add_batch(stand_ins, "march.npz", seed=7)
    images, labels = tiny.generate(20, seed=7)
    with table.writer(stand_ins.path / "tables/train.parquet", load_entry("tiny").dataset) as rows:
        rows.write(images, labels, *(table.strings([text] * 20) for text in ("id", batch.name)))
    for left in (".dvc/cache", "data/dataset"):
        shutil.rmtree(stand_ins.path / left)
    stand_ins.run("dvc", "add", "--quiet", str(batch))
    stand_ins.commit()
    more, their_labels = tiny.generate(5, seed=8)
    batch.unlink()
    np.savez(batch, images=np.concatenate([images, more]), labels=np.concatenate([labels, their_labels]))
    os.utime(batch, (0, 0))

    behave(stand_ins, ingest={"exit": [1]})
    failed = again()
    assert failed.outcome == "failed"
    assert "must not repeat cannot be found" in failed.reason
    assert failed.quarantined == ()
    result = again()
    assert (result.taken, result.quarantined) == (("march.npz",), ())
    assert started_stages(stand_ins) == ["ingest", *STAGES]


def test_params_can_be_changed_for_one_retraining(again: Retrain, stand_ins: Project) -> None:
    result = again(changes={"train.seed": 9})
    assert started_stages(stand_ins) == ["train", "evaluate", "register"]
    params = stand_ins.run("git", "diff", "HEAD", str(result.branch), "--", "params.yaml").stdout
    assert "+  seed: 9" in params
    assert again(changes={"train.seed": 9}).outcome == "nothing new"
    for changes in ({"train.sed": 9}, {"train.seed": "many"}):
        with pytest.raises(ParamsError, match=r"train\.sed is no key|cannot be used"):
            again(changes=changes)
    with pytest.raises(FlowError, match="there is no commit 'nowhere'"):
        again(ref="nowhere")
    assert branches_of(stand_ins) == [result.branch]
    assert outcomes_of(stand_ins) == ["not promoted", "nothing new", *["failed"] * 3]


def test_a_new_commit_is_retrained_and_uncommitted_edits_are_not(again: Retrain, stand_ins: Project) -> None:
    stand_ins.set_params(**{"split.seed": 9})
    stand_ins.run("git", "checkout", "--quiet", "-b", "work")
    stand_ins.commit()
    stand_ins.set_params(**{"split.seed": 10})
    result = again(ref="main")
    assert started_stages(stand_ins) == []  # main has no change
    assert result.branch
    again()
    assert started_stages(stand_ins) == ["split", "train", "evaluate", "register"]


def test_a_failed_stage_leaves_a_report_and_is_retried(again: Retrain, stand_ins: Project) -> None:
    add_batch(stand_ins, "march.npz", seed=7)
    behave(stand_ins, train={"exit": [1]})
    failed = again(changes={"train.seed": 9})
    assert failed.outcome == "failed"
    assert "train failed" in failed.reason
    assert failed.report
    assert failed.report.is_file()
    (unfinished,) = branches_of(stand_ins)  # its commit, which a run may name
    result = again(changes={"train.seed": 9})
    assert (result.outcome, result.branch) == ("not promoted", unfinished)
    assert result.taken == ("march.npz",)
    assert started_stages(stand_ins) == ["train", "train", "evaluate", "register"]


def test_a_disk_error_is_an_outcome_with_a_notice(
    again: Retrain, stand_ins: Project, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URLS_VARIABLE, f"json://{endpoint.address}")
    (stand_ins.path / RETRAININGS).touch()  # no room for a checkout
    failed = again(changes={"train.seed": 9})
    assert failed.outcome == "failed"
    assert str(RETRAININGS) in failed.reason
    assert failed.report
    assert failed.report.is_file()
    assert [message["title"].split(":")[0] for message in endpoint.taken] == ["retrain failed"]
    assert outcomes_of(stand_ins) == ["failed"]


def test_failed_pushes_are_retried_by_the_next_retraining_unless_pushing_is_off(
    again: Retrain, stand_ins: Project, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, data = tmp_path / "code.git", tmp_path / "data"
    stand_ins.run("git", "remote", "add", "origin", str(code))
    data.write_text("a file is in the way")
    stand_ins.run("dvc", "remote", "add", "--local", "--default", "team", str(data))
    add_batch(stand_ins, "march.npz", seed=7)
    first = again()
    assert first.outcome == "not promoted"
    assert len(first.warnings) == 1
    assert first.branch
    said = capfd.readouterr().out
    announced = f"{first.branch} will be pushed at the end: branch to the git remote origin and data to the default DVC"
    assert said.index(announced) < said.index("validate")  # before any stage
    assert first.branch in first.warnings[0]

    data.unlink()
    stand_ins.run("git", "init", "--quiet", "--bare", str(code))
    spoil(add_batch(stand_ins, "bad.npz", seed=8))  # so that a checkout is needed to find that nothing is new
    second = again()
    assert (second.outcome, second.warnings) == ("nothing new", ())
    clone = Project(tmp_path / "clone", stand_ins.home)
    subprocess.run(["git", "clone", "--quiet", "-b", first.branch, str(code), str(clone.path)], check=True)
    clone.run("dvc", "remote", "add", "--local", "--default", "team", str(data))
    clone.run("dvc", "pull", "data/incoming/march.npz.dvc", "train")
    given = (stand_ins.path / "data/incoming/march.npz").read_bytes()
    assert (clone.path / "data/incoming/march.npz").read_bytes() == given

    stand_ins.set_params(**{"retrain.push": "never"})
    stand_ins.run("git", "commit", "--quiet", "--all", "--message", "keep the branches here")
    capfd.readouterr()
    kept = again()
    assert kept.branch
    assert "pushed" not in capfd.readouterr().out
    (stand_ins.path / UNPUSHED).unlink()  # a trailer of the branch says that it must not be pushed
    assert again(push="auto").outcome == "nothing new"  # pushes missing branches, but not this one
    assert kept.branch not in stand_ins.run("git", "ls-remote", "origin").stdout


def test_unattended_commits_run_no_hooks_and_need_no_author(
    again: Retrain, stand_ins: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    for name in ("user.name", "user.email"):
        stand_ins.run("git", "config", "--unset", name)
    for name, value in {"user.useConfigOnly": "true", "commit.gpgSign": "true", "gpg.program": "false"}.items():
        stand_ins.run("git", "config", name, value)
    hooks = stand_ins.path / ".git/hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("pre-commit", "commit-msg", "reference-transaction", "post-checkout"):
        (hooks / name).write_text("#!/bin/sh\nexit 1\n")
        (hooks / name).chmod(0o755)
    add_batch(stand_ins, "march.npz", seed=7)
    result = again()
    assert stand_ins.run("git", "log", "-1", "--format=%an", str(result.branch)).stdout.strip() == "pipeline"
    said = capfd.readouterr().out
    assert said.index("git has no author configured: pipeline will be the commits'") < said.index("validate")


def test_a_changing_batch_is_left_for_the_next_retraining(
    again: Retrain, stand_ins: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    again()
    monkeypatch.setattr(incoming, "RECENT_SECONDS", 0.3)
    growing = stand_ins.path / "data/incoming/growing"
    (growing / "Bag").mkdir(parents=True)
    ended = threading.Event()

    def arrive() -> None:
        for number in itertools.count():
            (growing / "Bag" / f"{number}.png").write_bytes(b"part of a picture")
            if ended.wait(0.05):
                return

    with ThreadPoolExecutor(1) as other:
        other.submit(arrive)
        try:
            result = again()
        finally:
            ended.set()
    assert (result.outcome, result.arriving, result.quarantined) == ("nothing new", ("growing",), ())


@pytest.mark.faults
def test_the_commands_of_the_page_work(again: Retrain, stand_ins: Project) -> None:
    stand_ins.run("git", "update-ref", "refs/remotes/origin/main", "HEAD")
    lines = "".join(read_blocks("docs/retraining.md")).splitlines()
    for line in lines:
        told = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
        assert told.exit_code == 0, told.output
    outcomes = outcomes_of(stand_ins)
    assert len(outcomes) == len(lines)
    assert "failed" not in outcomes


def test_a_second_retraining_waits_or_is_skipped(again: Retrain, stand_ins: Project) -> None:
    with lock("retraining", wait=0, remedy="", root=stand_ins.path):
        skipped = again()
    assert skipped.outcome == "skipped"
    assert f"process {os.getpid()}" in skipped.reason
    command = ("python", "-m", "pipeline.cli", "retrain", "--if-busy", "wait", "--json")
    environment = {name: os.environ[name] for name in ("PREFECT_API_URL", "STAND_INS")}
    both = [stand_ins.start(*command, **environment) for _ in range(2)]
    outputs = [one.communicate(timeout=120)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0], outputs
    assert outcomes_of(stand_ins) == ["skipped", "not promoted", "nothing new"]


@pytest.mark.faults
@pytest.mark.parametrize("stage", ["train", "register"])
def test_the_next_retraining_completes_a_killed_one(again: Retrain, stand_ins: Project, stage: str) -> None:
    add_batch(stand_ins, "march.npz", seed=7)
    behave(stand_ins, **{stage: {"sleep": 300}})
    environment = {name: os.environ[name] for name in ("PREFECT_API_URL", "STAND_INS")}
    command = ("python", "-m", "pipeline.cli", "retrain", "--set", "train.seed=9")
    running = stand_ins.start(*command, **environment, SHELL="/bin/sh")  # on Debian, it does not replace itself
    wait_until(lambda: stage in started_stages(stand_ins) or running.poll() is not None)
    running.kill()
    running.wait()
    wait_until_idle(stand_ins)
    (unfinished,) = branches_of(stand_ins)
    assert len(checkouts_of(stand_ins)) == 1

    behave(stand_ins)
    result = again(changes={"train.seed": 9})
    assert (result.outcome, result.branch, result.taken) == ("not promoted", unfinished, ("march.npz",))
    assert checkouts_of(stand_ins) == []
    assert started_stages(stand_ins)[-1] == STAGES[-1]
    assert stand_ins.run("git", "status", "--porcelain").stdout.split() == ["??", "data/incoming/"]
