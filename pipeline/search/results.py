"""Results of trainings, by everything that determines them: the same training is not repeated."""

import base64
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.files import read_cached_json, write_json
from pipeline.models.checkpoints import Checkpoint, derive_key
from pipeline.search.definition import Definition
from pipeline.stages.train import COMPILER_FLAGS
from pipeline.workspace import STATE, main_repository

if TYPE_CHECKING:
    import numpy as np

    from pipeline.params import Params

LIBRARIES = ("tensorflow", "keras", "numpy")


@dataclass(frozen=True)
class Result:
    """The result of a training, or of its first epochs."""

    history: list[dict[str, Any]]  # one record for each epoch
    model_sha256: str = ""  # of model.keras; empty: only the first epochs were trained
    right: str = ""  # by `pack`: the validation images that the model answers correctly
    cpu_seconds: float = 0.0


def training_key(params: "Params", definition: Definition, machine: Mapping[str, Any]) -> str:
    """Return the digest of everything that determines a training. It holds the threads, which change the bytes.

    Args:
        machine: the properties of the machine that change bits, as plain values.
    """
    train = asdict(params.train)
    for name in ("preset", "quantize", "quantize_max_drop"):  # they do not change the weights
        train.pop(name)
    determinants = {
        "train": train,
        "positive_classes": params.dataset.positive_classes,
        "data": dict(definition.data),
        "code": definition.code,
        "machine": dict(machine),
        "installed": [version(name) for name in LIBRARIES],
        "flags": [os.environ.get(name) for name in COMPILER_FLAGS],
    }
    return derive_key(determinants, ())


def read_result(key: str) -> Result | None:
    """Read the result of a training. None if there is none."""
    content = read_cached_json(_path(key))
    return Result(**content) if content else None


def write_result(key: str, result: Result) -> None:
    """Write the result of a training. The result of a finished training is not replaced by that of a pruned one."""
    known = read_result(key)
    if known is None or not known.model_sha256:
        write_json(_path(key), asdict(result))


def checkpoint(key: str) -> Checkpoint:
    """Return the checkpoint of a training. The file may not exist."""
    return Checkpoint(_directory() / f"{key}.npz")


def pack(right: "np.ndarray") -> str:
    """Encode bool [n] as text, a few hundred bytes for thousands of images."""
    import numpy as np

    content = len(right).to_bytes(4) + np.packbits(~right).tobytes()
    return base64.b64encode(zlib.compress(content)).decode()


def unpack(text: str) -> "np.ndarray":
    """Decode bool [n] from `pack`."""
    import numpy as np

    content = zlib.decompress(base64.b64decode(text))
    count = int.from_bytes(content[:4])
    return ~np.unpackbits(np.frombuffer(content[4:], np.uint8), count=count).astype(bool)


def _directory() -> Path:
    return main_repository() / STATE / "trainings"


def _path(key: str) -> Path:
    return _directory() / f"{key}.json"
