"""Outputs of the stages in a workspace: paths, contents, and digests in `dvc.lock`."""

import csv
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import WorkspaceError, remedy_for_committed
from pipeline.files import file_digest, parse_yaml, read_json
from pipeline.models.contract import Contract, read_contract

RAW = "data/raw"
DATASET = "data/dataset"
MODEL = "models/model.keras"
EXPORTED_MODEL = "models/model.tflite"
CONTRACT = "models/contract.json"
QUANTIZED = "models/quantized"  # empty without an int8 model
INT8_MODEL = f"{QUANTIZED}/model.int8.tflite"
TRAINING = "reports/training"
EVALUATION = "reports/evaluation"
REGISTRATION = "reports/registration.json"


@dataclass(frozen=True)
class Outputs:
    """The stage outputs below a workspace's root, which is the current directory of a stage."""

    root: Path = Path()

    @property
    def model(self) -> Path:
        return self.root / MODEL

    @property
    def exported_model(self) -> Path:
        """The model for LiteRT, which is evaluated and served."""
        return self.root / EXPORTED_MODEL

    @property
    def contract_file(self) -> Path:
        return self.root / CONTRACT

    def contract(self) -> Contract | None:
        """Read the contract of the model. None if it has none: a commit without contracts trained it.

        Raises:
            ModelError: the contract is damaged.
        """
        if not self.contract_file.is_file():
            return None
        contract = read_contract(self.contract_file)
        return contract if contract.keras_sha256 == file_digest(self.model) else None

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
        """Reports of `validate` and `split`. The directory of Data Docs is not a DVC output and may be missing."""
        names = ("validation.json", "split.json", "data_docs")
        return [path for path in (self.root / "reports" / name for name in names) if path.exists()]

    def split(self, name: str) -> Path:
        return self.root / f"data/splits/{name}.parquet"

    def settings(self) -> dict[str, Any]:
        """Read `settings.json`, the resolved settings of `train`."""
        return dict(read_json(self.training / "settings.json"))

    def history(self) -> list[dict[str, float]]:
        """Read `history.csv`: one dict for each epoch."""
        rows = read_csv(self.training / "history.csv")
        return [{name: float(value) for name, value in row.items()} for row in rows]

    def locked(self, stage: str) -> dict[str, str]:
        """Read the MD5 of a stage's last inputs and outputs from `dvc.lock`, by path. Empty if the stage is not there.

        Raises:
            WorkspaceError: `dvc.lock` is damaged.
        """
        locked = self._locked_stages().get(stage, {})
        entries = [entry for kind in ("deps", "outs") for entry in locked.get(kind, [])]
        return {entry["path"]: entry.get("md5", "") for entry in entries}

    def locked_outputs(self, stage: str | None = None) -> dict[str, str]:
        """Read the MD5 of the last outputs of a stage (default: of all stages) from `dvc.lock`, by path.

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
            raise WorkspaceError(f"{lock} is damaged", found=str(error), remedy=remedy_for_committed(lock)) from None

    def are_of(self, stage: str, *paths: str) -> bool:
        """Return True if the files or directories in the workspace are the ones that a stage last read or wrote."""
        locked = self.locked(stage)
        return all((self.root / path).exists() and dvc_digest(self.root / path) == locked.get(path) for path in paths)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a table with a header: one dict for each row."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def dvc_digest(path: Path, *, hidden: bool = True) -> str:
    """Compute DVC's MD5 of a file, or of a directory: the MD5 of the sorted list of its files with their MD5s.

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
    """Flatten nested mappings. Keys are joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
