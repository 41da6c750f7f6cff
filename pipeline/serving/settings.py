"""Settings of a running server, and the paths of its files."""

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from pipeline.serving.params import ServeParams
from pipeline.workspace import STATE

# Variables by which `pipeline serve` configures its processes. The key is in none of them.
VARIABLE = "PIPELINE_SERVE_SETTINGS"
SOCKET_VARIABLE = "PIPELINE_SERVE_SOCKET"  # number of the listening socket
NUMBER_VARIABLE = "PIPELINE_SERVE_WORKER"  # of an answering process, from 0
METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """What a server was started with."""

    root: Path  # the main repository; its files are in `.pipeline/serving/`
    workspace: Path
    params: ServeParams
    version: str | None = None  # None: follow the champion
    host: str = "127.0.0.1"
    port: int = 5002
    workers: int = 1  # processes that answer
    threads: int = 2  # of the model, in each process
    allowed_hosts: str = ""  # more names of this machine, separated by commas
    key: str | None = None  # the API key; None: every request that needs it is refused

    @property
    def folder(self) -> Path:
        """The folder of the serving room."""
        return self.root / STATE / "serving"

    @property
    def current_file(self) -> Path:
        """The file in which the resolver names the version to serve. Servers of other ports may have other datasets."""
        which = "champion" if self.version is None else f"version-{self.version}"
        return self.folder / f"{which}-{self.port}.json"

    @property
    def challenger_file(self) -> Path:
        """The file in which the resolver names the challenger, if it answers in the shadow."""
        return self.folder / f"challenger-{self.port}.json"

    @property
    def refresh_file(self) -> Path:
        """The file that is touched to let the resolver ask the registry now."""
        return self.folder / "refresh"


_ADAPTER = TypeAdapter(ServeSettings)


def dump_settings(settings: ServeSettings) -> str:
    """Convert settings to the value of VARIABLE."""
    return _ADAPTER.dump_json(settings, exclude={"key"}).decode()


def load_settings() -> ServeSettings:
    """Read the settings that `pipeline serve` has put into the environment."""
    return _ADAPTER.validate_json(os.environ[VARIABLE])
