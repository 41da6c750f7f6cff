"""Which of several workers this process is, by TensorFlow's variable TF_CONFIG. TensorFlow itself is not imported."""

import json
import os
from dataclasses import dataclass

from pipeline.errors import ModelError

GUIDE = "docs/training.md tells how to start several workers"


@dataclass(frozen=True)
class Worker:
    """One of the processes that train together."""

    name: str  # "worker 1"
    chief: bool  # whether it is the one that writes and records


def this_worker() -> Worker | None:
    """This process among the workers; None when it trains alone.

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
            "the variable TF_CONFIG cannot be read",
            expected='{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}',
            found=config,
            remedy=GUIDE,
        ) from None
    return Worker(f"{kind} {index}", chief)
