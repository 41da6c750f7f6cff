"""Which process a record belongs to, whatever happened to the clock and to the machine since."""

import os
import subprocess

import psutil
import pytest

from pipeline.tracking.processes import is_running, start_of, this_process


def test_a_process_is_known_again_after_the_clock_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    before, boot = this_process(), psutil.boot_time()
    # What the kernel tells of its start moves with the clock, and with it all that is reckoned from there.
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: boot - 86_400)
    assert psutil.boot_time() == boot - 86_400
    assert this_process() == before
    assert is_running(before) is True


def test_a_number_that_another_process_has_now_is_not_taken_for_the_former() -> None:
    machine, pid, _ = this_process().rsplit(" ", 2)
    parent = psutil.Process(os.getppid())
    assert is_running(f"{machine} {pid} {start_of(parent)}") is False
    seconds, _, _ = start_of(psutil.Process()).partition("@")
    assert is_running(f"{machine} {pid} {seconds}@the-boot-before") is False
    assert is_running(f"elsewhere {pid} {seconds}") is None


def test_a_zombie_does_not_run() -> None:
    child = subprocess.Popen(["sleep", "100"])
    machine, _, _ = this_process().rsplit(" ", 2)
    tag = f"{machine} {child.pid} {start_of(psutil.Process(child.pid))}"
    assert is_running(tag) is True
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays a zombie
    assert is_running(tag) is False
    child.wait()
    assert is_running(tag) is False
