"""The role of this process among several workers, from the variable TF_CONFIG. Does not import TensorFlow."""

import json
import os
from dataclasses import dataclass

from pipeline.errors import ModelError

GUIDE = "see docs/training.md for how to start several workers"


@dataclass(frozen=True)
class Worker:
    """One of the processes that train together."""

    name: str  # "worker 1"
    chief: bool  # True for the worker that writes and records


def this_worker() -> Worker | None:
    """Return the role of this process. None if it is the only one.

    Raises:
        ModelError: TF_CONFIG cannot be read.
    """
    if not (config := os.environ.get("TF_CONFIG")):
        return None
    try:
        content = json.loads(config)
        kind, index = content["task"]["type"], int(content["task"]["index"])
        chief = kind == "chief" or (kind == "worker" and index == 0 and "chief" not in content["cluster"])
    except (ValueError, KeyError, TypeError):
        raise ModelError(
            "cannot read the variable TF_CONFIG",
            expected='{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}',
            found=config,
            remedy=GUIDE,
        ) from None
    return Worker(f"{kind} {index}", chief)
