"""Definition of a sweep: parameters, data and code. They must be the same on every machine that takes part."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pipeline.dvc_yaml import read_stages
from pipeline.errors import ParamsError, WorkspaceError
from pipeline.files import file_digest, parse_yaml
from pipeline.params import PARAMS_FILE, load_params
from pipeline.search.params import SweepParams
from pipeline.stages.entrypoint import read_params
from pipeline.stages.train import TRAIN, VALIDATION

SECTIONS = ("dataset", "train", "presets", "sweep")  # of params.yaml, that determine the trials
DATA = (TRAIN, VALIDATION)


@dataclass(frozen=True)
class Definition:
    """The definition of a sweep, which is stored in its study."""

    sections: Mapping[str, Any]  # SECTIONS of params.yaml, with the preset of the sweep
    data: Mapping[str, str]  # SHA-256 of the train and the validation split
    code: str  # digest of the code and the pins that the stage `train` declares

    @property
    def sweep(self) -> SweepParams:
        return TypeAdapter(SweepParams).validate_python(self.sections["sweep"])

    @property
    def content(self) -> dict[str, Any]:
        """Plain values for the study."""
        return {"sections": dict(self.sections), "data": dict(self.data), "code": self.code}


def define(preset: str | None = None) -> Definition:
    """Define a sweep by the workspace in the current directory.

    Args:
        preset: instead of `train.preset`.

    Raises:
        ParamsError: params.yaml cannot be used, or has no `sweep.space`.
        WorkspaceError: the preset or the splits are missing.
    """
    read_params()
    raw = parse_yaml(PARAMS_FILE.read_bytes())
    if preset is not None:
        if preset not in raw["presets"]:
            raise WorkspaceError(
                f"there is no preset {preset!r}", expected=", ".join(raw["presets"]), remedy="pipeline params"
            )
        raw["train"]["preset"] = preset
    if not raw.setdefault("sweep", {}).get("space"):
        raise ParamsError(
            f"{PARAMS_FILE} has nothing to search",
            expected="a key of train and its values, such as sweep.space.momentum: {low: 0.5, high: 0.95}",
            remedy="add them (docs/search.md)",
        )
    return Definition({name: raw[name] for name in SECTIONS}, digest_data(), digest_code())


def read_definition(content: Mapping[str, Any]) -> Definition:
    """Read a definition from `Definition.content`."""
    return Definition(content["sections"], content["data"], content["code"])


def full_sections(definition: Definition) -> dict[str, Any]:
    """Return the content of params.yaml for the trials: the definition's sections, and this workspace's others."""
    load_params()
    return {**parse_yaml(PARAMS_FILE.read_bytes()), **definition.sections}


def require_same(name: str, recorded: Definition) -> None:
    """Refuse a workspace whose data or code differ from those of a sweep.

    Raises:
        WorkspaceError: naming what differs.
    """
    data, code = digest_data(), digest_code()
    for path, digest in recorded.data.items():
        if data[path] != digest:
            raise WorkspaceError(
                f"{path} is not the data of the sweep {name}",
                expected=f"SHA-256 {digest[:16]}…",
                found=f"{data[path][:16]}…",
                remedy="check out the data of the sweep (git checkout, dvc checkout), or choose another --name",
            )
    if code != recorded.code:
        raise WorkspaceError(
            f"the training code here is not that of the sweep {name}",
            expected=f"digest {recorded.code[:16]}… of what the stage train declares in dvc.yaml",
            found=f"{code[:16]}…",
            remedy="check out the commit of the sweep, or choose another --name",
        )


def require_same_params(name: str, recorded: Definition, now: Definition) -> None:
    """Refuse to continue a sweep after its sections of params.yaml have been edited.

    Raises:
        WorkspaceError: naming the sections.
    """
    changed = [
        section for section in SECTIONS if _as_json(recorded.sections[section]) != _as_json(now.sections[section])
    ]
    if changed:
        raise WorkspaceError(
            f"the sweep {name} was started with other parameters",
            expected="the same parameters",
            found=f"differences in {', '.join(changed)} of params.yaml",
            remedy=f"choose another --name, or continue with the recorded ones: pipeline sweep --join {name}",
        )


def digest_data() -> dict[str, str]:
    """Return the SHA-256 of the train and the validation split of the current directory, by path."""
    missing = [str(path) for path in DATA if not path.is_file()]
    if missing:
        raise WorkspaceError(
            "a sweep trains on the splits", found=f"no {' and no '.join(missing)}", remedy="pipeline run --until split"
        )
    return {str(path): file_digest(path) for path in DATA}


def digest_code() -> str:
    """Return a digest of the code and the pins that the stage `train` declares in dvc.yaml, without its data."""
    digest = hashlib.sha256()
    for dependency in map(Path, read_stages()["train"].deps):
        if dependency not in DATA:
            files = sorted(dependency.rglob("*.py")) if dependency.is_dir() else [dependency]
            for file in files:
                digest.update(f"{file} {file_digest(file)}\n".encode())
    return digest.hexdigest()


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
