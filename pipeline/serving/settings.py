"""Settings of a running server, and the paths of its files."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.serving.params import ServeParams
from pipeline.workspace import STATE


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """What a server was started with."""

    root: Path  # the main repository; its files are in `.pipeline/serving/`
    params: ServeParams
    version: str | None = None  # None: follow the champion
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1  # processes that answer
    threads: int = 2  # of the model, in each process
    allowed_hosts: str = ""  # more names of this machine, separated by commas
    key: str | None = None  # the API key; None: there is none yet, and no request needs one

    @property
    def folder(self) -> Path:
        """The folder of the serving room."""
        return self.root / STATE / "serving"

    @property
    def current_file(self) -> Path:
        """The file in which the resolver names the version to serve."""
        return self.folder / ("current.json" if self.version is None else f"version-{self.version}.json")
