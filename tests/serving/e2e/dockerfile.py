"""The steps of a Dockerfile, executed in a virtual environment: there is no container engine here."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

# Of this process's environment: how to reach the package index.
INDEX = re.compile(r"^(PIP|UV)_|_proxy$|_CA_BUNDLE$|^SSL_|^HOME$", re.IGNORECASE)


@dataclass
class Image:
    """What the steps leave: files below `root`, and the environment and the command of a container."""

    root: Path
    workdir: Path = Path("/")
    environment: dict[str, str] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)

    @property
    def python(self) -> Path:
        return self.root / "venv/bin/python"

    @property
    def directory(self) -> Path:
        """The working directory."""
        return self.root / self.workdir.relative_to("/")


def read_steps(file: Path) -> list[tuple[str, str]]:
    """Return instructions with their arguments."""
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def build(file: Path, context: Path, root: Path) -> Image:
    """Execute the steps of a Dockerfile.

    Raises:
        AssertionError: a step is of a kind that is not executed here.
    """
    image = Image(root)
    outside = {name: value for name, value in os.environ.items() if INDEX.search(name)}
    for word, rest in read_steps(file):
        if word == "FROM":
            assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", rest)
            subprocess.run([sys.executable, "-m", "venv", root / "venv"], check=True)
            image.environment["PATH"] = f"{root / 'venv/bin'}:/usr/bin:/bin"
        elif word == "WORKDIR":
            image.workdir = Path(rest)
            image.directory.mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            *sources, target = shlex.split(rest)
            for source in sources:
                _copy(context / source, image.directory / target)
        elif word == "RUN":
            subprocess.run(["sh", "-ec", rest], cwd=image.directory, env=outside | image.environment, check=True)
        elif word == "ENV":
            image.environment |= dict(pair.split("=", 1) for pair in shlex.split(rest))
        elif word == "ENTRYPOINT":
            image.entrypoint = json.loads(rest)
        elif word == "CMD":
            image.arguments = json.loads(rest)
        else:
            assert word in ("USER", "EXPOSE", "HEALTHCHECK"), word
    return image


def _copy(source: Path, target: Path) -> None:
    """Copy a file into a directory, or the content of a directory: as COPY does."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copy(source, target)
