"""The end of a process that must not wait."""

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys
from pipeline.process_lifetime import exit_now, skip_exit_handlers

atexit.register(print, "waited")
{request}
try:
    print("done")
    {ending}
finally:
    exit_now()
"""


@pytest.mark.parametrize(
    ("asked", "ending", "code", "printed"),
    [
        ("", "sys.exit(75)", 75, "done\nwaited\n"),
        ("skip_exit_handlers()", "sys.exit(75)", 75, "done\n"),
        ("skip_exit_handlers()", "sys.exit()", 0, "done\n"),
        ("skip_exit_handlers()", "1 / 0", 1, "done\nwaited\n"),  # with its traceback
    ],
)
def test_it_ends_with_its_code_and_without_handlers_if_asked(asked: str, ending: str, code: int, printed: str) -> None:
    program = PROGRAM.format(request=asked, ending=ending)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (code, printed)
