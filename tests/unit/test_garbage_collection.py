import subprocess
import sys

CYCLES = """
import atexit
import gc

from pipeline.garbage_collection import collect_rarely


class Cycle:
    def __init__(self):
        self.itself = self


def count():
    return sum(generation["collections"] for generation in gc.get_stats())


atexit.register(lambda: print("frozen", gc.get_freeze_count() > 0))  # runs after the handlers registered later
collect_rarely()
before = count()
for _ in range(20_000):
    Cycle()
print("few", count() > before)
for _ in range(200_000):
    Cycle()
print("many", count() > before)
"""


def test_garbage_is_collected_rarely_and_not_searched_at_exit() -> None:
    run = subprocess.run([sys.executable, "-c", CYCLES], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["few False", "many True", "frozen True"]
