"""Compare the code and the packages of workers with those of the process that sends them work.

With other code or other versions, a worker could compute other bytes, which DVC would store as outputs of this code.
"""

import platform
import re
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
PINS = PACKAGE.parent / "pins.txt"
ALSO_COMPARED = ("dask", "distributed", "cloudpickle")
SHOWN = 3


@dataclass(frozen=True)
class Software:
    """Code and packages that determine the bytes that a process computes."""

    python: str  # "3.11"
    packages: dict[str, str]  # versions by name, of those in pins.txt
    code: dict[str, str]  # SHA-256 by path, of the modules of this project

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return sha256(
            repr((self.python, sorted(self.packages.items()), sorted(self.code.items()))).encode()
        ).hexdigest()

    def find_differences(self, other: "Software") -> list[str]:
        """Describe how another process differs from this one."""
        differences = [] if other.python == self.python else [f"Python {other.python} instead of {self.python}"]
        differences += [
            f"{name} {other.packages.get(name, 'missing')} instead of {self.packages.get(name, 'none')}"
            for name in sorted(self.packages.keys() | other.packages.keys())
            if self.packages.get(name) != other.packages.get(name)
        ]
        files = [
            name for name in sorted(self.code.keys() | other.code.keys()) if self.code.get(name) != other.code.get(name)
        ]
        differences += [f"another {name}" for name in files[:SHOWN]]
        return differences + ([f"and {len(files) - SHOWN} more files"] if files[SHOWN:] else [])


@cache
def describe_software() -> Software:
    """Describe this process.

    The first call reads the files. A process that runs for long keeps that answer, because it keeps its modules, too.
    """
    pinned = re.findall(r"^([a-z-]+)==", PINS.read_text("utf-8"), re.MULTILINE) if PINS.is_file() else []
    code = {
        path.relative_to(PACKAGE.parent).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    packages = {name: _find_version(name) for name in (*pinned, *ALSO_COMPARED)}
    return Software(".".join(platform.python_version_tuple()[:2]), packages, code)


def _find_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
