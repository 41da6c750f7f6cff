"""The files that the stages leave in a workspace, as far as they are recorded."""

import csv
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import WorkspaceError, mend_committed
from pipeline.files import file_digest, parse_yaml, read_json

RAW = "data/raw"
DATASET = "data/dataset"
MODEL = "models/model.keras"
TRAINING = "reports/training"
EVALUATION = "reports/evaluation"
REGISTRATION = "reports/registration.json"


@dataclass(frozen=True)
class Outputs:
    """Where they are, below the root of a workspace. A stage's current directory is that root."""

    root: Path = Path()

    @property
    def model(self) -> Path:
        return self.root / MODEL

    @property
    def training(self) -> Path:
        """`metrics.json`, `history.csv`, `settings.json`, `curves.png`."""
        return self.root / TRAINING

    @property
    def evaluation(self) -> Path:
        """`metrics.json`, `gate.json`, predictions, tables and figures."""
        return self.root / EVALUATION

    @property
    def registration(self) -> Path:
        return self.root / REGISTRATION

    @property
    def about_data(self) -> list[Path]:
        """What validation and split found. The directory of Data Docs is no output of DVC and may be missing."""
        names = ("validation.json", "split.json", "data_docs")
        return [path for path in (self.root / "reports" / name for name in names) if path.exists()]

    def split(self, name: str) -> Path:
        return self.root / f"data/splits/{name}.parquet"

    def settings(self) -> dict[str, Any]:
        """What `train` resolved: the content of `settings.json`."""
        return dict(read_json(self.training / "settings.json"))

    def history(self) -> list[dict[str, float]]:
        """The epochs of a training, as they stand in `history.csv`."""
        with (self.training / "history.csv").open(newline="", encoding="utf-8") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]

    def locked(self, stage: str) -> dict[str, str]:
        """MD5 by path of what a stage last read and wrote, from `dvc.lock`; empty when it does not say.

        Raises:
            WorkspaceError: `dvc.lock` is damaged.
        """
        locked = self._locked_stages().get(stage, {})
        entries = [entry for kind in ("deps", "outs") for entry in locked.get(kind, [])]
        return {entry["path"]: entry.get("md5", "") for entry in entries}

    def locked_outputs(self, stage: str | None = None) -> dict[str, str]:
        """MD5 by path of what a stage (default: every stage) last wrote, from `dvc.lock`.

        Raises:
            WorkspaceError: `dvc.lock` is damaged.
        """
        stages = self._locked_stages()
        chosen = stages.values() if stage is None else [stages.get(stage, {})]
        return {out["path"]: out["md5"] for entry in chosen for out in entry.get("outs", []) if "md5" in out}

    def _locked_stages(self) -> dict[str, Any]:
        lock = self.root / "dvc.lock"
        if not lock.is_file():
            return {}
        try:
            return dict((parse_yaml(lock.read_bytes()) or {}).get("stages", {}))
        except ValueError as error:
            raise WorkspaceError(f"{lock} is damaged", found=str(error), remedy=mend_committed(lock)) from None

    def are_of(self, stage: str, *paths: str) -> bool:
        """Whether the files (or directories) that stand in the workspace are the ones a stage last read or wrote."""
        locked = self.locked(stage)
        return all((self.root / path).exists() and dvc_digest(self.root / path) == locked.get(path) for path in paths)


def dvc_digest(path: Path, *, hidden: bool = True) -> str:
    """The MD5 by which DVC knows a file, or a directory: that of the sorted list of its files and theirs.

    Args:
        hidden: count hidden files, as DVC does except in `data/incoming/` (`.dvcignore`).
    """
    if not path.is_dir():
        return file_digest(path, "md5")
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    if not hidden:
        files = {name: file for name, file in files.items() if not f"/{name}".count("/.")}
    listing = [{"md5": file_digest(files[name], "md5"), "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, the keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
